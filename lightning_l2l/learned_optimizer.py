"""A learned update rule as a ``torch.optim.Optimizer``, for any training loop."""

from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules import Grouped, UpdateRule
from lightning_l2l.rules.fast.stepper import Stepper, make_stepper
from lightning_l2l.rules.files import load_rule
from lightning_l2l.unroll import full_precision


class LearnedOptimizer(Optimizer):
    """Steps parameters by a learned update rule: θ ← θ + lr · scale · g (arXiv:1606.04474, section 2).

    Use it as any optimizer of ``torch.optim``: with ``zero_grad`` and ``step``, learning-rate schedulers,
    ``torch.amp.GradScaler``, DDP, or returned by a LightningModule's ``configure_optimizers``.

    A coordinatewise rule, such as the paper's LSTM, steps each parameter tensor by itself. A rule that is not sees all
    parameters of a param group as one vector; those without a gradient count as zero in it and stay where they are.

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

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes one step.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            The closure's loss, or None.
        """
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
            self._step_group(group)
        return loss

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
                self.state[unit[0]] = self._stepper(unit[0]).adopt(state_dict["state"][number], flat(unit).detach())

    def _step_group(self, group: dict[str, Any]) -> None:
        """Steps the parameters of a group that have a gradient: most of them where they are, at once."""
        at_once: dict[Stepper, list[tuple]] = {}
        factor = float(group["lr"]) * group["scale"]
        for unit in self._units(group["params"]):
            first = unit[0]
            moving = [p.grad is not None and p.numel() > 0 for p in unit]
            if not any(moving):
                continue
            stepper = self._stepper(first)
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
                stepper.step([(vector, grad, state)], factor)
            for p, part in zip(unit, vector.split([p.numel() for p in unit]), strict=True):
                if p.grad is not None:
                    p.copy_(part.view_as(p))
        for stepper, work in at_once.items():
            with full_precision(work[0][0]):
                stepper.step(work, factor)

    def _units(self, params: list[Tensor]) -> list[list[Tensor]]:
        """Parameters that are stepped as one vector; its state is that of the first."""
        units: dict[Any, list[Tensor]] = {}
        for p in params:
            name = self._rule_of[p]
            units.setdefault(p if self._rules[name].coordinatewise else name, []).append(p)
        return list(units.values())

    def _stepper(self, p: Tensor) -> Stepper:
        key = self._rule_of[p], p.device, torch.promote_types(p.dtype, torch.float32)
        if key not in self._steppers:
            self._steppers[key] = make_stepper(self._rules[key[0]], key[1], key[2], self.bfloat16_state)
        return self._steppers[key]

    def __getstate__(self) -> dict[str, Any]:
        own = {name: self.__dict__[name] for name in ("bfloat16_state", "skipped_steps", "_rules")}
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
