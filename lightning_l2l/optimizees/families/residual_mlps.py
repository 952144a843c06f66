"""Residual perceptrons with normalisation. Data: MNIST, Fashion-MNIST; scikit-learn's digits and breast_cancer."""

from typing import Any, Literal, NamedTuple

from torch import nn

from lightning_l2l.optimizees.families.base import ImageFamily
from lightning_l2l.optimizees.module_training import ModuleTraining
from lightning_l2l.optimizees.networks.mlp import ACTIVATIONS
from lightning_l2l.optimizees.networks.stacked import BatchNorm, LayerNorm, Linear, Residual, Stacked
from lightning_l2l.optimizees.sources.base import Source
from lightning_l2l.optimizees.sources.small_images import SmallImages
from lightning_l2l.optimizees.sources.tables import Table

Norm = Literal["layer", "batch"]
NORMS = {"layer": LayerNorm, "batch": BatchNorm}
SIZES = {"digits": (64, 10), "breast_cancer": (30, 2)}  # inputs and outputs


class Row(NamedTuple):
    """One network and how it is trained."""

    data: str
    width: int
    blocks: int
    activation: str
    batch_size: int
    squared: bool = False  # squared error instead of cross-entropy


ROWS = [
    Row("MNIST", 16, 2, "relu", 32),
    Row("MNIST", 24, 1, "gelu", 32),
    Row("MNIST", 12, 4, "relu", 16),
    Row("FashionMNIST", 16, 3, "gelu", 16),
    Row("FashionMNIST", 24, 2, "tanh", 16),
    Row("FashionMNIST", 16, 2, "relu", 32, squared=True),
    Row("digits", 16, 2, "relu", 32),
    Row("breast_cancer", 16, 3, "gelu", 32),
]


class ResidualMLPs(ImageFamily):
    """Blocks x + W₂ a(W₁ norm(x)) of width 12 to 24 between two linear layers, on 7 × 7 images and tables.

    Args:
        norm: layer or batch.
        root: folder of datasets (see ``SmallImages``).
    """

    rows = ROWS

    def __init__(self, norm: Norm = "layer", root: str = "data") -> None:
        super().__init__(root)
        self.norm = norm
        self.data = *self.data, *(f"scikit-learn {name}" for name in SIZES)

    def task(self, row: Row, **settings: Any) -> ModuleTraining:
        inputs, outputs = SIZES.get(row.data, (49, 10))
        source: Source
        if row.data in SIZES:
            source = Table(row.data)  # type: ignore[arg-type]
        else:
            source = SmallImages(row.data, 7, centred=True, one_hot=row.squared, root=self.root)  # type: ignore[arg-type]
        norm = NORMS[self.norm]
        layers: list[nn.Module] = [Linear(inputs, row.width)]
        for _ in range(row.blocks):
            inner = Linear(row.width, row.width), ACTIVATIONS[row.activation](), Linear(row.width, row.width)
            layers.append(Residual(norm(row.width), *inner))
        network = Stacked(*layers, norm(row.width), Linear(row.width, outputs))
        loss = nn.MSELoss() if row.squared else nn.CrossEntropyLoss()
        return ModuleTraining(network, loss, source, row.batch_size, **settings)
