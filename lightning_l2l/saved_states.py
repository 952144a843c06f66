"""What a state dict of ``LearnedOptimizer`` holds besides the entries of others, and whether it fits another one."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules.fast.stepper import KeptState, Stepper, flat
from lightning_l2l.rules.identity import identity, same
from lightning_l2l.units import Unit, Units

Groups = list[dict[str, Any]]


def own_entries(saved: dict[str, Any], groups: Groups, units: Units, state: dict[Tensor, KeptState]) -> dict[str, Any]:
    """Returns entries by which a state is recognised, and all states in the form in which they are saved.

    Args:
        saved: the base class's state dict.
        groups: the optimizer's.
        units: makes their units.
        state: the optimizer's.

    Returns:
        The ``shapes`` of parameters by their numbers, what tells the ``rules`` of the groups from others by their
        names, and the ``state``.
    """
    number_of = _numbers(groups, saved["param_groups"])
    rules = {group["rule"]: identity(units.rules[group["rule"]]) for group in groups}
    states = dict(saved["state"])
    for unit in (unit for group in groups for unit in units.of(group, state)):
        if own := state.get(unit.first):
            if getattr(unit.first, "_fsdp_flattened", False):
                own = in_rows(own, units.stepper(unit, state), unit.first)
            states[number_of[unit.first]] = {name: _as_tensor(value, unit.first) for name, value in own.items()}
    return {"shapes": {number: list(p.shape) for p, number in number_of.items()}, "rules": rules, "state": states}


def fitting(
    loaded: dict[str, Any], groups: Groups, units: Iterable[Unit], of: Units, state: dict[Tensor, KeptState]
) -> tuple[dict[str, Any], dict[Tensor, KeptState]]:
    """Returns what is left of a state dict for the base class to load, and copies of the states that fit.

    Args:
        loaded: the state dict.
        groups: the optimizer's own.
        units: of all groups.
        of: makes their steppers.
        state: the optimizer's present state.

    Raises:
        ValueError: the state is of other rules, or of parameters of other shapes.
    """
    theirs = loaded["param_groups"]
    if [len(group["params"]) for group in theirs] != [len(group["params"]) for group in groups]:
        return loaded, {}  # which the base class refuses
    check_rules(loaded, groups, of)
    number_of = _numbers(groups, theirs)
    states = {}
    for unit in units:
        numbers = [number_of[p] for p in unit.params]
        if any(loaded["state"].get(number) for number in numbers[1:]):
            raise ValueError(f"loaded state dict has a state of each parameter, but rule {unit.rule} keeps one for all")
        if (found := loaded["state"].get(numbers[0])) is not None:
            shapes = [loaded.get("shapes", {}).get(number) for number in numbers]
            if found:
                states[unit.first] = adopted(unit, found, shapes, of, state)
            elif not of.stepper(unit, state).init(flat(unit.params)):
                states[unit.first] = {}  # a rule that keeps nothing has begun all the same
    kept = {key: value for key, value in loaded["state"].items() if key not in number_of.values()}
    named = [{**group, "rule": own["rule"]} for group, own in zip(theirs, groups, strict=True)]
    return {**loaded, "state": kept, "param_groups": named}, states


def check_rules(loaded: dict[str, Any], groups: Groups, units: Units) -> None:
    """Compares rules by their contents; by their names, if the state dict has come without contents."""
    names = [[group.get("rule") for group in each] for each in (loaded["param_groups"], groups)]
    known = loaded.get("rules", {})
    for theirs, own in zip(*names, strict=True):
        alike = same(known[theirs], identity(units.rules[own])) if theirs in known else theirs == own
        if not alike and theirs == own:
            raise ValueError(f"loaded state dict has states of another rule called {own}: give the optimizer that one")
        if not alike:
            raise ValueError(f"loaded state dict is of rules {names[0]}, but the groups here have {names[1]}")


def adopted(
    unit: Unit, found: KeptState, shapes: list[list[int] | None], units: Units, state: dict[Tensor, KeptState]
) -> KeptState:
    """Returns a copy of a unit's state in the form in which it is kept here.

    Args:
        unit: the parameters.
        found: their state.
        shapes: theirs when the state was saved, None where that is not known.
        units: makes the stepper.
        state: the optimizer's present state.
    """
    for p, shape in zip(unit.params, shapes, strict=True):
        if shape is not None and list(p.shape) != shape:
            raise ValueError(
                f"loaded state dict has a state of a parameter of shape {shape}, but the one here has {list(p.shape)}"
            )
    stepper = units.stepper(unit, state)
    theta = unit.first if stepper.keeps_shapes else flat(unit.params)
    if not all(value.isfinite().all() for value in found.values() if isinstance(value, Tensor)):
        raise ValueError("loaded state dict has a state with numbers that are not finite: give another one")
    try:
        return stepper.adopt(_joined_rows(found, stepper), theta.detach())
    except InvalidInputError as error:
        raise ValueError(f"loaded state dict has a state that does not fit: {error}") from error


def _as_tensor(value: Any, p: Tensor) -> Any:
    """Puts a list of numbers into a tensor beside its parameter, as PyTorch's distributed checkpoints need it."""
    dtype = torch.promote_types(p.dtype, torch.float32)
    return torch.tensor(value, dtype=dtype, device=p.device) if isinstance(value, list) else value


def _numbers(groups: Groups, saved: Groups) -> dict[Tensor, int]:
    """The number of each parameter in a state dict."""
    pairs = zip(groups, saved, strict=True)
    return {p: number for own, kept in pairs for p, number in zip(own["params"], kept["params"], strict=True)}


def in_rows(state: KeptState, stepper: Stepper, p: Tensor) -> KeptState:
    """Splits a coordinatewise rule's state into tensors of its parameter's own shape, as FSDP gathers them."""
    rows: KeptState = {}
    for name, value in stepper.rule.unpacked(state, p.numel()).items():
        if name in stepper.per_coordinate:
            rows |= {f"{name}/{number}": row for number, row in enumerate(value.reshape(-1, *p.shape))}
        else:
            rows[name] = value
    return rows


def _joined_rows(state: KeptState, stepper: Stepper) -> KeptState:
    """Undoes ``in_rows``, of a state in any order; another state is returned unchanged."""
    joined = {name: value for name, value in state.items() if "/" not in name}
    for name, (leading, _) in stepper.per_coordinate.items() if len(joined) < len(state) else ():
        rows = [
            state[f"{name}/{number}"].reshape(-1) for number in range(leading.numel()) if f"{name}/{number}" in state
        ]
        if len(rows) == leading.numel():
            joined[name] = torch.stack(rows).view(*leading, -1)
    return joined
