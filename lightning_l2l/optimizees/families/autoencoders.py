"""Autoencoders of small images, with narrow and wide codes. Data: MNIST, Fashion-MNIST."""

from typing import Any, NamedTuple

from torch import nn

from lightning_l2l.optimizees.families.base import ImageFamily
from lightning_l2l.optimizees.module_training import ModuleTraining
from lightning_l2l.optimizees.networks.mlp import dense
from lightning_l2l.optimizees.networks.stacked import Linear, Stacked
from lightning_l2l.optimizees.sources.small_images import Name, SmallImages


class Reconstruction(NamedTuple):
    """One network and how it is trained."""

    images: Name
    size: int
    hidden: tuple[int, ...]  # the code is the smallest
    activation: str
    batch_size: int
    loss: str


NARROW = [
    Reconstruction("MNIST", 7, (16, 4, 16), "tanh", 32, "squared error"),
    Reconstruction("MNIST", 7, (8,), "relu", 64, "squared error"),
    Reconstruction("MNIST", 7, (24, 8, 24), "relu", 32, "cross-entropy"),
    Reconstruction("MNIST", 7, (64,), "relu", 32, "squared error"),
    Reconstruction("MNIST", 14, (16, 8, 16), "sigmoid", 16, "squared error"),
    Reconstruction("MNIST", 14, (16,), "gelu", 16, "cross-entropy"),
    Reconstruction("MNIST", 14, (12, 2, 12), "gelu", 32, "squared error"),
    Reconstruction("FashionMNIST", 7, (16, 16, 6, 16, 16), "relu", 32, "squared error"),
    Reconstruction("FashionMNIST", 7, (48,), "tanh", 32, "cross-entropy"),
    Reconstruction("FashionMNIST", 7, (20, 3, 20), "gelu", 32, "squared error"),
    Reconstruction("FashionMNIST", 14, (16, 4, 16), "relu", 16, "squared error"),
    Reconstruction("FashionMNIST", 14, (20,), "tanh", 16, "linear, squared error"),
]
WIDE = [
    Reconstruction("MNIST", 14, (160,), "tanh", 32, "linear, squared error"),
    Reconstruction("MNIST", 14, (112, 96, 112), "gelu", 32, "squared error"),
    Reconstruction("FashionMNIST", 14, (128, 48, 128), "relu", 32, "squared error"),
    Reconstruction("FashionMNIST", 14, (96, 64, 96), "tanh", 32, "cross-entropy"),
]


class Autoencoders(ImageFamily):
    """Perceptrons that reconstruct images through a code of 2 to 64 units.

    Outputs pass a sigmoid before the squared error or the binary cross-entropy, except where they are called linear.

    Args:
        wide: whether layers have 96 to 160 units, and codes 48 to 160.
        root: folder of datasets (see ``SmallImages``).
    """

    def __init__(self, wide: bool = False, root: str = "data") -> None:
        super().__init__(root)
        self.rows = WIDE if wide else NARROW

    def task(self, row: Reconstruction, **settings: Any) -> ModuleTraining:
        layers = dense((row.size**2, *row.hidden, row.size**2), row.activation, Linear)
        loss = nn.BCEWithLogitsLoss() if row.loss == "cross-entropy" else nn.MSELoss()
        layers += [nn.Sigmoid()] if row.loss == "squared error" else []
        source = SmallImages(row.images, row.size, root=self.root)
        return ModuleTraining(Stacked(*layers), loss, source, row.batch_size, reconstruct=True, **settings)
