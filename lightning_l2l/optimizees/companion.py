"""A convex function of coordinates of its own, added to each loss, so that a rule learns plain descent as well."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_l2l.episodes import Episodes
from lightning_l2l.optimizees.wrapped import WrappedEpisodes
from lightning_l2l.rules import Layout
from lightning_l2l.rules.base import Place

LARGEST = 10.0  # a squared distance counts as at most this
LOG_RANGE = 1.0  # of the coordinates' scales, e^u with u ~ U[-1, 1]


@dataclass(eq=False)
class CompanionEpisodes(WrappedEpisodes):
    """f(θ) + 1/n ‖s ⊙ x − v‖², where θ and x, [N, n], are moved together (arXiv:1703.03633, section 4).

    Attributes:
        target: v, [N, n].
        scale: s, [N, n].
    """

    target: Tensor
    scale: Tensor

    @property
    def layout(self) -> Layout:
        count = self.theta.shape[1]
        return self.episodes.layout | {"companion": Place(count - self.count, count, (self.count,))}

    @property
    def count(self) -> int:
        """n."""
        return self.target.shape[1]

    def loss(self, theta: Tensor, step: int) -> Tensor:
        own, x = self._parts(theta)
        return self.episodes.loss(own, step) + self._distance(x).square().clamp_max(LARGEST).mean(1)

    def value_and_grad(self, theta: Tensor, step: int) -> tuple[Tensor, Tensor]:
        own, x = self._parts(theta)
        losses, grad = self.episodes.value_and_grad(own, step)
        distance = self._distance(x)
        total = losses + distance.square().clamp_max(LARGEST).mean(1)
        return total, torch.cat([grad, self._slope(distance) * distance], 1)

    def hessian_product(self, theta: Tensor, step: int, vector: Tensor) -> Tensor:
        (own, x), (along, along_x) = self._parts(theta), self._parts(vector)
        product = self.episodes.hessian_product(own, step, along)
        return torch.cat([product, self._slope(self._distance(x)) * self.scale * along_x], 1)

    def accuracy(self, theta: Tensor) -> Tensor | None:
        return self.episodes.accuracy(self._parts(theta)[0])

    def pictures(self, theta: Tensor) -> Tensor | None:
        return self.episodes.pictures(self._parts(theta)[0])

    def _parts(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """What belongs to the inner episodes, and what to the companion."""
        return theta[:, : -self.count], theta[:, -self.count :]

    def _distance(self, x: Tensor) -> Tensor:
        return self.scale * x - self.target

    def _slope(self, distance: Tensor) -> Tensor:
        """The derivative of the loss with respect to x, divided by the distance."""
        return 2 / self.count * self.scale * (distance.square() < LARGEST)


def with_companion(episodes: Episodes, count: int, randoms: Sequence[np.random.Generator]) -> CompanionEpisodes:
    """Adds a companion to each episode. x starts at 0, and v is drawn from U[−1, 1].

    Args:
        episodes: N episodes.
        count: n.
        randoms: the source of each episode's v and s.
    """
    like = episodes.theta
    target, units = (
        torch.tensor(np.stack([random.uniform(-largest, largest, count) for random in randoms])).to(like)
        for largest in (1, LOG_RANGE)
    )
    theta = torch.cat([like, torch.zeros_like(target)], 1)
    return CompanionEpisodes(theta, episodes, target, units.exp())
