"""The update rules of an optimizer's param groups, by the names under which the groups hold them."""

import re
from os import PathLike
from typing import Any

from torch import Tensor

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules import Grouped, UpdateRule
from lightning_l2l.rules.files import load_rule

# What DistributedDataParallel, torch.compile, FSDP and activation checkpointing add to parameters' names.
WRAPPED = re.compile(r"^(?:module\.)+|\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.(?:module\.)?")


class NamedRules(dict[str, UpdateRule]):
    """Rules by name: plain strings in the groups, so that a state dict holds no code."""

    def register(self, rule: UpdateRule | str | PathLike) -> str:
        """Finds a rule and returns the name under which it is registered.

        Raises:
            ValueError: there is no such rule.
        """
        if isinstance(rule, UpdateRule):
            label, number = rule.label, 1
            while self.setdefault(label, rule) is not rule:
                number += 1
                label = f"{rule.label} {number}"
            return label
        name = str(rule)
        if name not in self:
            grouped = [known for known in self.values() if isinstance(known, Grouped) and name in known.rules]
            try:
                self[name] = grouped[0].rules[name] if grouped else load_rule(name)  # type: ignore[assignment]
            except InvalidInputError as error:
                raise ValueError(str(error)) from error
        return name

    def assign(self, group: dict[str, Any]) -> dict[Tensor, str]:
        """Returns the name of the rule that steps each parameter of a group.

        Raises:
            ValueError: the group's rule is a ``Grouped`` one, and chooses none of its rules for a parameter.
        """
        rule = self[group["rule"]]
        if not isinstance(rule, Grouped):
            return dict.fromkeys(group["params"], group["rule"])
        by_hand = f"groups of parameters that each name one of {', '.join(rule.rules)} as rule"
        if "param_names" not in group:
            raise ValueError(
                f"rule {group['rule']} has one rule for each of {', '.join(rule.rules)}: give "
                f"model.named_parameters() instead of model.parameters(), or {by_hand}"
            )
        try:
            groups = [_group_of(rule, name, f"give {by_hand}") for name in group["param_names"]]
        except InvalidInputError as error:
            raise ValueError(str(error)) from error
        if len(groups) != len(group["params"]):
            raise ValueError(
                f"a group has {len(group['params'])} parameters, but {len(groups)} param_names, by which rule "
                f"{group['rule']} chooses among its rules: change both, or use add_param_group"
            )
        names = {own: f"{group['rule']}.{own}" for own in groups}
        self.update({name: rule.rules[own] for own, name in names.items()})  # type: ignore[misc]
        return {p: names[own] for p, own in zip(group["params"], groups, strict=True)}


def _group_of(rule: Grouped, name: str, fix: str) -> str:
    """As ``Grouped.group_of``, where compilation or the wrapper of many processes may stand before a name."""
    try:
        return rule.group_of(name, fix)
    except InvalidInputError:
        plain = WRAPPED.sub("", name)
        if plain == name:
            raise
        return rule.group_of(plain, fix)
