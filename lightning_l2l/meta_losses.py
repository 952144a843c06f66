"""What meta-training minimises: the meta-loss of a run's learning curve."""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from lightning_l2l.errors import InvalidInputError, require_not_negative, require_positive

Weights = Literal["uniform", "last", "linear"] | list[float]


class MetaLoss(ABC):
    """A meta-loss L = E_f[ℓ(f(θ_1), .., f(θ_T))]; ℓ is a sum over the truncations of a run.

    Attributes:
        last_only: whether the loss after the last step of a run counts alone.
    """

    last_only: bool = False

    @abstractmethod
    def __call__(self, losses: Tensor, step: int, horizon: int, reference: Tensor | None = None) -> Tensor:
        """Returns what K steps add to each episode's meta-loss, [N]; differentiable with respect to the losses.

        Args:
            losses: f(θ_{t+1}) .. f(θ_{t+K}), [K, N].
            step: t, the number of steps before these.
            horizon: T, the number of steps of the whole run.
            reference: what the optimizee gives to compare these losses with, [K, N], or None.
        """

    def check(self, horizon: int, key: str = "data.horizon") -> None:
        """Refuses horizons that it has no weights for.

        Args:
            horizon: T.
            key: the setting that gives it, for errors.

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
        if isinstance(weights, list) and not (any(weights) and all(map(math.isfinite, weights))):
            raise InvalidInputError(
                f"model.loss_weights is {weights}: give finite numbers, of which at least one is not 0."
            )
        self.weights = weights
        self.last_only = weights == "last" or (isinstance(weights, list) and not any(weights[:-1]))
        self._listed = torch.tensor(weights if isinstance(weights, list) else [], dtype=torch.double)

    def __call__(self, losses: Tensor, step: int, horizon: int, reference: Tensor | None = None) -> Tensor:
        return losses.T @ self._weights(horizon, losses.device).to(losses)[step : step + len(losses)]

    def check(self, horizon: int, key: str = "data.horizon") -> None:
        if isinstance(self.weights, list) and len(self.weights) != horizon:
            raise InvalidInputError(
                f"model.loss_weights has {len(self.weights)} entries, but {key} is {horizon}: "
                "give one for each step, or uniform, last or linear, which fit any number of them."
            )

    def _weights(self, horizon: int, device: torch.device) -> Tensor:
        """w_1 .. w_T, [T]; those of a config are copied to the device only once, as a CUDA graph cannot do that."""
        if isinstance(self.weights, list):
            if self._listed.device != device:
                self._listed = self._listed.to(device)
            return self._listed
        if self.weights == "linear":
            return torch.arange(1.0, horizon + 1, device=device) * 2 / (horizon + 1)
        weights = torch.ones(horizon, device=device)
        if self.weights == "last":
            weights[:-1] = 0
        return weights


class BestSoFar(MetaLoss):
    """Σ_t min_{1 ≤ s ≤ t} f(θ_s), the sum over steps of the lowest loss up to each.

    A step that is worse than the best one so far repeats the best loss, even if the run diverges there, though
    derivatives of such a run are not finite. It is meant for truncations that are whole runs (``unroll`` equal to the
    horizon): each truncation has a lowest loss of its own.
    """

    def __call__(self, losses: Tensor, step: int, horizon: int, reference: Tensor | None = None) -> Tensor:
        return losses.where(~losses.isnan(), torch.inf).cummin(0).values.sum(0)


class LogLoss(MetaLoss):
    """The mean of log(f(θ_t) + floor) over the run, less that of the reference, if the optimizee has one.

    Equal factors count the same everywhere on a learning curve, on tasks of all sizes. Losses should be in units of the
    task's first loss, so that ``floor`` and ``cap`` are multiples of it, and above -floor. A run's total does not
    depend on its horizon.

    Args:
        floor: what is added to each loss; below it, further progress counts little.
        last: weight of the same mean over the last tenth of the run, to be added.
        cap: the largest loss that counts, for diverged runs (not finite) as well. It holds only where nothing
            differentiates with respect to the losses, as in evolution strategies and validation: elsewhere, a zero
            derivative beyond it would hide that a run diverges.
    """

    def __init__(self, floor: float = 0.001, last: float = 0.0, cap: float = 1000.0) -> None:
        require_positive("model.meta_loss.init_args.floor", floor)
        require_positive("model.meta_loss.init_args.cap", cap)
        require_not_negative("model.meta_loss.init_args.last", last)
        self.floor = floor
        self.last = last
        self.cap = cap

    def __call__(self, losses: Tensor, step: int, horizon: int, reference: Tensor | None = None) -> Tensor:
        values = (capped(losses, self.cap) + self.floor).log()
        if reference is not None:
            values = values - (reference.to(values) + self.floor).log()
        tenth = max(horizon // 10, 1)
        weights = torch.full((horizon,), 1 / horizon, dtype=torch.double, device=losses.device)
        weights[-tenth:] += self.last / tenth
        return values.T @ weights.to(values)[step : step + len(values)]


class Regret(MetaLoss):
    """How far the log loss r is above the reference's, r clamped and its positive part counted more.

    The log loss of a truncation is half its mean over ten windows of steps, and half that of the last window, each the
    logarithm of the window's mean loss + floor. The optimizee must have a reference (``Episodes.reference``), such as
    the losses of a tuned optimizer. Where a rule is behind it, the meta-loss is 1 + ``penalty`` times as steep, so that
    the worst tasks decide. Losses should be in units of the task's first loss, and above -floor.

    It is meant for truncations that are whole runs. Shorter ones each have a regret of their own, weighted by their
    share of the run. It is meant for evolution strategies, too: where r is clamped, its derivative is zero.

    Args:
        floor: what is added to each loss.
        lowest: the smallest r: being ahead of the reference by more does not count.
        highest: the largest r, for diverged runs (not finite) as well. Where something differentiates with respect to
            the losses, r is not limited above, so as not to hide that a run diverges.
        penalty: weight of r's positive part, to be added to r.
    """

    def __init__(self, floor: float = 0.001, lowest: float = -1.5, highest: float = 3.0, penalty: float = 2.0) -> None:
        require_positive("model.meta_loss.init_args.floor", floor)
        if not lowest < highest:
            raise InvalidInputError(
                f"model.meta_loss.init_args.lowest is {lowest}, but highest is {highest}: give a smaller lowest."
            )
        require_not_negative("model.meta_loss.init_args.penalty", penalty)
        self.floor = floor
        self.lowest = lowest
        self.highest = highest
        self.penalty = penalty

    def __call__(self, losses: Tensor, step: int, horizon: int, reference: Tensor | None = None) -> Tensor:
        if reference is None:
            raise InvalidInputError(
                "model.meta_loss is Regret, but the data's episodes have no reference losses to compare with: take "
                "data that has them, or lightning_l2l.meta_losses.LogLoss."
            )
        above = capped(self._log_loss(losses) - self._log_loss(reference.to(losses)), self.highest)
        above = above.clamp(min=self.lowest)
        return (above + self.penalty * above.clamp(min=0)) * len(losses) / horizon

    def _log_loss(self, losses: Tensor) -> Tensor:
        windows = torch.tensor_split(losses, min(10, len(losses)))
        logs = torch.stack([(window.mean(0) + self.floor).log() for window in windows])
        return (logs.mean(0) + logs[-1]) / 2


def capped(values: Tensor, cap: float) -> Tensor:
    """Limits values to ``cap``, NaN included, unless something differentiates with respect to them."""
    return values if values.requires_grad else values.nan_to_num(nan=cap).clamp(max=cap)
