"""Classifiers of small images by perceptrons. Data: MNIST, Fashion-MNIST."""

from typing import Any, NamedTuple

from torch import nn

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees.families.base import ImageFamily
from lightning_l2l.optimizees.module_training import ModuleTraining
from lightning_l2l.optimizees.networks.mlp import dense
from lightning_l2l.optimizees.networks.stacked import Linear, Stacked
from lightning_l2l.optimizees.sources.small_images import Name, SmallImages


class Classifier(NamedTuple):
    """One network and how it is trained."""

    images: Name
    size: int
    hidden: tuple[int, ...]
    activation: str
    batch_size: int
    squared: bool = False  # squared error instead of cross-entropy
    centred: bool = False


SMALL = [
    Classifier("MNIST", 7, (32,), "relu", 32),
    Classifier("MNIST", 7, (16, 16), "tanh", 32),
    Classifier("MNIST", 7, (16, 16, 16), "relu", 32),
    Classifier("MNIST", 7, (32,), "gelu", 64, centred=True),
    Classifier("MNIST", 7, (20,), "sigmoid", 128),
    Classifier("MNIST", 7, (24, 16), "relu", 32, squared=True),
    Classifier("MNIST", 14, (16,), "relu", 32),
    Classifier("MNIST", 14, (16, 16), "tanh", 16, centred=True),
    Classifier("MNIST", 14, (16, 16, 16), "gelu", 16),
    Classifier("MNIST", 14, (12,), "sigmoid", 16, squared=True),
    Classifier("MNIST", 28, (8,), "relu", 16),
    Classifier("FashionMNIST", 7, (16, 32), "relu", 32, centred=True),
    Classifier("FashionMNIST", 7, (64,), "tanh", 32),
    Classifier("FashionMNIST", 7, (12, 12, 12), "gelu", 64),
    Classifier("FashionMNIST", 7, (24, 24), "sigmoid", 32),
    Classifier("FashionMNIST", 7, (16,), "gelu", 128, squared=True, centred=True),
    Classifier("FashionMNIST", 14, (24,), "relu", 16),
    Classifier("FashionMNIST", 14, (8, 16), "relu", 32),
    Classifier("FashionMNIST", 14, (20, 12, 12), "tanh", 16),
    Classifier("FashionMNIST", 28, (10,), "gelu", 16, centred=True),
]
LARGE = [
    Classifier("MNIST", 64, (4,), "relu", 16),
    Classifier("FashionMNIST", 64, (4, 16), "relu", 16),
    Classifier("MNIST", 56, (6, 12), "gelu", 16),
    Classifier("FashionMNIST", 56, (5,), "tanh", 16),
    Classifier("MNIST", 40, (8, 8, 8), "relu", 16),
    Classifier("FashionMNIST", 40, (8,), "relu", 16),
]
WIDE = [
    Classifier("MNIST", 14, (160,), "gelu", 32),
    Classifier("MNIST", 7, (128, 96), "tanh", 128),
    Classifier("FashionMNIST", 14, (128, 128), "relu", 64),
    Classifier("FashionMNIST", 7, (96, 96, 96), "relu", 32, centred=True),
]


class ImageMLPs(ImageFamily):
    """Perceptrons of 1 to 3 layers, 4 to 64 units wide, on MNIST and Fashion-MNIST.

    Pixels are positive in most tasks, as users have them.

    Args:
        large: whether images have up to 64 × 64 pixels, 4,096 positive inputs, instead of up to 28 × 28.
        wide: whether layers have 96 to 160 units instead, on images of up to 14 × 14.
        root: folder of datasets (see ``SmallImages``).
    """

    def __init__(self, large: bool = False, wide: bool = False, root: str = "data") -> None:
        super().__init__(root)
        if large and wide:
            raise InvalidInputError("ImageMLPs have either large images or wide layers: leave one of the two out.")
        self.rows = LARGE if large else WIDE if wide else SMALL

    def task(self, row: Classifier, **settings: Any) -> ModuleTraining:
        network = Stacked(*dense((row.size**2, *row.hidden, 10), row.activation, Linear))
        loss = nn.MSELoss() if row.squared else nn.CrossEntropyLoss()
        source = SmallImages(row.images, row.size, centred=row.centred, one_hot=row.squared, root=self.root)
        return ModuleTraining(network, loss, source, row.batch_size, **settings)
