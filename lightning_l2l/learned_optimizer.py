"""A learned update rule as a ``torch.optim.Optimizer``, for any training loop."""

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules import Grouped, Layout, UpdateRule, layout_of
from lightning_l2l.rules.base import full_precision
from lightning_l2l.rules.fast.stepper import Stepper, make_stepper
from lightning_l2l.rules.files import load_rule


class LearnedOptimizer(Optimizer):
    """Steps parameters by a learned update rule: θ ← θ + lr · scale · g (arXiv:1606.04474, section 2).

    Use it as any optimizer of ``torch.optim``: with ``zero_grad`` and ``step``, learning-rate schedulers,
    ``torch.amp.GradScaler``, DDP, or returned by a LightningModule's ``configure_optimizers``.

    A coordinatewise rule, such as the paper's LSTM, steps each parameter tensor by itself. A rule that is not sees all
    parameters of a param group as one vector, and their shapes; those without a gradient count as zero in it and stay
    where they are. A rule that sees the loss needs ``step(closure)``. One that has learned where runs start needs
    ``start()`` before the first gradient.

    **Gradients.** Parameters whose ``grad`` is None are skipped, and keep their state. Where any gradient has a number
    that is not finite, the whole step is skipped: no parameter and no state changes, and ``skipped_steps`` counts it.
    A learned rule has been trained on the gradients of a minibatch's mean loss: sums, and gradients scaled in other
    ways, are not what it knows.

    **Precision.** Steps are computed in float32, in float64 for float64 parameters; half-precision parameters are
    rounded once, at the end.

    **State.** The paper's LSTM remembers 80 numbers of each coordinate: 320 bytes, or 160 with ``bfloat16_state``.
    Running means, such as a rule's ``momenta``, are kept in full with it, too: 8 bytes for each of them.
    ``state_dict`` holds them as plain tensors, and loading it continues to the next bit; the rule itself is not in it,
    only its name, so give the same rule again. A step needs next to no memory beyond the state: coordinates are worked
    on in chunks.

    Args:
        params: parameters, named parameters or param groups, as every optimizer of ``torch.optim`` takes them. A group
            may have a ``rule``, ``lr`` and ``scale`` of its own.
        rule: an ``UpdateRule``; the name of a trained one in this package, such as ``mnist``; or the path of a file
            that ``python -m lightning_l2l export`` or ``lightning_l2l.pretrained.save_rule`` wrote. A ``Grouped`` rule
            finds the one of each parameter by its name, if ``params`` is ``model.named_parameters()``; or groups name
            one of its rules: ``{"params": ..., "rule": "conv"}``.
        lr: a factor of every step, which learning-rate schedulers change. 1 is what the rule has learned.
        scale: a further factor, which they leave alone.
        bfloat16_state: keep the state in bfloat16, in half of the memory, at three digits of precision.

    Raises:
        ValueError: a setting, or a rule that cannot be found or does not fit the parameters; or complex parameters.
        RuntimeError: by ``step``, when a gradient is sparse.

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
        bfloat16_state: bool = False,
    ) -> None:
        self.bfloat16_state = bfloat16_state
        self.skipped_steps = 0
        self._rules: dict[str, UpdateRule] = {}  # by their names in the groups
        self._rule_of: dict[Tensor, str] = {}
        self._steppers: dict[tuple, Stepper] = {}
        self._to_start: set[Tensor] = set()  # parameters that a rule wants elsewhere before their first step
        super().__init__(params, {"rule": self._register(rule), "lr": lr, "scale": scale})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; see ``torch.optim.Optimizer.add_param_group``."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for name in ("lr", "scale"):
                if not group[name] >= 0:
                    raise ValueError(f"Invalid {'learning rate' if name == 'lr' else name}: {group[name]}")
            if any(not p.is_floating_point() for p in group["params"]):
                raise ValueError("LearnedOptimizer does not support complex or integer parameters")
            group["rule"] = self._register(group["rule"])
            self._rule_of |= self._assign(group)
        except ValueError:
            self.param_groups.pop()
            raise
        learned = (p for p in group["params"] if type(self._rules[self._rule_of[p]]).start is not UpdateRule.start)
        self._to_start.update(learned)

    @torch.no_grad()
    def start(self) -> None:
        """Moves parameters to where their rule has learned to start, θ ← rule.start(θ); others stay where they are."""
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
            closure: evaluates the model again, goes backward, and returns the loss. A rule that sees the loss needs it.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: a gradient is sparse, or a rule lacks the loss, or ``start``.
        """
        self._check_ready(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if any(grad.layout != torch.strided for grad in grads):
            raise RuntimeError("LearnedOptimizer does not support sparse gradients: give dense ones (sparse=False)")
        if not all_finite(grads):
            self.skipped_steps += 1
            return loss
        for group in self.param_groups:
            self._step_group(group, loss)
        return loss

    def _check_ready(self, closure: Callable[[], float] | None) -> None:
        names = dict.fromkeys(self._rule_of.values())
        seeing = next((name for name in names if "loss" in self._rules[name].sees), None)
        if seeing is not None and closure is None:
            raise RuntimeError(f"rule {seeing} sees the loss: call step(closure), with a closure that returns it")
        if self._to_start:
            name = self._rule_of[next(iter(self._to_start))]
            raise RuntimeError(f"rule {name} has learned where to start: call start() before the first gradient")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a copy of another optimizer's state; see ``torch.optim.Optimizer.load_state_dict``.

        The state may come from another machine or device, and from an optimizer with another ``bfloat16_state``.

        Raises:
            ValueError: the state is of other parameters or rules.
        """
        rules = [[group.get("rule") for group in groups] for groups in (state_dict["param_groups"], self.param_groups)]
        if rules[0] != rules[1]:
            raise ValueError(f"loaded state dict is of rules {rules[0]}, but the groups here have {rules[1]}")
        # PyTorch would give the state the parameters' floating point type, so it gets to see the groups alone
        super().load_state_dict({**state_dict, "state": {}})
        ids = [number for group in state_dict["param_groups"] for number in group["params"]]
        number_of = dict(zip((p for group in self.param_groups for p in group["params"]), ids, strict=True))
        for unit in (unit for group in self.param_groups for unit in self._units(group["params"])):
            if (number := number_of[unit[0]]) in state_dict["state"]:
                self.state[unit[0]] = self._stepper(unit).adopt(state_dict["state"][number], flat(unit).detach())
        self._to_start.clear()

    def _step_group(self, group: dict[str, Any], loss: float | None) -> None:
        """Steps the parameters of a group that have a gradient: most of them where they are, at once."""
        at_once: dict[Stepper, list[tuple]] = {}
        factor = float(group["lr"]) * group["scale"]
        for unit in self._units(group["params"]):
            first = unit[0]
            moving = [p.grad is not None and p.numel() > 0 for p in unit]
            if not any(moving):
                continue
            stepper = self._stepper(unit)
            simple = len(unit) == 1 and first.is_contiguous()
            vector = flat([first.detach()] if simple else unit)
            grad = flat([torch.zeros_like(p) if p.grad is None else p.grad for p in unit])
            state = self.state[first]
            if not state:
                state = self.state[first] = stepper.init(vector)
            elif not stepper.holds(state):
                state = self.state[first] = stepper.adopt(state, vector)
            if simple:
                at_once.setdefault(stepper, []).append((vector, grad, state))
                continue
            with full_precision(vector):
                stepper.step([(vector, grad, state)], factor, seen_loss(loss, stepper))
            for p, part in zip(unit, vector.split([p.numel() for p in unit]), strict=True):
                if p.grad is not None:
                    p.copy_(part.view_as(p))
        for stepper, work in at_once.items():
            with full_precision(work[0][0]):
                stepper.step(work, factor, seen_loss(loss, stepper))

    def _units(self, params: list[Tensor]) -> list[list[Tensor]]:
        """Parameters that are stepped as one vector; its state is that of the first."""
        units: dict[Any, list[Tensor]] = {}
        for p in params:
            name = self._rule_of[p]
            units.setdefault(p if self._rules[name].coordinatewise else name, []).append(p)
        return list(units.values())

    def _stepper(self, unit: list[Tensor]) -> Stepper:
        first, name = unit[0], self._rule_of[unit[0]]
        rule = self._rules[name]
        vector = None if rule.coordinatewise else tuple(unit)
        key = name, first.device, torch.promote_types(first.dtype, torch.float32), vector
        if key not in self._steppers:
            rule = rule if vector is None else rule.bind(self._layout(vector))
            self._steppers[key] = make_stepper(rule, key[1], key[2], self.bfloat16_state)
        return self._steppers[key]

    def _layout(self, unit: Sequence[Tensor]) -> Layout:
        """How parameters lie in a vector of them; they are numbered where the groups do not name them."""
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
            self._rule_of |= self._assign(group)

    def _register(self, rule: UpdateRule | str | PathLike) -> str:
        """Returns the name under which a rule is known, after finding it."""
        if isinstance(rule, UpdateRule):
            label, number = rule.label, 1
            while self._rules.setdefault(label, rule) is not rule:
                number += 1
                label = f"{rule.label} {number}"
            return label
        name = str(rule)
        if name not in self._rules:
            grouped = [known for known in self._rules.values() if isinstance(known, Grouped) and name in known.rules]
            try:
                self._rules[name] = grouped[0].rules[name] if grouped else load_rule(name)  # type: ignore[assignment]
            except InvalidInputError as error:
                raise ValueError(str(error)) from error
        return name

    def _assign(self, group: dict[str, Any]) -> dict[Tensor, str]:
        """Which rule steps each parameter of a group."""
        rule = self._rules[group["rule"]]
        if not isinstance(rule, Grouped):
            return dict.fromkeys(group["params"], group["rule"])
        by_hand = f"groups of parameters that each name one of {', '.join(rule.rules)} as rule"
        if "param_names" not in group:
            raise ValueError(
                f"rule {group['rule']} has one rule for each of {', '.join(rule.rules)}: give "
                f"model.named_parameters() instead of model.parameters(), or {by_hand}"
            )
        try:
            groups = [rule.group_of(name, f"give {by_hand}") for name in group["param_names"]]
        except InvalidInputError as error:
            raise ValueError(str(error)) from error
        names = {own: f"{group['rule']}.{own}" for own in groups}
        self._rules |= {name: rule.rules[own] for own, name in names.items()}  # type: ignore[misc]
        return {p: names[own] for p, own in zip(group["params"], groups, strict=True)}


def flat(tensors: list[Tensor]) -> Tensor:
    """All numbers of some tensors in a row; those of one that lies so itself are not copied."""
    if len(tensors) > 1:
        return torch.cat([tensor.reshape(-1) for tensor in tensors])
    row = tensors[0].contiguous()
    return row if row.ndim == 1 else row.view(-1)


def seen_loss(loss: float | Tensor | None, stepper: Stepper) -> Tensor | None:
    """A closure's loss as a rule sees it, [1]."""
    if loss is None or "loss" not in stepper.rule.sees:
        return None
    return torch.as_tensor(loss).detach().to(stepper.device, stepper.dtype).reshape(1)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether there is no infinity and no NaN in any."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        by_device.setdefault(tensor.device, []).append(tensor)
    return all(_all_finite(same) for same in by_device.values())


def _all_finite(tensors: list[Tensor]) -> bool:
    """As ``all_finite``, on one device: sums are finite where all numbers are, unless they are very large."""
    if torch.stack([tensor.sum(dtype=torch.float32) for tensor in tensors]).isfinite().all():
        return True
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
