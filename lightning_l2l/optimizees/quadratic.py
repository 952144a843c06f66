"""Random quadratic functions (arXiv:1606.04474, section 3.1)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import InvalidInputError, require_not_negative, require_positive
from lightning_l2l.optimizees.base import EpisodeDataModule, Split


@dataclass(eq=False)
class QuadraticEpisodes(Episodes):
    """f(θ) = ‖Wθ − y‖² with W [N, D, D] and y [N, D]; the same at every step."""

    matrix: Tensor
    target: Tensor

    def loss(self, theta: Tensor, step: int) -> Tensor:
        return self._residual(theta).square().sum(-1)

    def value_and_grad(self, theta: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The closed form, 2 Wᵀ(Wθ − y), which autograd would take three times as long to compute."""
        residual = self._residual(theta)
        return residual.square().sum(-1), 2 * (residual[:, None] @ self.matrix)[:, 0]

    def _residual(self, theta: Tensor) -> Tensor:
        return (self.matrix @ theta[..., None])[..., 0] - self.target


class Quadratics(EpisodeDataModule):
    """Each episode is a random quadratic function f(θ) = ‖Wθ − y‖².

    ``uniform`` draws W and y from U[0, 1], as the paper's figure and its authors' code do: curves start at D/3.
    ``gaussian`` draws them from N(0, 1), as the paper's text says.

    Args:
        distribution: of the entries of W and y: uniform or gaussian.
        dimension: D, number of coordinates of θ.
        init_std: standard deviation of θ_0 ~ N(0, init_std²).
        condition_number: the largest over the smallest eigenvalue of the Hessian 2 WᵀW, the same for every function:
            W's singular values are raised to the power that gives it, and scaled to the sum of squares that they had.
            null leaves them as drawn.
        kwargs: see ``EpisodeDataModule``.

    Raises:
        InvalidInputError: a setting is out of its range.
    """

    def __init__(
        self,
        distribution: Literal["uniform", "gaussian"] = "uniform",
        dimension: int = 10,
        init_std: float = 0.01,
        condition_number: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_positive("data.dimension", dimension)
        require_not_negative("data.init_std", init_std)
        if condition_number is not None and not (1 <= condition_number < math.inf and dimension > 1):
            raise InvalidInputError(
                f"data.condition_number is {condition_number}: give a number of at least 1, and data.dimension of 2 or "
                "more, or null."
            )
        self.distribution = distribution
        self.dimension = dimension
        self.init_std = init_std
        self.condition_number = condition_number

    @property
    def description(self) -> str:
        """The distribution, and the condition number if one is set."""
        known = "" if self.condition_number is None else f", condition number {self.condition_number:g}"
        return self.distribution + known

    def episodes(self, split: Split, numbers: Sequence[int]) -> QuadraticEpisodes:
        """Builds the quadratic functions with these numbers."""
        drawn = np.stack([self._draw(self.random(split, number)) for number in numbers])  # [N, D, D + 2]
        matrix, target, theta = torch.from_numpy(drawn).split([self.dimension, 1, 1], dim=-1)
        return QuadraticEpisodes(theta[..., 0].contiguous(), matrix.contiguous(), target[..., 0].contiguous())

    def _draw(self, random: np.random.Generator) -> np.ndarray:
        draw = random.random if self.distribution == "uniform" else random.standard_normal
        function = draw((self.dimension, self.dimension + 1), dtype=np.float32)
        if self.condition_number is not None:
            function[:, :-1] = with_condition_number(function[:, :-1], self.condition_number)
        theta = self.init_std * random.standard_normal((self.dimension, 1), dtype=np.float32)
        return np.concatenate([function, theta], axis=1)


def with_condition_number(matrix: np.ndarray, condition_number: float) -> np.ndarray:
    """The matrix W [D, D] with its singular values raised to the power that gives WᵀW this condition number."""
    left, values, right = np.linalg.svd(matrix.astype(np.float64))
    logs = np.log(values / values[0])
    powered = np.exp(logs * (-math.log(condition_number) / 2 / logs[-1]))
    powered *= np.linalg.norm(values) / np.linalg.norm(powered)
    return (left * powered) @ right
