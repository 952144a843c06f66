"""Convolutional classifiers without pooling in between: plain, and with residual blocks."""

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_l2l.errors import InvalidInputError


class AllConvNet(nn.Module):
    """3 × 3 convolutions, the mean over all positions, and a linear layer: images [B, C, H, W] in, logits out.

    After Springenberg et al. (arXiv:1412.6806), where strides take the place of pooling.

    Args:
        colours: channels of the images.
        channels: of each convolution.
        strides: of each convolution.
        classes: number of labels.
        batch_norm: normalise each convolution's output by the minibatch's statistics, before the ReLU.
    """

    def __init__(
        self,
        colours: int = 3,
        channels: tuple[int, ...] = (32, 64, 64),
        strides: tuple[int, ...] = (2, 1, 1),
        classes: int = 10,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(channels, strides, colours, classes)
        layers: list[nn.Module] = []
        for before, after, stride in zip((colours, *channels), channels, strides, strict=False):
            layers.append(nn.Conv2d(before, after, 3, stride, padding=1))
            layers += [nn.BatchNorm2d(after)] if batch_norm else []
            layers.append(nn.ReLU())
        self.layers = nn.Sequential(*layers)
        self.readout = nn.Linear(channels[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits, [B, classes]."""
        return self.readout(self.layers(images).mean((2, 3)))


class ResidualNet(nn.Module):
    """A convolution, residual blocks, the mean over all positions and a linear layer (He et al., arXiv:1512.03385).

    Args:
        colours: channels of the images.
        channels: of each residual block; the first is also that of the first convolution.
        strides: of each residual block; the first convolution has stride 2.
        classes: number of labels.
    """

    def __init__(
        self,
        colours: int = 1,
        channels: tuple[int, ...] = (16, 32),
        strides: tuple[int, ...] = (1, 2),
        classes: int = 10,
    ) -> None:
        super().__init__()
        check_sizes(channels, strides, colours, classes)
        self.first = nn.Conv2d(colours, channels[0], 3, 2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels[0])
        sizes = zip((channels[0], *channels), channels, strides, strict=False)
        self.blocks = nn.Sequential(*(ResidualBlock(*size) for size in sizes))
        self.readout = nn.Linear(channels[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits, [B, classes]."""
        return self.readout(self.blocks(F.relu(self.norm(self.first(images)))).mean((2, 3)))


class ResidualBlock(nn.Module):
    """Two normalised 3 × 3 convolutions beside a shortcut, which is a 1 × 1 convolution where sizes differ."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.one_norm = nn.BatchNorm2d(after)
        self.two = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.two_norm = nn.BatchNorm2d(after)
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.relu(self.one_norm(self.one(inputs)))
        return F.relu(self.two_norm(self.two(hidden)) + self.shortcut(inputs))


def check_sizes(channels: tuple[int, ...], strides: tuple[int, ...], colours: int, classes: int) -> None:
    """Refuses sizes that make no network."""
    if not channels or len(channels) != len(strides) or min(*channels, *strides, colours, classes) <= 0:
        raise InvalidInputError(
            f"data.network has channels {list(channels)}, strides {list(strides)}, {colours} colours and {classes} "
            "classes: give as many strides as channels, at least one, and positive numbers."
        )
