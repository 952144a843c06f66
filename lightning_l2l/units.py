"""Which parameters of an optimizer are stepped as one vector, by which rule and how."""

from collections.abc import Iterable
from functools import reduce
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from lightning_l2l.named_rules import NamedRules
from lightning_l2l.rules import UpdateRule, layout_of
from lightning_l2l.rules.fast.stepper import KeptState, Stepper, make_stepper
from lightning_l2l.sharding import check_whole


class Unit:
    """Parameters of a group that are stepped as one vector; their state is kept under the first of them.

    Args:
        rule: the name of their rule.
        params: the parameters.
        names: theirs, or their numbers in the unit.
    """

    def __init__(self, rule: str, params: list[Tensor], names: list[str]) -> None:
        self.rule = rule
        self.params = params
        self.names = names
        self.first = params[0]
        self.form: list[tuple] = []  # shape, type and device of each parameter for which the stepper was made
        self.stepper: Stepper | None = None

    def gradients(self) -> list[Tensor]:
        """Zeros where there is none.

        Raises:
            ValueError: a gradient has not the shape of its parameter.
        """
        for p in self.params:
            if p.grad is not None and p.grad.shape != p.shape:
                raise ValueError(
                    f"a parameter has shape {list(p.shape)}, but its gradient {list(p.grad.shape)}: call zero_grad "
                    "after changing a parameter"
                )
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]

    def overwrite(self, vector: Tensor, stepped_only: bool = False) -> None:
        """Overwrites the parameters by parts of a vector [P]; on request, only those that have a gradient."""
        for p, part in zip(self.params, vector.split([p.numel() for p in self.params]), strict=True):
            if p.grad is not None or not stepped_only:
                p.copy_(part.view_as(p))


class Units:
    """The units of an optimizer's groups, which follow what is changed in the groups by hand.

    Args:
        bfloat16_state: see ``LearnedOptimizer``.

    Attributes:
        rules: the rules by name, as the groups hold them.
        to_start: parameters that have yet to move to their rule's learned start.
    """

    def __init__(self, bfloat16_state: bool) -> None:
        self.bfloat16_state = bfloat16_state
        self.rules = NamedRules()
        self.to_start: set[Tensor] = set()
        self._rule_of: dict[Tensor, str] = {}
        self._steppers: dict[tuple, Stepper] = {}
        # by id(group): the group itself, so that no other takes its id; its rule and parameters; and its units
        self._known: dict[int, tuple[dict[str, Any], list, list[Unit]]] = {}

    def of(self, group: dict[str, Any], state: dict[Tensor, KeptState]) -> list[Unit]:
        """Returns the units of a group; if its rule or its parameters have changed, they are divided anew.

        Parameters whose rule has changed lose their state, since another rule can do nothing with it.

        Raises:
            ValueError: the rule cannot be found or does not fit the parameters; parameters are complex, integers or
                parts of tensors; or a rule keeps one state for all parameters, of which some have changed.
        """
        held, known = [group["rule"], *map(id, group["params"])], self._known.get(id(group))
        if known is not None and known[1] == held:
            return known[2]
        return self._divide(group, [] if known is None else known[2], state)

    def stepper(self, unit: Unit, state: dict[Tensor, KeptState]) -> Stepper:
        """Returns what steps a unit.

        Raises:
            ValueError: a parameter has changed its shape since its state began.
        """
        form = [(p.shape, p.dtype, p.device) for p in unit.params]
        if unit.stepper is not None and unit.form == form:
            return unit.stepper
        first, shapes, before = unit.first, [shape for shape, *_ in form], [shape for shape, *_ in unit.form]
        if before and before != shapes and state.get(first):
            raise ValueError(
                f"a parameter's shape has changed from {[list(shape) for shape in before]} to "
                f"{[list(shape) for shape in shapes]} since its state began: give a new parameter to add_param_group, "
                "or begin anew by del optimizer.state[parameter]"
            )
        rule = self.rules[unit.rule]
        vector = None if by_itself(rule) else (*unit.params, *shapes)
        dtype = reduce(torch.promote_types, [dtype for _, dtype, _ in form], torch.float32)
        key = unit.rule, first.device, dtype, vector
        if key not in self._steppers:
            if vector is not None:
                rule = rule.bind(layout_of(dict(zip(unit.names, shapes, strict=True))))
            count = 1 if vector is None else sum(p.numel() for p in unit.params)
            self._steppers[key] = make_stepper(rule, first.device, dtype, self.bfloat16_state, count)
        unit.form, unit.stepper = form, self._steppers[key]
        return unit.stepper

    def register(self, rule: UpdateRule | str | PathLike) -> str:
        """See ``NamedRules.register``."""
        return self.rules.register(rule)

    def rule_of(self, p: Tensor) -> str:
        """The name of the rule that steps a parameter."""
        return self._rule_of[p]

    def restored(self, groups: Iterable[dict[str, Any]]) -> "Units":
        """Returns the units of groups that were copied or loaded, of which nothing but the rules is known yet."""
        units = Units(self.bfloat16_state)
        units.rules, units.to_start = self.rules, self.to_start
        for group in groups:
            units._rule_of |= units.rules.assign(group)
        return units

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_rule_of": {}, "_steppers": {}, "_known": {}}

    def _divide(self, group: dict[str, Any], before: list[Unit], state: dict[Tensor, KeptState]) -> list[Unit]:
        if any(not p.is_floating_point() for p in group["params"]):
            raise ValueError("LearnedOptimizer does not support complex or integer parameters")
        group["rule"] = self.rules.register(group["rule"])
        rule_of = self.rules.assign(group)
        for p, name in rule_of.items():
            check_whole(p, self.rules[name].coordinatewise)
        units = self._units(group, rule_of)
        self._check_unchanged(before, units, state)
        for p, name in rule_of.items():
            if self._rule_of.get(p, name) != name:
                state.pop(p, None)
            elif p not in self._rule_of and type(self.rules[name]).start is not UpdateRule.start:
                self.to_start.add(p)
        self._rule_of |= rule_of
        self._known[id(group)] = group, [group["rule"], *map(id, group["params"])], units
        return units

    def _units(self, group: dict[str, Any], rule_of: dict[Tensor, str]) -> list[Unit]:
        names = group.get("param_names", [])
        named = dict(zip(group["params"], names, strict=True)) if len(names) == len(rule_of) else {}
        together: dict[Any, list[Tensor]] = {}
        for p, rule in rule_of.items():
            together.setdefault(id(p) if by_itself(self.rules[rule]) else rule, []).append(p)
        return [
            Unit(rule_of[params[0]], params, [named.get(p, str(number)) for number, p in enumerate(params)])
            for params in together.values()
        ]

    def _check_unchanged(self, before: list[Unit], after: list[Unit], state: dict[Tensor, KeptState]) -> None:
        """Raises ``ValueError`` if a state is that of several parameters, which have changed but for their rule."""
        for old in before:
            alone = by_itself(self.rules[old.rule]) or not state.get(old.first)
            for new in after if not alone else ():
                if new.rule == old.rule and list(map(id, new.params)) != list(map(id, old.params)):
                    raise ValueError(
                        f"rule {old.rule} keeps one state for all parameters of a group, so they cannot change after a "
                        "step: use add_param_group, or make a new optimizer"
                    )


def by_itself(rule: UpdateRule) -> bool:
    """Whether each parameter tensor has a state of its own."""
    return rule.coordinatewise or rule.tensorwise
