"""Small convolutional classifiers of images, with and without batch normalisation. Data: MNIST, Fashion-MNIST."""

from typing import Any, NamedTuple

from torch import nn

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees.families.base import ImageFamily
from lightning_l2l.optimizees.module_training import ModuleTraining
from lightning_l2l.optimizees.networks.mlp import ACTIVATIONS
from lightning_l2l.optimizees.networks.stacked import BatchNorm, Conv2d, Linear, Stacked
from lightning_l2l.optimizees.sources.small_images import Name, SmallImages


class Convolutional(NamedTuple):
    """One network of 3 × 3 convolutions with stride 2, and how it is trained."""

    images: Name
    size: int
    channels: tuple[int, ...]
    activation: str
    batch_size: int
    normalised: bool = False
    squared: bool = False  # squared error instead of cross-entropy


PLAIN = [
    Convolutional("MNIST", 14, (4, 8), "relu", 8),
    Convolutional("MNIST", 14, (8,), "tanh", 8),
    Convolutional("MNIST", 14, (4, 8, 8), "relu", 8),
    Convolutional("MNIST", 7, (8, 8), "gelu", 16, squared=True),
    Convolutional("FashionMNIST", 14, (6, 8), "gelu", 8),
    Convolutional("FashionMNIST", 14, (4, 12), "relu", 8),
    Convolutional("FashionMNIST", 7, (12,), "relu", 16),
]
WIDE = [
    Convolutional("MNIST", 14, (16, 32), "relu", 64),
    Convolutional("MNIST", 7, (32, 32), "relu", 128),
    Convolutional("FashionMNIST", 14, (24, 24), "gelu", 32),
    Convolutional("FashionMNIST", 14, (16, 16, 32), "tanh", 64),
]
NORMALISED = [
    Convolutional("MNIST", 14, (4, 8), "relu", 8, normalised=True),
    Convolutional("MNIST", 7, (8, 12), "gelu", 16, normalised=True),
    Convolutional("MNIST", 14, (6,), "relu", 8, normalised=True, squared=True),
    Convolutional("FashionMNIST", 14, (4, 4, 8), "relu", 8, normalised=True),
    Convolutional("FashionMNIST", 14, (8,), "tanh", 8, normalised=True),
    Convolutional("FashionMNIST", 7, (8, 8), "relu", 16, normalised=True),
]


class ImageCNNs(ImageFamily):
    """One to three convolutions of 4 to 12 channels and a linear layer.

    Args:
        normalised: whether each convolution is followed by batch normalisation.
        wide: whether convolutions have 16 to 32 channels instead; without normalisation.
        root: folder of datasets (see ``SmallImages``).
    """

    def __init__(self, normalised: bool = False, wide: bool = False, root: str = "data") -> None:
        super().__init__(root)
        if normalised and wide:
            raise InvalidInputError("ImageCNNs are either normalised or wide: leave one of the two out.")
        self.rows = WIDE if wide else NORMALISED if normalised else PLAIN

    def task(self, row: Convolutional, **settings: Any) -> ModuleTraining:
        loss = nn.MSELoss() if row.squared else nn.CrossEntropyLoss()
        source = SmallImages(row.images, row.size, flat=False, one_hot=row.squared, root=self.root)
        return ModuleTraining(_network(row), loss, source, row.batch_size, **settings)


def _network(row: Convolutional) -> Stacked:
    layers: list[nn.Module] = []
    width, size = 1, row.size
    for channels in row.channels:
        layers.append(Conv2d(width, channels, 3, stride=2, padding=1))
        layers += [BatchNorm(channels)] if row.normalised else []
        layers.append(ACTIVATIONS[row.activation]())
        width, size = channels, (size + 1) // 2
    return Stacked(*layers, nn.Flatten(-3), Linear(width * size**2, 10))
