"""Small language models on characters, which predict the next character at every position of a window."""

import torch
from torch import Tensor, nn

from lightning_l2l.errors import InvalidInputError, require_positive


class CharGRU(nn.Module):
    """An embedding, a GRU and a linear layer: characters [B, L] in, logits [B, V, L] out.

    Args:
        vocabulary: V, number of different characters.
        embedding_size: of a character.
        hidden_size: units of each layer of the GRU.
        num_layers: of the GRU.
    """

    def __init__(self, vocabulary: int, embedding_size: int = 16, hidden_size: int = 32, num_layers: int = 1) -> None:
        super().__init__()
        sizes = {"embedding_size": embedding_size, "hidden_size": hidden_size, "num_layers": num_layers}
        for name, size in {"vocabulary": vocabulary, **sizes}.items():
            require_positive(f"data.network.{name}", size)
        self.embedding = nn.Embedding(vocabulary, embedding_size)
        self.gru = nn.GRU(embedding_size, hidden_size, num_layers, batch_first=True)
        self.readout = nn.Linear(hidden_size, vocabulary)

    def forward(self, characters: Tensor) -> Tensor:
        """Returns the logits of each next character, as ``torch.nn.CrossEntropyLoss`` takes them."""
        hidden, _ = self.gru(self.embedding(characters))
        return self.readout(hidden).mT


class CharTransformer(nn.Module):
    """Embeddings of characters and positions, causal attention and a linear layer: [B, L] in, logits [B, V, L] out.

    Args:
        vocabulary: V, number of different characters.
        length: the largest L.
        width: features of a character; a multiple of ``heads``.
        heads: of each layer's attention.
        num_layers: each of attention and an MLP twice as wide, both after a layer norm.
    """

    def __init__(self, vocabulary: int, length: int = 32, width: int = 32, heads: int = 4, num_layers: int = 1) -> None:
        super().__init__()
        sizes = {"length": length, "width": width, "heads": heads, "num_layers": num_layers}
        for name, size in {"vocabulary": vocabulary, **sizes}.items():
            require_positive(f"data.network.{name}", size)
        if width % heads:
            raise InvalidInputError(
                f"data.network.heads is {heads}, which does not divide data.network.width, {width}: make it a divisor."
            )
        self.characters = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(num_layers)
        )
        self.readout = nn.Linear(width, vocabulary)

    def forward(self, characters: Tensor) -> Tensor:
        """Returns the logits of each next character, as ``torch.nn.CrossEntropyLoss`` takes them."""
        length = characters.shape[1]
        hidden = self.characters(characters) + self.places(torch.arange(length, device=characters.device))
        later = torch.ones(length, length, dtype=torch.bool, device=characters.device).triu(1)
        for layer in self.layers:
            hidden = layer(hidden, src_mask=later, is_causal=True)
        return self.readout(hidden).mT
