"""A learned update rule as a ``torch.optim.Optimizer``, for any training loop."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from os import PathLike
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_l2l.guard import Guard, all_finite
from lightning_l2l.rules import UpdateRule
from lightning_l2l.rules.base import full_precision
from lightning_l2l.rules.fast.stepper import KeptState, Stepper, Work, flat
from lightning_l2l.saved_states import fitting, own_entries
from lightning_l2l.sharding import finite_everywhere, zero_processes
from lightning_l2l.units import Unit, Units
from lightning_l2l.watched_optimizer import WatchedOptimizer


class LearnedOptimizer(WatchedOptimizer):
    """Steps parameters by a learned update rule: θ ← (1 − lr λ) θ + lr · scale · g (arXiv:1606.04474, section 2).

    Use it as any optimizer of ``torch.optim``: with ``zero_grad`` and ``step``, learning-rate schedulers,
    ``torch.amp.GradScaler``, DDP, or returned by a LightningModule's ``configure_optimizers``.

    A coordinatewise rule, such as the paper's LSTM, steps each parameter tensor by itself. ``AdamController`` steps
    each tensor by features of its own and their means over all tensors of the param group, so the division into groups
    matters. Tensors on different devices, or in float64 beside float32, are averaged separately. Any other rule sees
    all parameters of a param group as one vector, and their shapes; a parameter without a gradient has a zero gradient
    in it and does not move. A rule that sees the loss needs ``step(closure)``, one with a learned start ``start()``
    before the first gradient.

    **Gradients.** Parameters whose ``grad`` is None are skipped, and keep their state. If the sum of the squares of any
    parameter's gradient is not finite (its norm is above 1.8e19 in float32), or a group's ``lr``, ``scale`` or
    ``weight_decay`` has become NaN or infinite, the whole step is skipped: no parameter and no state changes, and
    ``skipped_steps`` counts it. Running means of squares would stay infinite for good. A learned rule was trained on
    gradients of a minibatch's mean loss: do not give it gradients of a sum, or otherwise scaled ones.

    **Precision.** Steps are computed in float32, in float64 for float64 parameters; half-precision parameters are
    rounded once, at the end. ``AdamController`` keeps the rounding error, two bytes each, so that small steps and
    weight decay add up; other rules lose steps and decay of less than half the distance to the next number.

    **Many processes.** With DDP all processes take the same steps. ``ZeroRedundancyOptimizer`` works, since each
    process steps whole tensors, but a rule then sees only the other tensors of its own process. Parameters that are
    parts of tensors are refused: those of ``fully_shard``, and of FSDP unless the rule is coordinatewise. Where
    gradients are spread over processes, a step is skipped in all of them if any gradient is not finite.

    **Compilation.** ``torch.compile`` the model as you like, but not ``step``: it would only take longer.

    **Trained weights.** A rule knows little before it has seen a few gradients: to continue training weights on the
    same task, warm ``lr`` up over 100 steps, from 1 / 100. If the loss has converged, it may rise all the same.

    **State.** ``AdamController`` keeps 20 bytes per coordinate of a matrix and 16 of a vector, for float32 parameters,
    whatever ``bfloat16_state`` says. The paper's LSTM keeps 80 numbers: 320 bytes, or 160 with ``bfloat16_state``.
    Running means, such as a rule's ``momenta``, stay in float32 even then: 8 bytes each. ``state_dict`` holds them as
    plain tensors, and loading it continues bit for bit; it holds the rule's name but not the rule, so give the same
    rule again. A step needs hardly any memory beyond the state, since coordinates are processed in chunks; but
    ``AdamController`` steps half-precision parameters in float32 copies, 14 bytes per coordinate of a param group.

    Args:
        params: parameters, named parameters or param groups, as every optimizer of ``torch.optim`` takes them. A group
            may have a ``rule``, ``lr``, ``scale`` and ``weight_decay`` of its own.
        rule: the name of a trained rule in this package: ``everyday`` is for networks of many kinds, the others are for
            the paper's problems. Or an ``UpdateRule``, which must not change afterwards; or the path of a file that
            ``python -m lightning_l2l export`` or ``lightning_l2l.pretrained.save_rule`` wrote. A ``Grouped`` rule
            chooses a parameter's rule by its name if ``params`` is ``model.named_parameters()``; otherwise each group
            names one of its rules: ``{"params": ..., "rule": "conv"}``.
        lr: factor of every step, which learning-rate schedulers change; 1 takes the steps as learned.
        scale: a further factor, which schedulers leave alone.
        weight_decay: λ, the part of θ that each step at lr = 1 removes. It is removed before the rule's step, which
            does not see it in its gradient, as in AdamW (arXiv:1711.05101). AdamW's own unit is another: there, a
            weight decay of .01 at a learning rate of .001 removes 1e-5 a step, so give 1e-5 here. Schedulers of ``lr``
            change it alike; ``scale`` and a guard's safe steps leave it alone. What does not step, for lack of a
            gradient or of a finite one, does not decay.
        bfloat16_state: keep the state in bfloat16, which halves its memory and leaves three digits of precision;
            ``AdamController`` ignores it.
        guard: take safe steps for a while if the loss diverges; ``lightning_l2l.guard.Guard`` describes when, and which
            steps. It needs ``step(closure)``, or ``observe(loss)`` before each step.
        diagnose_every: n, to let ``diagnostics()`` tell about each n-th step; 0 costs nothing.

    Raises:
        ValueError: a setting is invalid, the rule cannot be found or does not fit the parameters, or parameters are
            complex, integers or parts of tensors.
        RuntimeError: raised by ``step`` for a sparse gradient.

    Example:
        >>> optimizer = LearnedOptimizer(model.parameters())
        >>> optimizer.zero_grad()
        >>> loss_fn(model(input), target).backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        rule: UpdateRule | str | PathLike = "everyday",
        lr: float | Tensor = 1.0,
        *,
        scale: float = 1.0,
        weight_decay: float = 0.0,
        bfloat16_state: bool = False,
        guard: bool = False,
        diagnose_every: int = 0,
    ) -> None:
        self.skipped_steps = 0
        self._units = Units(bfloat16_state)
        self._zero = zero_processes()
        settings = {"rule": self._units.register(rule), "lr": lr, "scale": scale, "weight_decay": weight_decay}
        super().__init__(params, settings, guard, diagnose_every)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; see ``torch.optim.Optimizer.add_param_group``."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            if isinstance(group["lr"], Tensor) and group["lr"].numel() != 1:
                raise ValueError("Tensor lr must be 1-element")
            for name, largest in (("lr", math.inf), ("scale", math.inf), ("weight_decay", 1)):
                if not 0 <= group[name] <= largest:
                    raise ValueError(f"Invalid {'learning rate' if name == 'lr' else name}: {group[name]}")
            self._units.of(group, self.state)
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def start(self) -> None:
        """Moves parameters to their rule's learned start, θ ← rule.start(θ); other parameters do not move."""
        for unit in self._all_units():
            if unit.first in self._units.to_start:
                stepper = self._units.stepper(unit, self.state)
                unit.overwrite(stepper.rule.start(flat(unit.params).to(stepper.dtype)[None])[0])
        self._units.to_start.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes one step.

        Args:
            closure: evaluates the model again, runs the backward pass and returns the loss; needed by a rule that sees
                the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: a gradient is sparse, a rule or the guard lacks the loss, or ``start`` has not been called.
            InvalidInputError: a parameter, its gradient and its state do not fit, or have no memory of their own.
        """
        units = [self._units.of(group, self.state) for group in self.param_groups]
        rules = {unit.rule for own in units for unit in own}
        self._check_ready(closure, rules)
        with torch.enable_grad():
            loss = None if closure is None else closure()
        self.observe(loss)
        params = [p for group in self.param_groups for p in group["params"]]
        grads = [p.grad for p in params if p.grad is not None]
        if any(grad.layout != torch.strided for grad in grads):
            raise RuntimeError("LearnedOptimizer does not support sparse gradients: give dense ones (sparse=False)")
        if grads and loss is None:
            self._check_ever_observed()
            self._check_seen(rules)
        finite = self._finite_settings() and all_finite(grads, squared=True)
        if not finite_everywhere(finite, params, self._zero):
            self.skipped_steps += 1
            if self.guard is not None:
                self.guard.skip()
            return loss
        moving = [self._moving(own) for own in units]
        share = self._learned_share()
        with self._diagnosed():
            for group, own in zip(self.param_groups, moving, strict=True):
                self._step_group(group, own, loss, share)
            self._step_safely(1 - share)
        return loss

    def _finite_settings(self) -> bool:
        """Whether all settings that a scheduler or a hand may have changed are numbers."""
        names = ("lr", "scale", "weight_decay")
        return all(math.isfinite(float(group[name])) for group in self.param_groups for name in names)

    def _check_ready(self, closure: Callable[[], float] | None, rules: set[str]) -> None:
        self._check_observed(closure)
        if closure is None:
            self._check_seen(rules)
        if self._units.to_start:
            name = self._units.rule_of(next(iter(self._units.to_start)))
            raise RuntimeError(f"rule {name} has learned where to start: call start() before the first gradient")

    def _check_seen(self, rules: set[str]) -> None:
        """Refuses to step by a rule that sees the loss where there is none."""
        if seeing := [name for name in rules if "loss" in self._units.rules[name].sees]:
            raise RuntimeError(f"rule {seeing[0]} sees the loss: call step(closure), with a closure that returns it")

    def state_dict(self) -> dict[str, Any]:
        """As ``torch.optim.Optimizer.state_dict``, with entries that identify the rules and the parameters.

        It includes a guard's record, but no state of parameters that are no longer in a group.
        """

        def add(_: Any, saved: dict[str, Any]) -> None:  # before all other hooks, which see it
            saved.update(own_entries(saved, self.param_groups, self._units, self.state))
            if self.guard is not None:
                saved["guard"] = asdict(self.guard)

        self._all_units()  # names the rules that groups were given by hand
        everything, current = self.state, {p for group in self.param_groups for p in group["params"]}
        if any(isinstance(p, Tensor) and p not in current for p in everything):
            self.state = defaultdict(dict, {p: own for p, own in everything.items() if p in current})
        try:
            with self.register_state_dict_post_hook(add, prepend=True):
                return super().state_dict()
        finally:
            self.state = everything

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a copy of another optimizer's state; see ``torch.optim.Optimizer.load_state_dict``.

        The state may come from another machine or device, and from an optimizer with another ``bfloat16_state``. Rules
        are compared by their contents, not by the names or paths under which they were given. A guard that the state
        does not know begins anew.

        Raises:
            ValueError: the state belongs to other parameters or rules; then nothing has been loaded.
        """
        states: dict[Tensor, KeptState] = {}
        guard: dict[str, Any] = {}

        def withhold(_: Any, loaded: dict[str, Any]) -> dict[str, Any]:  # after all other hooks; the base class would
            rest, own = fitting(loaded, self.param_groups, self._all_units(), self._units, self.state)  # cast states
            states.update(own)
            guard.update(asdict(Guard(**loaded.get("guard", {}))))  # a copy
            return rest

        def put(_: Any) -> None:  # before all other hooks
            self.state.update(states)
            self._units.to_start.difference_update(
                p for unit in self._all_units() if unit.first in states for p in unit.params
            )
            if self.guard is not None:
                self.guard = Guard(**guard)

        before = self.register_load_state_dict_pre_hook(withhold)
        with before, self.register_load_state_dict_post_hook(put, prepend=True):
            super().load_state_dict(state_dict)

    def _moving(self, units: list[Unit]) -> list[tuple[Unit, Stepper]]:
        """The units of which a parameter has a gradient, and what steps them."""
        with_gradient = [unit for unit in units if any([p.grad is not None and p.numel() > 0 for p in unit.params])]
        return [(unit, self._units.stepper(unit, self.state)) for unit in with_gradient]

    def _step_group(
        self, group: dict[str, Any], units: list[tuple[Unit, Stepper]], loss: float | None, share: float
    ) -> None:
        """Steps units of a group, most of them in place and in one call."""
        at_once: dict[Stepper, list[Work]] = {}
        factor, decay = float(group["lr"]) * float(group["scale"]) * share, float(group["lr"]) * group["weight_decay"]
        for unit, stepper in units:
            first = unit.first
            if stepper.keeps_shapes:
                simple, vector, grad = True, first, cast(Tensor, first.grad)
            else:
                simple = len(unit.params) == 1 and first.is_contiguous()
                vector, grad = flat([first.detach()] if simple else unit.params), flat(unit.gradients())
            if not (state := self.state[first]):
                state.update(stepper.init(vector))
            work = vector, grad, state
            if simple:
                at_once.setdefault(stepper, []).append(work)
                continue
            with full_precision(vector):
                stepper.step([work], factor, loss, decay)
            unit.overwrite(vector, stepped_only=True)
        for stepper, works in at_once.items():
            with full_precision(works[0][0]):
                stepper.step(works, factor, loss, decay)

    def _all_units(self) -> list[Unit]:
        return [unit for group in self.param_groups for unit in self._units.of(group, self.state)]

    def _stepped(self) -> Iterator[tuple[Stepper, KeptState, list[Tensor]]]:
        stepped = [unit for unit in self._all_units() if self.state.get(unit.first)]
        return ((self._units.stepper(unit, self.state), self.state[unit.first], unit.params) for unit in stepped)

    def __getstate__(self) -> dict[str, Any]:
        self._all_units()  # follows what groups were given by hand
        return super().__getstate__() | {name: self.__dict__[name] for name in ("skipped_steps", "_units")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_zero", None)  # which a copy does not belong to
        for group in self.param_groups:
            group.setdefault("weight_decay", 0.0)  # groups that were saved before there was any
        self._units = self._units.restored(self.param_groups)
