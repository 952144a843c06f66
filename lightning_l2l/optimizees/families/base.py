"""What a suite draws its tasks from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from torch import nn

from lightning_l2l.optimizees.base import EpisodeDataModule
from lightning_l2l.optimizees.networks.stacked import Linear

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "sigmoid": nn.Sigmoid, "none": nn.Identity}


class Family(ABC):
    """A finite list of tasks of one kind.

    Attributes:
        data: the data sets that it uses, in words.
    """

    data: tuple[str, ...] = ()

    @abstractmethod
    def tasks(self, **settings: Any) -> dict[str, EpisodeDataModule]:
        """Makes the tasks by name, such as ``ModuleTraining``; examples are loaded when episodes are drawn.

        Args:
            settings: of ``EpisodeDataModule``: a horizon and a seed.
        """


def dense(sizes: Sequence[int], activation: str) -> list[nn.Module]:
    """The layers of a perceptron, with activations between them."""
    layers: list[nn.Module] = []
    for size, next_size in pairwise(sizes):
        layers += [Linear(size, next_size), ACTIVATIONS[activation]()]
    return layers[:-1]


def describe(task: NamedTuple) -> str:
    """Names a task by its settings in words, without those that are false."""
    words = []
    for field, value in task._asdict().items():
        if isinstance(value, bool):
            words += [field] if value else []
        elif isinstance(value, tuple):
            words.append("-".join(map(str, value)) or "linear")
        else:
            words.append(value if isinstance(value, str) else f"{field.replace('_', ' ')} {value}")
    return ", ".join(words)
