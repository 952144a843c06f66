"""Episodes with rescaled parameters, so that a rule learns not to rely on an optimizee's own scales."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lightning_l2l.episodes import Episodes
from lightning_l2l.optimizees.wrapped import WrappedEpisodes

Scaled = Literal["tensors", "coordinates"]


@dataclass(eq=False)
class ScaledEpisodes(WrappedEpisodes):
    """The losses of other episodes, f(scale · θ), from the same starts: random scaling (arXiv:1703.03633, section 4).

    Attributes:
        scale: one positive number for each coordinate, [N, P].
    """

    scale: Tensor

    def loss(self, theta: Tensor, step: int) -> Tensor:
        return self.episodes.loss(self.scale * theta, step)

    def value_and_grad(self, theta: Tensor, step: int) -> tuple[Tensor, Tensor]:
        losses, grad = self.episodes.value_and_grad(self.scale * theta, step)
        return losses, self.scale * grad

    def hessian_product(self, theta: Tensor, step: int, vector: Tensor) -> Tensor:
        return self.scale * self.episodes.hessian_product(self.scale * theta, step, self.scale * vector)

    def accuracy(self, theta: Tensor) -> Tensor | None:
        return self.episodes.accuracy(self.scale * theta)

    def pictures(self, theta: Tensor) -> Tensor | None:
        return self.episodes.pictures(self.scale * theta)


def scaled_at_random(
    episodes: Episodes, log_range: float, randoms: Sequence[np.random.Generator], scaled: Scaled = "tensors"
) -> ScaledEpisodes:
    """Rescales each parameter tensor or coordinate by a factor of its own, e^u with u ~ U[-log_range, log_range].

    By default coordinates of a tensor share the factor, because a network's width and depth make the gradients of whole
    layers grow or fade.

    Args:
        episodes: N episodes.
        log_range: the largest absolute value of u.
        randoms: the source of each episode's factors.
        scaled: what has a factor of its own.
    """
    scale = torch.ones_like(episodes.theta)
    for place in episodes.layout.values():
        size = 1 if scaled == "tensors" else place.stop - place.start
        units = np.stack([np.exp(random.uniform(-log_range, log_range, size)) for random in randoms])
        scale[:, place.coordinates] = torch.tensor(units, dtype=scale.dtype)
    return ScaledEpisodes(episodes.theta / scale, episodes, scale)
