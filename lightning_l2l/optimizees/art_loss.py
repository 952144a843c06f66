"""The loss of a picture painted in the style of another (Gatys et al., arXiv:1508.06576)."""

import torch
from torch import Tensor, nn

from lightning_l2l.digests import content
from lightning_l2l.optimizees.networks.vgg import VGG

CONTENT_LAYER = 1  # relu2_2 of relu1_2, relu2_2 and relu3_3
UNIT = 64**2  # pixels of a picture whose loss is not rescaled


class ArtLoss(nn.Module):
    """α · content + β · style + γ · total variation of pictures, for one style.

    All three are means, and the first two relative to the style's own features, so that they are of order 1 and the
    weights mean the same for pictures of any size, for any style and for features of any scale. The sum is multiplied
    by the picture's area relative to 64 × 64: then a pixel's gradient has the same size in every picture, so a rule
    learned on small pictures fits large ones.

    Args:
        features: the frozen network.
        style: the style image, normalized, [3, h, w].
        weights: α, β and γ.
    """

    def __init__(self, features: VGG, style: Tensor, weights: tuple[float, float, float]) -> None:
        super().__init__()
        self.features = features
        self.weights = weights
        self.register_buffer("style", style)
        self.style: Tensor
        place = next(features.parameters())
        with torch.no_grad():
            layers = features(style[None].to(place))
        self.layers = len(layers)
        for number, layer in enumerate(layers):
            self.register_buffer(f"gram{number}", gram(layer))
        self.register_buffer("scale", layers[CONTENT_LAYER].square().mean())
        self.scale: Tensor

    def __repr__(self) -> str:
        tensors = " ".join(content(tensor) for tensor in self.state_dict().values())
        return f"ArtLoss({self.weights}, {tensors})"

    @torch.no_grad()
    def content(self, pictures: Tensor) -> Tensor:
        """The features, [N, C, h, w], by which the content of normalized pictures [N, 3, H, W] is compared."""
        return self.features(pictures.to(self.scale))[CONTENT_LAYER]

    def forward(self, pictures: Tensor, target: Tensor) -> Tensor:
        """Returns each picture's loss, [N].

        Args:
            pictures: normalized, [N, 3, H, W].
            target: ``content`` of the content images, [N, C, h, w].
        """
        layers = self.features(pictures.to(self.scale.dtype))
        alpha, beta, gamma = self.weights
        loss = alpha * (layers[CONTENT_LAYER] - target.to(self.scale.dtype)).square().mean((1, 2, 3)) / self.scale
        for number, layer in enumerate(layers):
            wanted = self.get_buffer(f"gram{number}")
            error = (gram(layer) - wanted).square().sum((1, 2)) / wanted.square().sum()
            loss = loss + beta / self.layers * error
        return pictures[0, 0].numel() / UNIT * (loss + gamma * variation(pictures))


def gram(features: Tensor) -> Tensor:
    """Gram matrices of features [N, C, H, W]: the mean over all positions of the channels' products, [N, C, C]."""
    rows = features.permute(0, 2, 3, 1).flatten(1, 2)  # no copy if channels are last in memory
    return rows.mT @ rows / rows.shape[1]


def variation(pictures: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels, across and down, of pictures [N, C, H, W]: [N]."""
    across, down = pictures.diff(dim=3), pictures.diff(dim=2)
    return across.square().mean((1, 2, 3)) + down.square().mean((1, 2, 3))
