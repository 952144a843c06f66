"""Classifications and regressions of tables. Data: breast_cancer, digits, iris and linnerud of scikit-learn."""

from typing import Any, NamedTuple

from torch import nn

from lightning_l2l.optimizees.families.base import Family
from lightning_l2l.optimizees.module_training import ModuleTraining
from lightning_l2l.optimizees.networks.mlp import dense
from lightning_l2l.optimizees.networks.stacked import Linear, Stacked
from lightning_l2l.optimizees.sources.tables import Name, Table

SIZES = {"breast_cancer": (30, 2), "digits": (64, 10), "iris": (4, 3), "linnerud": (3, 3)}  # inputs and outputs


class Row(NamedTuple):
    """One network and how it is trained."""

    table: Name
    hidden: tuple[int, ...]
    activation: str
    batch_size: int


ROWS = [
    Row("breast_cancer", (), "none", 32),
    Row("breast_cancer", (16,), "relu", 16),
    Row("breast_cancer", (12, 12), "tanh", 64),
    Row("breast_cancer", (16, 8, 8), "gelu", 32),
    Row("digits", (), "none", 64),
    Row("digits", (24,), "relu", 32),
    Row("digits", (16, 16), "sigmoid", 32),
    Row("digits", (32, 16), "gelu", 16),
    Row("iris", (16,), "tanh", 16),
    Row("iris", (16, 16, 16), "relu", 32),
    Row("linnerud", (32,), "tanh", 16),
    Row("linnerud", (16, 16), "relu", 16),
]


class Tables(Family):
    """Linear models and perceptrons on standardised columns: cross-entropy, or squared error for linnerud."""

    rows = ROWS
    data = tuple(f"scikit-learn {name}" for name in SIZES)

    def task(self, row: Row, **settings: Any) -> ModuleTraining:
        inputs, outputs = SIZES[row.table]
        network = Stacked(*dense((inputs, *row.hidden, outputs), row.activation, Linear))
        loss = nn.MSELoss() if row.table == "linnerud" else nn.CrossEntropyLoss()
        return ModuleTraining(network, loss, Table(row.table), row.batch_size, **settings)
