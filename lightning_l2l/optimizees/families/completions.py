"""Networks that predict the lower half of an image from the upper half. Data: MNIST, Fashion-MNIST."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from lightning_l2l.optimizees.families.base import ImageFamily
from lightning_l2l.optimizees.module_training import ModuleTraining
from lightning_l2l.optimizees.networks.mlp import dense
from lightning_l2l.optimizees.networks.stacked import Linear, Stacked
from lightning_l2l.optimizees.sources.base import Source
from lightning_l2l.optimizees.sources.small_images import Name, SmallImages
from lightning_l2l.optimizees.sources.tensors import TensorExamples


class Completion(NamedTuple):
    """One network and how it is trained."""

    images: Name
    size: int
    hidden: tuple[int, ...]
    activation: str
    batch_size: int
    squashed: bool = False  # outputs pass a sigmoid


NARROW = [
    Completion("MNIST", 14, (16,), "relu", 32),
    Completion("MNIST", 14, (16, 16), "tanh", 32, squashed=True),
    Completion("FashionMNIST", 14, (20,), "gelu", 32),
    Completion("FashionMNIST", 14, (12, 12, 12), "relu", 16, squashed=True),
]
WIDE = [
    Completion("MNIST", 14, (160,), "relu", 64),
    Completion("MNIST", 14, (96, 96), "tanh", 32, squashed=True),
    Completion("FashionMNIST", 20, (128, 48), "gelu", 32),
    Completion("FashionMNIST", 14, (112, 80, 112), "relu", 128, squashed=True),
]


class Completions(ImageFamily):
    """Regressions of many outputs, by squared error.

    Args:
        wide: whether layers have 48 to 160 units, not 12 to 20.
        root: folder of datasets (see ``SmallImages``).
    """

    def __init__(self, wide: bool = False, root: str = "data") -> None:
        super().__init__(root)
        self.rows = WIDE if wide else NARROW

    def task(self, row: Completion, **settings: Any) -> ModuleTraining:
        layers = dense((row.size**2 // 2, *row.hidden, row.size**2 // 2), row.activation, Linear)
        layers += [nn.Sigmoid()] if row.squashed else []
        source = Halves(SmallImages(row.images, row.size, root=self.root))
        return ModuleTraining(Stacked(*layers), nn.MSELoss(), source, row.batch_size, **settings)


@dataclass
class Halves(Source):
    """The upper halves of images as inputs, the lower halves as targets.

    Args:
        images: flat, of an even size.
    """

    images: SmallImages

    def load(self) -> TensorExamples:
        """Reads the images."""
        whole = self.images.load()
        upper, lower = whole.inputs.chunk(2, 1)
        return TensorExamples(upper.contiguous(), lower.contiguous(), whole.ranges, f"halves of {whole.source}")
