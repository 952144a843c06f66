"""Small networks on sequences, made of layers that run networks side by side."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_l2l.optimizees.networks.stacked import (
    GRU,
    LSTM,
    Attention,
    Embedding,
    LayerNorm,
    Linear,
    Places,
    Residual,
    Stacked,
)

CELLS = {"GRU": GRU, "LSTM": LSTM}


class EachPlace(nn.CrossEntropyLoss):
    """Cross-entropy of logits [.., L, V] and class numbers [.., L], over all places."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction=self.reduction)


class MeanOfPlaces(nn.Module):
    """Means over the places of [.., L, D], [.., D]."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mean(-2)


def recurrent(vocabulary: int, embedding: int, hidden: int, layers: int, cell: Literal["GRU", "LSTM"]) -> Stacked:
    """A language model: characters [.., B, L] in, logits of the next ones [.., B, L, V] out."""
    sizes = [embedding] + [hidden] * layers
    cells = [CELLS[cell](size, hidden) for size in sizes[:-1]]
    return Stacked(Embedding(vocabulary, embedding), *cells, Linear(hidden, vocabulary))


def transformer(inputs: nn.Module, length: int, width: int, heads: int, blocks: int, causal: bool) -> list[nn.Module]:
    """Layers up to the readout; each block is attention and an MLP twice as wide, after a layer norm each.

    Args:
        inputs: makes vectors [.., B, L, D] of its inputs.
        length: L.
        width: D.
        heads: of each attention.
        blocks: their number.
        causal: whether a place sees only those before it.
    """
    layers = [inputs, Places(length, width)]
    for _ in range(blocks):
        mlp = Linear(width, 2 * width), nn.GELU(), Linear(2 * width, width)
        layers.append(Residual(LayerNorm(width), Attention(width, heads, causal)))
        layers.append(Residual(LayerNorm(width), *mlp))
    return [*layers, LayerNorm(width)]
