"""Episodes with rescaled parameters, so that a rule learns not to rely on an optimizee's own scales."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from lightning_l2l.episodes import Episodes
from lightning_l2l.rules import Layout

INNER = "episodes."  # prefix of the names of the inner episodes' fields


@dataclass(eq=False)
class ScaledEpisodes(Episodes):
    """The losses of other episodes, f(scale · θ), from the same starts: random scaling (arXiv:1703.03633, section 4).

    Attributes:
        scale: one positive number for each coordinate, [N, P].
        episodes: the inner episodes.
    """

    scale: Tensor
    episodes: Episodes

    @property
    def layout(self) -> Layout:
        return self.episodes.layout

    def loss(self, theta: Tensor, step: int) -> Tensor:
        return self.episodes.loss(self.scale * theta, step)

    def value_and_grad(self, theta: Tensor, step: int) -> tuple[Tensor, Tensor]:
        losses, grad = self.episodes.value_and_grad(self.scale * theta, step)
        return losses, self.scale * grad

    def hessian_product(self, theta: Tensor, step: int, vector: Tensor) -> Tensor:
        return self.scale * self.episodes.hessian_product(self.scale * theta, step, self.scale * vector)

    def pictures(self, theta: Tensor) -> Tensor | None:
        return self.episodes.pictures(self.scale * theta)

    def references(self) -> dict[str, Tensor]:
        return self.episodes.references()

    def tensor_fields(self) -> dict[str, Tensor]:
        inner = {INNER + name: value for name, value in self.episodes.tensor_fields().items()}
        return super().tensor_fields() | inner

    def shared_fields(self) -> dict[str, Any]:
        return {INNER + name: value for name, value in self.episodes.shared_fields().items()}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        inner = {name.removeprefix(INNER): value for name, value in tensors.items() if name.startswith(INNER)}
        own = {name: value for name, value in tensors.items() if not name.startswith(INNER)}
        return replace(self, **own, episodes=self.episodes.with_tensors(inner))


def scaled_at_random(episodes: Episodes, log_range: float, randoms: Sequence[np.random.Generator]) -> ScaledEpisodes:
    """Rescales each parameter tensor of each episode by its own factor e^u with u ~ U[-log_range, log_range].

    Coordinates of a tensor share the factor, because a network's width and depth make the gradients of whole layers
    grow or fade.

    Args:
        episodes: N episodes.
        log_range: the largest absolute value of u.
        randoms: the source of each episode's factors.
    """
    scale = torch.ones_like(episodes.theta)
    for place in episodes.layout.values():
        units = [np.exp(random.uniform(-log_range, log_range)) for random in randoms]
        scale[:, place.coordinates] = torch.tensor(units, dtype=scale.dtype)[:, None]
    return ScaledEpisodes(episodes.theta / scale, scale, episodes)
