"""What an optimizer offers to watch a run by: a guard against divergence, and diagnostics of its steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_l2l.diagnostics import saturated_numbers, step_numbers
from lightning_l2l.guard import Guard, mean_over_ranks, safe_step
from lightning_l2l.rules.fast.stepper import KeptState, Stepper
from lightning_l2l.sharding import device_of

UNOBSERVED = (
    "the guard needs the loss: call step(closure), with a closure that returns it, or observe(loss) before each step"
)


class WatchedOptimizer(Optimizer):
    """The part of ``LearnedOptimizer`` that watches the run.

    Args:
        params: as every optimizer takes them.
        defaults: the groups' default settings.
        guard: whether to guard against divergence.
        diagnose_every: n, to diagnose each n-th step; 0 diagnoses none.
    """

    def __init__(self, params: ParamsT, defaults: dict[str, Any], guard: bool, diagnose_every: int) -> None:
        if diagnose_every < 0:
            raise ValueError(f"Invalid diagnose_every: {diagnose_every}")
        self.guard = Guard() if guard else None
        self.diagnose_every = diagnose_every
        self._until_diagnosed = diagnose_every
        self._diagnostics: dict[str, float] = {}
        super().__init__(params, defaults)

    def observe(self, loss: float | Tensor | None) -> None:
        """Tells the guard the loss at the present parameters; call it before ``step()``, or give ``step`` a closure.

        In distributed training every process must call it: the guard sees the mean of their losses. Without a guard it
        does nothing.

        Args:
            loss: the unscaled loss of a minibatch, one number; None is ignored.
        """
        if self.guard is not None and loss is not None:
            self.guard.observe(mean_over_ranks(loss, device_of(self.param_groups[0]["params"])))

    def diagnostics(self) -> dict[str, float]:
        """Returns numbers about the last diagnosed step, for ``logger.log_metrics``; empty before the first one.

        For each parameter that had a gradient, NAME being its name, or its number if ``params`` came without names:

        - ``effective_step/NAME``: the step's root mean square over the parameter's before it
        - ``cosine/NAME``: cosine of the step and minus the gradient
        - ``saturated/NAME``: the share of the rule's inputs that were clamped, if it can tell; of ``AdamController``'s,
          four are checked

        Raises:
            RuntimeError: no steps are diagnosed.
        """
        if not self.diagnose_every:
            raise RuntimeError("no step is diagnosed: give diagnose_every, such as diagnose_every=50")
        return dict(self._diagnostics)

    def __getstate__(self) -> dict[str, Any]:
        names = ("guard", "diagnose_every", "_until_diagnosed", "_diagnostics")
        return super().__getstate__() | {name: self.__dict__[name] for name in names}

    def _check_observed(self, closure: Callable | None) -> None:
        if self.guard is not None and closure is None and not self.guard.observed:
            raise RuntimeError(UNOBSERVED)

    def _check_ever_observed(self) -> None:
        """Refuses a closure that does not return the loss; one that failed to once, and did before, is forgiven."""
        if self.guard is not None and not (self.guard.observed or self.guard.losses or self.guard.triggers):
            raise RuntimeError(UNOBSERVED)

    def _learned_share(self) -> float:
        """The learned step's share of this step; the guard's safe step has the rest."""
        return 1.0 if self.guard is None else self.guard.share()

    def _step_safely(self, share: float) -> None:
        """Takes the guard's share of this step, if it has any."""
        if not share:
            return
        remainders = {p: own["remainder"] for p, own in self.state.items() if "remainder" in own}
        for group in self.param_groups:
            safe_step(group["params"], share * float(group["lr"]) * group["scale"], remainders)

    def _stepped(self) -> Iterator[tuple[Stepper, KeptState, list[Tensor]]]:
        """The parameters that are stepped as one vector, with their stepper and state."""
        return iter(())

    @contextmanager
    def _diagnosed(self) -> Iterator[None]:
        """Diagnoses the step that is taken inside, if its turn has come."""
        self._until_diagnosed -= 1
        if not self.diagnose_every or self._until_diagnosed > 0:
            yield
            return
        self._until_diagnosed = self.diagnose_every
        names = self._names()
        before = {name: p.detach().clone() for p, name in names.items()}
        yield
        self._diagnostics = step_numbers(before, {name: p for p, name in names.items()})
        for stepper, state, unit in self._stepped():
            self._diagnostics |= saturated_numbers(stepper, state, {names[p]: p for p in unit})

    def _names(self) -> dict[Tensor, str]:
        """Names of all parameters; their numbers if they have none, and with their group's number if two are alike."""
        names: dict[Tensor, str] = {}
        for number, group in enumerate(self.param_groups):
            numbers = range(len(names), len(names) + len(group["params"]))
            given = group.get("param_names", numbers)
            given = given if len(given) == len(numbers) else numbers  # parameters were added or removed by hand
            for p, name in zip(group["params"], map(str, given), strict=True):
                names[p] = name if name not in names.values() else f"{number}.{name}"
        return names
