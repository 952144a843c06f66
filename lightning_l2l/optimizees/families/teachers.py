"""Students of random teachers, and ill-conditioned linear regression. Data: synthetic."""

from typing import Any, NamedTuple

from torch import nn

from lightning_l2l.optimizees.families.base import Family
from lightning_l2l.optimizees.module_training import ModuleTraining
from lightning_l2l.optimizees.networks.mlp import dense
from lightning_l2l.optimizees.networks.stacked import Linear, Stacked
from lightning_l2l.optimizees.sources.teachers import Teacher


class Student(NamedTuple):
    """One network and how it is trained."""

    inputs: int
    hidden: tuple[int, ...]
    outputs: int
    activation: str
    batch_size: int
    loss: str
    condition: int = 1
    noise_in_percent: int = 0


STUDENTS = [
    Student(8, (32,), 1, "tanh", 32, "squared error"),
    Student(16, (16, 16), 1, "relu", 32, "squared error", noise_in_percent=30),
    Student(10, (24, 24), 4, "gelu", 16, "absolute error"),
    Student(32, (16,), 8, "relu", 64, "squared error", condition=10),
    Student(20, (20, 20, 20), 1, "tanh", 32, "Huber", noise_in_percent=10),
    Student(24, (16, 8), 5, "relu", 32, "cross-entropy"),
    Student(16, (32,), 10, "tanh", 64, "cross-entropy", noise_in_percent=30),
    Student(12, (12, 12, 12), 3, "sigmoid", 32, "cross-entropy"),
    Student(48, (24,), 2, "gelu", 16, "cross-entropy", condition=30),
    Student(20, (16, 16), 6, "gelu", 128, "cross-entropy", noise_in_percent=10),
]
REGRESSIONS = [
    Student(32, (), 16, "none", 64, "squared error", condition=30),
    Student(64, (), 8, "none", 32, "squared error", condition=10, noise_in_percent=10),
    Student(24, (16,), 24, "none", 32, "squared error", condition=10),
    Student(40, (), 10, "none", 128, "squared error", condition=100, noise_in_percent=1),
]
LOSSES = {
    "squared error": nn.MSELoss,
    "absolute error": nn.L1Loss,
    "Huber": nn.HuberLoss,
    "cross-entropy": nn.CrossEntropyLoss,
}


class Teachers(Family):
    """Perceptrons that learn a random network's outputs, or which of them is largest.

    Args:
        linear: whether both are linear instead, and inputs ill-conditioned.
    """

    data = ("random teachers",)

    def __init__(self, linear: bool = False) -> None:
        self.rows = REGRESSIONS if linear else STUDENTS
        self.linear = linear

    def task(self, row: Student, **settings: Any) -> ModuleTraining:
        network = Stacked(*dense((row.inputs, *row.hidden, row.outputs), row.activation, Linear))
        source = Teacher(
            row.inputs,
            row.outputs,
            classes=row.loss == "cross-entropy",
            linear=self.linear,
            condition=row.condition,
            noise=row.noise_in_percent / 100,
            seed=self._number(row),  # another teacher for each task
        )
        return ModuleTraining(network, LOSSES[row.loss](), source, row.batch_size, **settings)

    def _number(self, row: Student) -> int:
        """Which of the rows it is, whatever its batch size."""
        return [own._replace(batch_size=row.batch_size) for own in self.rows].index(row)
