"""One update rule for each named group of parameters (arXiv:1606.04474, section 3.3)."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules.base import Layout, State, Tape, UpdateRule, layout_of


class Grouped(UpdateRule):
    """Steps each group of the optimizee's parameters with its own rule, as the paper does on CIFAR-10.

    Args:
        rules: the rule of each group, by the group's name.
        groups: which parameters belong to each group: patterns of their names, such as ``conv*.weight``. Every
            parameter of the optimizee must belong to exactly one group.
    """

    def __init__(self, rules: dict[str, UpdateRule], groups: dict[str, list[str]]) -> None:
        super().__init__()
        if not isinstance(groups, dict) or not all(map(_are_patterns, groups.values())):
            raise InvalidInputError(
                f"groups is {groups}: give each group a list of patterns, such as {{conv: ['conv*']}}."
            )
        if rules.keys() != groups.keys() or not rules:
            raise InvalidInputError(
                f"rules are given for {', '.join(rules) or 'none'}, but groups for {', '.join(groups) or 'none'}: name "
                "the same ones in both."
            )
        for name in rules:
            if not name or "." in name or hasattr(nn.ModuleDict(), name):
                raise InvalidInputError(f"rules has a group called {name!r}, which PyTorch forbids: give another name.")
        self.rules = nn.ModuleDict(rules)
        self.sees = tuple(dict.fromkeys(name for rule in rules.values() for name in rule.sees))
        self.groups = groups
        self._bound: tuple[Layout, BoundGroups] | None = None

    @property
    def label(self) -> str:
        return " + ".join(dict.fromkeys(rule.label for rule in self.rules.values()))  # type: ignore[misc]

    def bind(self, layout: Layout) -> "BoundGroups":
        """Finds the coordinates of each group.

        Raises:
            InvalidInputError: a parameter belongs to no group, or to two.
        """
        if self._bound is None or self._bound[0] != layout:
            layouts = self._layouts(layout)
            rules = [cast(UpdateRule, self.rules[group]).bind(shifted(own)) for group, own in layouts.items()]
            self._bound = layout, BoundGroups(rules, Places([indices(own) for own in layouts.values()]))
        return self._bound[1]

    def group_of(self, name: str, fix: str = "change the patterns of the rule's groups") -> str:
        """Returns the group to which a parameter of this name belongs.

        Args:
            name: the parameter's.
            fix: the fix that the error names.

        Raises:
            InvalidInputError: there is none, or more than one.
        """
        found = [g for g, patterns in self.groups.items() if any(fnmatchcase(name, p) for p in patterns)]
        if len(found) != 1:
            raise InvalidInputError(
                f"parameter {name} belongs to {'groups ' + ' and '.join(found) if found else 'no group'}, but it "
                f"must belong to one: {fix}."
            )
        return found[0]

    def _layouts(self, layout: Layout) -> dict[str, Layout]:
        """The parameters of each group, at their places in the whole θ."""
        layouts: dict[str, Layout] = {group: {} for group in self.groups}
        for name, place in layout.items():
            layouts[self.group_of(name)][name] = place
        for group, own in layouts.items():
            if not own:
                raise InvalidInputError(
                    f"no parameter belongs to group {group}, whose patterns are {self.groups[group]}; the optimizee's "
                    f"parameters are {', '.join(layout)}: change the patterns of the rule's groups."
                )
        return layouts

    def init(self, theta: Tensor) -> State:
        raise TypeError("a Grouped rule must be bound to an optimizee's layout before it can run")

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, State]:
        raise TypeError("a Grouped rule must be bound to an optimizee's layout before it can run")


def _are_patterns(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(pattern, str) for pattern in value)


def indices(layout: Layout) -> Tensor:
    """The coordinates of all parameters of a layout, [P]."""
    return torch.cat([torch.arange(place.start, place.stop) for place in layout.values()])


def shifted(layout: Layout) -> Layout:
    """The same parameters without gaps between them."""
    return layout_of({name: place.shape for name, place in layout.items()})


class Places:
    """Which coordinates of θ belong to which group.

    Args:
        indices: each group's coordinates, [P_g]; together all of θ.
    """

    def __init__(self, indices: list[Tensor]) -> None:
        self.indices = indices
        self._copies: dict[torch.device, tuple[list[Tensor], Tensor]] = {}

    def split(self, tensor: Tensor) -> list[Tensor]:
        """The parts of [N, P] that belong to each group, [N, P_g]."""
        return [tensor[:, indices] for indices in self._on(tensor.device)[0]]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Undoes ``split``."""
        return torch.cat(list(parts), dim=1)[:, self._on(parts[0].device)[1]]

    def _on(self, device: torch.device) -> tuple[list[Tensor], Tensor]:
        """The groups' coordinates and the inverse permutation, on a device; copied there once."""
        if device not in self._copies:
            indices = [one.to(device) for one in self.indices]
            self._copies[device] = indices, torch.cat(indices).argsort()
        return self._copies[device]


class BoundGroups(UpdateRule):
    """Rules, each with its own coordinates of θ. The state is a tuple of the rules' states.

    Args:
        rules: one for each group.
        places: the groups' coordinates.
    """

    def __init__(self, rules: list[UpdateRule], places: Places) -> None:
        super().__init__()
        self.registered = nn.ModuleList(rules)
        self.rules = rules
        self.places = places
        self.sees = tuple(dict.fromkeys(name for rule in rules for name in rule.sees))
        self.constants = tuple(dict.fromkeys(name for rule in rules for name in rule.constants))

    @property
    def label(self) -> str:
        return " + ".join(dict.fromkeys(rule.label for rule in self.rules))

    def start(self, theta: Tensor) -> Tensor:
        if all(type(rule).start is UpdateRule.start for rule in self.rules):
            return theta
        return self.places.join([rule.start(p) for rule, p in zip(self.rules, self.places.split(theta), strict=True)])

    def init(self, theta: Tensor) -> State:
        return tuple(rule.init(part) for rule, part in zip(self.rules, self.places.split(theta), strict=True))

    def update(self, grad: Tensor, state: State, **seen: Tensor) -> tuple[Tensor, State]:
        return self.update_with(self.rules, grad, state, seen)

    def update_with(
        self, rules: Sequence[UpdateRule | Tape], grad: Tensor, state: State, seen: dict[str, Tensor]
    ) -> tuple[Tensor, State]:
        """As ``update``, with a rule or tape for each group."""
        steps = []
        for number, (rule, own_grad, own_state) in enumerate(zip(rules, self.places.split(grad), state, strict=True)):
            own = {name: self.places.split(seen[name])[number] if name == "theta" else seen[name] for name in rule.sees}
            steps.append(rule.update(own_grad, own_state, **own))
        updates, states = zip(*steps, strict=True)
        return self.places.join(updates), states

    def tape(self, theta: Tensor, steps: int) -> Tape:
        parts = self.places.split(theta)
        return GroupsTape(self, [rule.tape(part, steps) for rule, part in zip(self.rules, parts, strict=True)])

    def in_place(self) -> UpdateRule | Tape:
        return GroupsTape(self, [rule.in_place() for rule in self.rules])

    def map(self, function: Callable[[UpdateRule, Tensor], UpdateRule], theta: Tensor) -> "BoundGroups":
        """Applies the function to each group's rule and its part of θ."""
        parts = zip(self.rules, self.places.split(theta), strict=True)
        return BoundGroups([function(rule, part) for rule, part in parts], self.places)


class GroupsTape(Tape):
    """The tapes of all groups as one."""

    def __init__(self, groups: BoundGroups, tapes: Sequence[UpdateRule | Tape]) -> None:
        super().__init__(groups)
        self.groups = groups
        self.tapes = tapes

    def update(self, grad: Tensor, state: State, **seen: Tensor) -> tuple[Tensor, State]:
        return self.groups.update_with(self.tapes, grad, state, seen)

    def backward(self, cotangents: list[Tensor]) -> list[Tensor]:
        of_groups = zip(*map(self.groups.places.split, cotangents), strict=True)
        tapes = cast(Sequence[Tape], self.tapes)
        results = [tape.backward(list(part)) for tape, part in zip(tapes, of_groups, strict=True)]
        return [grad for result in results for grad in result]
