"""Protects a run from gradients that are not finite and from divergence."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from lightning_l2l.rules.adam_controller.remainder import exact, round_into

WINDOW = 100  # losses whose median and range are compared
FEWEST = 10  # losses before anything is compared
SPIKE = 3  # losses in a row that are a spike, as a single one may be an outlier among minibatches
PATIENCE = 100  # steps for which the median must have risen
FLOOR = 0.05  # smallest range that counts, relative to the first losses
HOLD = 100  # safe steps after the first trigger; twice as many after each further one
RETURN = 100  # steps over which the learned steps return
SAFE_SIZE, SMALLEST_SIZE = 1e-3, 0.01  # root mean squares: a safe step's over that of θ, and what is added to θ's


@dataclass
class Guard:
    """Detects divergence from a record of the loss, and decides how much of a step is the learned one.

    **Trigger.** The best window is the one of the last 100 losses with the lowest median so far; its range is that
    between its highest and lowest loss, but at least .05 of the median of the run's first 10 losses. It triggers

    - if 3 losses in a row are above the best window's highest by more than its range (a spike);
    - if the median of the last 100 losses is above the best window's by more than its range, at 100 steps in a row (a
      slow rise);
    - if a loss is not finite.

    A plateau does none of these as long as its noise differs from step to step, and nor does a single bad minibatch;
    noise that lasts for hundreds of steps looks like a rise. All of it is relative, so the loss's scale does not
    matter. Parameters that are not finite any more are beyond its help.

    **Safe step.** For 100 steps, twice as many after each further trigger, each parameter tensor takes the step of
    ``safe_step``, down its gradient. Meanwhile the rule's state is updated as ever. In bfloat16, safe steps add up
    under ``AdamController``, which keeps what rounding takes; under other rules they are mostly rounded away.

    **Return.** Over 100 more steps the share of the learned step grows from 0 to 1, and that of the safe one falls. The
    record begins anew when the return begins, so a divergence on the way triggers again.

    **State.** The fields are plain numbers, and are all that it remembers: ``dataclasses.asdict`` is its state.
    """

    losses: list[float] = field(default_factory=list)  # the last WINDOW
    best: list[float] | None = None  # median, highest loss and range of the best window
    floor: float = 0.0  # smallest range that counts
    high: int = 0  # losses in a row that were far above the best window
    risen: int = 0  # steps in a row at which the median was above the best window's
    triggers: int = 0
    since: int | None = None  # steps since the last trigger; None if the learned steps are back
    observed: bool = False  # whether the loss before the next step is known

    @property
    def hold(self) -> int:
        """Safe steps after the last trigger, before the return."""
        return HOLD * 2 ** max(self.triggers - 1, 0)

    @property
    def holding(self) -> bool:
        """Whether the next step is a safe one, without any share of the learned step."""
        return self.since is not None and self.since < self.hold

    def observe(self, loss: float) -> None:
        """Adds the loss before the next step to the record, and triggers if the run diverges."""
        self.observed = True
        if not math.isfinite(loss):
            self._trigger()
        elif not self.holding:
            self.losses = [*self.losses[-WINDOW + 1 :], loss]
            if len(self.losses) >= FEWEST:
                self._compare(loss, median(self.losses))
            if self.high >= SPIKE or self.risen >= PATIENCE:
                self._trigger()

    def skip(self) -> None:
        """Forgets the loss before a step that is not taken: the next step needs its own."""
        self.observed = False

    def share(self) -> float:
        """Returns the learned step's share of the next step, and counts that step."""
        self.observed = False
        if self.since is None:
            return 1.0
        share = max(self.since + 1 - self.hold, 0) / RETURN
        self.since = self.since + 1 if share < 1 else None
        return share

    def _compare(self, loss: float, middle: float) -> None:
        """Compares the last loss, and the median of the window that ends with it, with the best window."""
        self.floor = self.floor or FLOOR * abs(middle)
        if self.best is not None:
            lowest_median, highest, spread = self.best
            self.high = self.high + 1 if loss > highest + spread else 0
            self.risen = self.risen + 1 if middle > lowest_median + spread else 0
        if self.best is None or (not self.high and middle <= self.best[0]):  # a spike must not raise the bar for itself
            highest = max(self.losses)
            self.best = [middle, highest, max(highest - min(self.losses), self.floor)]

    def _trigger(self) -> None:
        """Begins safe steps, or begins them again, and a new record."""
        self.triggers += not self.holding
        self.since = 0
        self.losses, self.best, self.high, self.risen = [], None, 0, 0


@torch.no_grad()
def safe_step(params: Iterable[Tensor], factor: float, remainders: Mapping[Tensor, Tensor] | None = None) -> None:
    """Steps each tensor down its gradient by a fixed small size: θ ← θ − factor · .001 (RMS θ + .01) · ∇ / RMS ∇.

    It is normalised gradient descent with the layerwise rates of LARS (arXiv:1708.03888).

    Args:
        params: parameters of any shapes; those without a gradient do not move.
        factor: of the step.
        remainders: by parameter, what rounding has taken from it, where the rule keeps that; they are overwritten.
    """
    kept = remainders or {}
    for p in params:
        if p.grad is None or p.numel() == 0:
            continue
        dtype = torch.promote_types(p.dtype, torch.float32)
        theta, grad = exact(p, kept.get(p), dtype), p.grad.to(dtype)
        size, of_grad = (torch.linalg.vector_norm(value) / math.sqrt(p.numel()) for value in (theta, grad))
        rate = torch.where(of_grad > 0, SAFE_SIZE * (size + SMALLEST_SIZE) / of_grad, 0.0)
        round_into(p, kept.get(p), theta - factor * rate * grad)


def mean_over_ranks(loss: float | Tensor, device: torch.device) -> float:
    """The mean of a loss over all processes, of which each calls this, so that all decide alike."""
    mean = torch.as_tensor(loss).detach().to(device, torch.float32).clone()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(mean)
        mean /= torch.distributed.get_world_size()
    return mean.item()


def all_finite(tensors: Iterable[Tensor], squared: bool = False) -> bool:
    """Whether all numbers are finite; if ``squared``, also the sum of each tensor's squares, in float32 or float64."""
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        alike.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return all(
        _all_finite(same, torch.promote_types(dtype, torch.float32), squared) for (_, dtype), same in alike.items()
    )


def _all_finite(tensors: list[Tensor], dtype: torch.dtype, squared: bool) -> bool:
    """As ``all_finite``, on one device in one type; a finite sum of squares proves it, and is tried first."""
    largest = torch.stack(list(torch._foreach_norm(tensors, 2, dtype=dtype))).amax().item()  # NaN if any is
    if largest * largest <= torch.finfo(dtype).max:
        return True
    return not squared and all(bool(tensor.isfinite().all()) for tensor in tensors)
