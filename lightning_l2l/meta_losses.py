"""What meta-training minimises: the meta-loss of a run's learning curve."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from lightning_l2l.errors import InvalidInputError

Weights = Literal["uniform", "last", "linear"] | list[float]


class MetaLoss(ABC):
    """A meta-loss L = E_f[ℓ(f(θ_1), .., f(θ_T))]; ℓ is a sum over the truncations of a run."""

    @abstractmethod
    def __call__(self, losses: Tensor, step: int, horizon: int, reference: Tensor | None = None) -> Tensor:
        """Returns what K steps add to each episode's meta-loss, [N]; differentiable with respect to the losses.

        Args:
            losses: f(θ_{t+1}) .. f(θ_{t+K}), [K, N].
            step: t, the number of steps before these.
            horizon: T, the number of steps of the whole run.
            reference: what the optimizee gives to compare these losses with, [K, N], or None.
        """

    def check(self, horizon: int) -> None:
        """Refuses horizons that it has no weights for.

        Args:
            horizon: T.

        Raises:
            InvalidInputError: says why.
        """
        return


class WeightedSum(MetaLoss):
    """Σ_t w_t f(θ_t) (arXiv:1606.04474, section 2, equation 3).

    Args:
        weights: w_t: ``uniform`` gives every step weight 1, as the paper does; ``last`` gives weight 1 to the last step
            of the run and 0 to all others; ``linear`` grows with t from 2/(T + 1) to 2T/(T + 1), so that the weights
            sum to T. A list gives one weight for each step of the horizon.
    """

    def __init__(self, weights: Weights = "uniform") -> None:
        self.weights = weights

    def __call__(self, losses: Tensor, step: int, horizon: int, reference: Tensor | None = None) -> Tensor:
        return losses.T @ self._weights(horizon).to(losses)[step : step + len(losses)]

    def check(self, horizon: int) -> None:
        if isinstance(self.weights, list) and len(self.weights) != horizon:
            raise InvalidInputError(
                f"model.loss_weights has {len(self.weights)} entries, but data.horizon is {horizon}: give one for each "
                "step, or uniform, last or linear, which fit any number of them."
            )

    def _weights(self, horizon: int) -> Tensor:
        """w_1 .. w_T, [T]."""
        if self.weights == "uniform":
            return torch.ones(horizon)
        if self.weights == "last":
            return torch.nn.functional.one_hot(torch.tensor(horizon - 1), horizon).float()
        if self.weights == "linear":
            return torch.arange(1.0, horizon + 1) * 2 / (horizon + 1)
        return torch.tensor(self.weights, dtype=torch.double)
