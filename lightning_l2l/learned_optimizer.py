"""A learned update rule as a ``torch.optim.Optimizer``, for any training loop."""

import math
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_l2l.guard import all_finite
from lightning_l2l.named_rules import NamedRules
from lightning_l2l.rules import Layout, UpdateRule, layout_of
from lightning_l2l.rules.base import full_precision
from lightning_l2l.rules.fast.stepper import KeptState, Stepper, flat, make_stepper
from lightning_l2l.sharding import check_whole
from lightning_l2l.watched_optimizer import WatchedOptimizer


class LearnedOptimizer(WatchedOptimizer):
    """Steps parameters by a learned update rule: θ ← (1 − lr λ) θ + lr · scale · g (arXiv:1606.04474, section 2).

    Use it as any optimizer of ``torch.optim``: with ``zero_grad`` and ``step``, learning-rate schedulers,
    ``torch.amp.GradScaler``, DDP, or returned by a LightningModule's ``configure_optimizers``.

    A coordinatewise rule, such as the paper's LSTM, steps each parameter tensor by itself; ``AdamController`` steps
    those of a param group together. Any other rule sees all parameters of a param group as one vector, and their
    shapes; a parameter without a gradient has a zero gradient in it and does not move. A rule that sees the loss needs
    ``step(closure)``. A rule with a learned start needs ``start()`` before the first gradient.

    **Gradients.** Parameters whose ``grad`` is None are skipped, and keep their state. If any gradient is not finite,
    the whole step is skipped: no parameter and no state changes, and ``skipped_steps`` counts it. A learned rule was
    trained on gradients of a minibatch's mean loss: do not give it gradients of a sum, or otherwise scaled ones.

    **Precision.** Steps are computed in float32, in float64 for float64 parameters; half-precision parameters are
    rounded once, at the end. ``AdamController`` keeps what that takes from them, two bytes each, so that small steps
    and weight decay add up; other rules lose steps, and decay, of less than half the distance to the next number.

    **Many processes.** With DDP all processes take the steps of one. In a ``ZeroRedundancyOptimizer`` a process steps
    whole tensors, so it works, but what a rule sees of other tensors is of those of the same process. Parameters that
    are parts of tensors are refused: those of ``fully_shard``, and of FSDP unless the rule is coordinatewise.

    **Compilation.** ``torch.compile`` the model as you like, but not ``step``: it would only take longer.

    **Trained weights.** Until a rule has seen a few gradients it knows little of them: warm ``lr`` up over 100 steps,
    from 1 / 100, where weights are worth keeping.

    **State.** The paper's LSTM keeps 80 numbers per coordinate: 320 bytes, or 160 with ``bfloat16_state``. Running
    means, such as a rule's ``momenta``, stay in float32 even then: 8 bytes each. ``state_dict`` holds them as plain
    tensors, and loading it continues bit for bit; it holds the rule's name but not the rule, so give the same rule
    again. A step needs hardly any memory beyond the state, since coordinates are processed in chunks.

    Args:
        params: parameters, named parameters or param groups, as every optimizer of ``torch.optim`` takes them. A group
            may have a ``rule``, ``lr``, ``scale`` and ``weight_decay`` of its own.
        rule: an ``UpdateRule``; the name of a trained one in this package, such as ``mnist``; or the path of a file
            that ``python -m lightning_l2l export`` or ``lightning_l2l.pretrained.save_rule`` wrote. A ``Grouped`` rule
            chooses a parameter's rule by its name if ``params`` is ``model.named_parameters()``; otherwise each group
            names one of its rules: ``{"params": ..., "rule": "conv"}``.
        lr: factor of every step, which learning-rate schedulers change; 1 takes the steps as learned.
        scale: a further factor, which schedulers leave alone.
        weight_decay: λ, the part of θ that each step at lr = 1 removes, beside the rule's step and before it, as in
            AdamW (arXiv:1711.05101). AdamW's own unit is another: there, a weight decay of .01 at a learning rate of
            .001 removes 1e-5 a step, so give 1e-5 here. Schedulers of ``lr`` change it alike; ``scale`` and a guard's
            safe steps leave it alone. What does not step, for lack of a gradient or of a finite one, does not decay.
        bfloat16_state: keep the state in bfloat16, which halves its memory and leaves three digits of precision.
        guard: take safe steps for a while if the loss diverges; ``lightning_l2l.guard.Guard`` describes when, and which
            steps. It needs ``step(closure)``, or ``observe(loss)`` before each step.
        diagnose_every: n, to let ``diagnostics()`` tell about each n-th step; 0 costs nothing.

    Raises:
        ValueError: a setting is invalid, the rule cannot be found or does not fit the parameters, or parameters are
            complex, integers or parts of tensors.
        RuntimeError: raised by ``step`` for a sparse gradient.

    Example:
        >>> optimizer = LearnedOptimizer(model.parameters(), "mnist")
        >>> optimizer.zero_grad()
        >>> loss_fn(model(input), target).backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        rule: UpdateRule | str | PathLike,
        lr: float | Tensor = 1.0,
        *,
        scale: float = 1.0,
        weight_decay: float = 0.0,
        bfloat16_state: bool = False,
        guard: bool = False,
        diagnose_every: int = 0,
    ) -> None:
        self.bfloat16_state = bfloat16_state
        self.skipped_steps = 0
        self._rules = NamedRules()
        self._rule_of: dict[Tensor, str] = {}
        self._steppers: dict[tuple, Stepper] = {}
        self._to_start: set[Tensor] = set()  # parameters that have yet to move to their rule's learned start
        settings = {"rule": self._rules.register(rule), "lr": lr, "scale": scale, "weight_decay": weight_decay}
        super().__init__(params, settings, guard, diagnose_every)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; see ``torch.optim.Optimizer.add_param_group``."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for name, largest in (("lr", math.inf), ("scale", math.inf), ("weight_decay", 1)):
                if not 0 <= group[name] <= largest:
                    raise ValueError(f"Invalid {'learning rate' if name == 'lr' else name}: {group[name]}")
            if any(not p.is_floating_point() for p in group["params"]):
                raise ValueError("LearnedOptimizer does not support complex or integer parameters")
            group["rule"] = self._rules.register(group["rule"])
            rule_of = self._rules.assign(group)
            for p, name in rule_of.items():
                check_whole(p, self._rules[name].coordinatewise)
            self._rule_of |= rule_of
        except ValueError:
            self.param_groups.pop()
            raise
        learned = (p for p in group["params"] if type(self._rules[self._rule_of[p]]).start is not UpdateRule.start)
        self._to_start.update(learned)

    @torch.no_grad()
    def start(self) -> None:
        """Moves parameters to their rule's learned start, θ ← rule.start(θ); other parameters do not move."""
        for unit in (unit for group in self.param_groups for unit in self._units(group["params"])):
            if unit[0] in self._to_start:
                stepper = self._stepper(unit)
                vector = stepper.rule.start(flat(unit).to(stepper.dtype)[None])[0]
                for p, part in zip(unit, vector.split([p.numel() for p in unit]), strict=True):
                    p.copy_(part.view_as(p))
        self._to_start.clear()

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
        """
        self._check_ready(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.observe(loss)
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if any(grad.layout != torch.strided for grad in grads):
            raise RuntimeError("LearnedOptimizer does not support sparse gradients: give dense ones (sparse=False)")
        if not all_finite(grads):
            self.skipped_steps += 1
            return loss
        share = self._learned_share()
        with self._diagnosed():
            for group in self.param_groups:
                self._step_group(group, loss, share)
            self._step_safely(1 - share)
        return loss

    def _check_ready(self, closure: Callable[[], float] | None) -> None:
        self._check_observed(closure)
        names = dict.fromkeys(self._rule_of.values())
        seeing = next((name for name in names if "loss" in self._rules[name].sees), None)
        if seeing is not None and closure is None:
            raise RuntimeError(f"rule {seeing} sees the loss: call step(closure), with a closure that returns it")
        if self._to_start:
            name = self._rule_of[next(iter(self._to_start))]
            raise RuntimeError(f"rule {name} has learned where to start: call start() before the first gradient")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a copy of another optimizer's state; see ``torch.optim.Optimizer.load_state_dict``.

        The state may come from another machine or device, and from an optimizer with another ``bfloat16_state``.

        Raises:
            ValueError: the state belongs to other parameters or rules.
        """
        rules = [[group.get("rule") for group in groups] for groups in (state_dict["param_groups"], self.param_groups)]
        if rules[0] != rules[1]:
            raise ValueError(f"loaded state dict is of rules {rules[0]}, but the groups here have {rules[1]}")
        # the base class would cast the state, so pass it only the groups
        super().load_state_dict({**state_dict, "state": {}})
        ids = [number for group in state_dict["param_groups"] for number in group["params"]]
        number_of = dict(zip((p for group in self.param_groups for p in group["params"]), ids, strict=True))
        for unit in (unit for group in self.param_groups for unit in self._units(group["params"])):
            if (number := number_of[unit[0]]) in state_dict["state"]:
                stepper = self._stepper(unit)
                state = stepper.adopt(state_dict["state"][number], stepper.joined(unit).detach())
                self.state[unit[0]] = state
                self._to_start.difference_update(unit)

    def _step_group(self, group: dict[str, Any], loss: float | None, share: float) -> None:
        """Steps the parameters of a group that have a gradient, most of them in place and in one call."""
        at_once: dict[Stepper, list[tuple]] = {}
        factor, decay = float(group["lr"]) * group["scale"] * share, float(group["lr"]) * group["weight_decay"]
        for unit in self._units(group["params"]):
            first = unit[0]
            if not any([p.grad is not None and p.numel() > 0 for p in unit]):
                continue
            stepper = self._stepper(unit)
            simple = stepper.keeps_shapes or (len(unit) == 1 and first.is_contiguous())
            vector = stepper.joined([first.detach()] if simple else unit)
            grad = stepper.joined([torch.zeros_like(p) if p.grad is None else p.grad for p in unit])
            state = self.state[first]
            if not state:
                state = self.state[first] = stepper.init(vector)
            elif not stepper.holds(state):
                state = self.state[first] = stepper.adopt(state, vector)
            if simple:
                at_once.setdefault(stepper, []).append((vector, grad, state))
                continue
            with full_precision(vector):
                stepper.step([(vector, grad, state)], factor, loss, decay)
            for p, part in zip(unit, vector.split([p.numel() for p in unit]), strict=True):
                if p.grad is not None:
                    p.copy_(part.view_as(p))
        for stepper, work in at_once.items():
            with full_precision(work[0][0]):
                stepper.step(work, factor, loss, decay)

    def _units(self, params: list[Tensor]) -> list[list[Tensor]]:
        """Groups parameters that are stepped as one vector; its state is kept under the first of them."""
        units: dict[Any, list[Tensor]] = {}
        for p in params:
            name = self._rule_of[p]
            units.setdefault(id(p) if by_itself(self._rules[name]) else name, []).append(p)
        return list(units.values())

    def _stepped(self) -> Iterator[tuple[Stepper, KeptState, list[Tensor]]]:
        units = (unit for group in self.param_groups for unit in self._units(group["params"]))
        return ((self._stepper(unit), self.state[unit[0]], unit) for unit in units if self.state.get(unit[0]))

    def _stepper(self, unit: list[Tensor]) -> Stepper:
        first, name = unit[0], self._rule_of[unit[0]]
        rule = self._rules[name]
        vector = None if by_itself(rule) else tuple(unit)
        key = name, first.device, torch.promote_types(first.dtype, torch.float32), vector
        if key not in self._steppers:
            rule = rule if vector is None else rule.bind(self._layout(vector))
            count = 1 if vector is None else sum(p.numel() for p in vector)
            self._steppers[key] = make_stepper(rule, key[1], key[2], self.bfloat16_state, count)
        return self._steppers[key]

    def _layout(self, unit: Sequence[Tensor]) -> Layout:
        """The layout of the vector that holds these parameters; parameters without names are numbered."""
        names: dict[Tensor, str] = {}
        for group in self.param_groups:
            names |= dict(zip(group["params"], group.get("param_names", ()), strict=False))
        return layout_of({names.get(p, str(number)): p.shape for number, p in enumerate(unit)})

    def __getstate__(self) -> dict[str, Any]:
        own = {name: self.__dict__[name] for name in ("bfloat16_state", "skipped_steps", "_rules", "_to_start")}
        return super().__getstate__() | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._steppers = {}
        self._rule_of = {}
        for group in self.param_groups:
            group.setdefault("weight_decay", 0.0)  # groups that were saved before there was any
            self._rule_of |= self._rules.assign(group)


def by_itself(rule: UpdateRule) -> bool:
    """Whether each parameter tensor has a state of its own."""
    return rule.coordinatewise or rule.tensorwise
