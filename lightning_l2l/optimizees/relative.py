"""Losses in units of a task's first loss, so that tasks can be compared, and meta-losses know their scale."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees.wrapped import WrappedEpisodes

UNIT_EPISODES = 8  # fixed runs whose first losses a unit is the mean of


@dataclass(eq=False)
class RelativeEpisodes(WrappedEpisodes):
    """The losses of other episodes, divided by one number.

    Attributes:
        unit: the number.
    """

    unit: float

    def loss(self, theta: Tensor, step: int) -> Tensor:
        return self.episodes.loss(theta, step) / self.unit

    def value_and_grad(self, theta: Tensor, step: int) -> tuple[Tensor, Tensor]:
        losses, grad = self.episodes.value_and_grad(theta, step)
        return losses / self.unit, grad / self.unit

    def hessian_product(self, theta: Tensor, step: int, vector: Tensor) -> Tensor:
        return self.episodes.hessian_product(theta, step, vector) / self.unit


def mean_first_loss(episodes: Episodes, task: str) -> float:
    """The mean loss at the start of some runs.

    Args:
        episodes: the runs.
        task: what an error calls them.

    Raises:
        InvalidInputError: it is not positive or not finite, so that nothing can be relative to it.
    """
    with torch.no_grad():
        unit = float(episodes.loss(episodes.theta, 0).mean())
    if not 0 < unit < math.inf:
        raise InvalidInputError(f"{task}, whose mean first loss is {unit}: give a task that starts at a positive loss.")
    return unit
