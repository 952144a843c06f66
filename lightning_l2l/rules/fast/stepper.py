"""Steps parameters in place by a rule, in working memory that does not grow with them."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules.base import State, UpdateRule
from lightning_l2l.rules.fast.addresses import described

CHUNK = {"cpu": 4096}  # coordinates at a time: on a CPU, what a core's cache holds
LARGE_CHUNK = 65_536  # elsewhere; the LSTM's activations then take 60 MB
# running means and sums: in bfloat16 they would stall, since what a step adds is rounded away
SUMS = {"mean", "square", "weight", "memory", "means", "m9", "m99", "v99", "v999"}

KeptState = dict[str, Any]
"""A rule's state for one θ [P], as plain tensors and numbers by name, which is all that ``torch.optim`` can keep."""

Work = tuple[Tensor, Tensor, KeptState]
"""A θ [P], its gradient, and its state."""


class Stepper:
    """Moves each θ by θ ← (1 − decay) θ + factor · g, chunk by chunk, and overwrites its state.

    In the state of a coordinatewise rule, tensors whose last dimension is as long as any θ hold one number per
    coordinate, and anything else is shared by all coordinates. A rule that is not coordinatewise sees all of θ at once.

    Args:
        rule: the update rule, on that device and in that type; it must not change afterwards.
        device: where θ is.
        dtype: the floating-point type in which steps are computed.
        in_bfloat16: whether states are kept in bfloat16 from one step to the next.
        count: coordinates of a θ that the rule can be tried on; one that is coordinatewise takes any number.

    Attributes:
        keeps_shapes: whether it takes each θ and gradient in the parameter's shape, instead of [P]. It then steps a
            ``tensorwise`` rule.
    """

    keeps_shapes: ClassVar[bool] = False

    def __init__(
        self, rule: UpdateRule, device: torch.device, dtype: torch.dtype, in_bfloat16: bool = False, count: int = 1
    ) -> None:
        self.rule = rule
        self.device = device
        self.dtype = dtype
        self.kept_dtype = torch.bfloat16 if in_bfloat16 else dtype
        counts = [count, count + 1] if rule.coordinatewise else [count]
        states = [self.rule.init(torch.zeros(1, number, dtype=dtype, device=device)) for number in counts]
        self.structure = pytree.tree_structure(states[0])
        leaves = [named_leaves(state) for state in states]
        self.names = list(leaves[0])
        self.per_coordinate = {
            name: (value.shape[:-1], self._kept(name, value.dtype))
            for name, value in leaves[0].items()
            if all(_has_each(own[name], number) for own, number in zip(leaves, counts, strict=True))
        }
        self.shared = {
            name: value
            for name, value in leaves[0].items()
            if isinstance(value, Tensor) and name not in self.per_coordinate
        }

    def init(self, theta: Tensor) -> KeptState:
        """Returns the state before the first step from θ, [P]."""
        kept: KeptState = {}
        for part in self.parts(theta):
            state = self._flatten(self.rule.init(theta[None, part].to(self.dtype)))
            for name, value in state.items():
                if name not in self.per_coordinate:
                    kept[name] = value
                    continue
                if name not in kept:
                    leading, dtype = self.per_coordinate[name]
                    kept[name] = value.new_empty((*leading, len(theta)), dtype=dtype)
                kept[name][..., part] = value
        return kept

    def step(self, work: Sequence[Work], factor: float, loss: float | Tensor | None = None, decay: float = 0.0) -> None:
        """Takes one step of each θ.

        Args:
            work: θ, ∇_t and the state of each, which is converted if it has come from another machine or type.
            factor: of the step.
            loss: f(θ_t), one number, for a rule that sees it.
            decay: the part of θ that is removed before the step.

        Raises:
            InvalidInputError: θ, its gradient and its state do not fit each other; then nothing has been stepped.
        """
        self.fit(work)
        seen = None
        if "loss" in self.rule.sees:
            seen = torch.as_tensor(loss).detach().to(self.device, self.dtype).reshape(1)
        for theta, grad, state in work:
            before = dict(state)
            for part in self.parts(theta):
                now = [self._open(name, before[name], part) for name in self.names]
                now_theta = theta[part].to(self.dtype)
                if decay:
                    now_theta = now_theta * (1 - decay)
                values = {"theta": now_theta[None], "loss": seen}
                update, after = self.rule.update(
                    grad[None, part].to(self.dtype),
                    pytree.tree_unflatten(now, self.structure),
                    **{name: values[name] for name in self.rule.sees},
                )
                theta[part] = now_theta.add(update[0], alpha=factor)  # rounded once
                for name, value in self._flatten(after).items():
                    if name in self.per_coordinate:
                        state[name][..., part] = value
                    else:
                        state[name] = value

    def fit(self, work: Sequence[Work]) -> None:
        """Checks that each θ, its gradient and its state fit each other, and converts states in place; see ``step``."""
        for theta, grad, state in work:
            if grad.shape != theta.shape or not theta.device == grad.device == self.device:
                raise InvalidInputError(
                    f"a parameter is {described(theta)}, but its gradient {described(grad)}: compute gradients anew "
                    "after changing parameters."
                )
            if not self.holds(state, theta):
                adopted = self.adopt(state, theta)
                state.clear()
                state.update(adopted)

    def holds(self, state: KeptState, theta: Tensor) -> bool:
        """Whether a state has the form that ``init`` returns for this θ; it may come from another machine or device."""
        return list(state) == self.names and all([self._holds(name, state[name], len(theta)) for name in self.names])

    def adopt(self, state: KeptState, theta: Tensor) -> KeptState:
        """Returns a copy of a state of the same rule for a θ like this one, [P], converted to this stepper's form.

        Raises:
            InvalidInputError: the state belongs to another rule, or to another θ.
        """
        return self.copy(self.rule.unpacked(state, len(theta)), self.init(theta))

    def copy(self, state: KeptState, into: KeptState) -> KeptState:
        """Fills a state with another's numbers and returns it; see ``adopt``."""
        if state.keys() != into.keys() or not all(_fills(value, into[name]) for name, value in state.items()):
            raise InvalidInputError(
                f"the state of a parameter has {_described(state)}, but {self.rule.label} here keeps "
                f"{_described(into)}: load the state of the same parameters, or delete it from optimizer.state."
            )
        for name, value in state.items():
            if isinstance(into[name], Tensor):
                into[name].copy_(value)
            else:
                into[name] = value.item() if isinstance(value, Tensor) else value
        return into

    def saturated(self, state: KeptState, count: int) -> Tensor | None:
        """The share of the rule's inputs that were clamped in the last step, for each tensor; None if it cannot tell.

        Args:
            state: after the step.
            count: coordinates of θ.
        """
        if type(self.rule).saturated is UpdateRule.saturated:
            return None
        kept = self.rule.unpacked(state, count)
        shares = self.rule.saturated(pytree.tree_unflatten([kept[key] for key in self.names], self.structure))
        return None if shares is None else shares[0]

    def parts(self, theta: Tensor) -> list[slice]:
        """The chunks of coordinates that are processed at a time."""
        chunk = CHUNK.get(self.device.type, LARGE_CHUNK) if self.rule.coordinatewise else len(theta)
        return [slice(first, min(first + chunk, len(theta))) for first in range(0, len(theta), max(chunk, 1))]

    def _flatten(self, state: State) -> KeptState:
        return dict(zip(self.names, pytree.tree_leaves(state), strict=True))

    def _holds(self, name: str, value: Any, length: int) -> bool:
        """Whether one value of the state of so many coordinates has its form."""
        if name in self.per_coordinate:
            leading, dtype = self.per_coordinate[name]
            if not isinstance(value, Tensor) or value.device != self.device:
                return False
            return (value.shape, value.dtype) == ((*leading, length), dtype)
        return name not in self.shared or (_fills(value, self.shared[name]) and value.device == self.device)

    def _open(self, name: str, value: Any, part: slice) -> Any:
        """The part of the rule's state that belongs to some coordinates, in the type of the computation."""
        value = value[..., part] if name in self.per_coordinate else value
        return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def _kept(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """The type in which a tensor of the rule's state is kept."""
        small = dtype.is_floating_point and SUMS.isdisjoint(name.split("."))
        return self.kept_dtype if small else dtype


def make_stepper(
    rule: UpdateRule, device: torch.device, dtype: torch.dtype, in_bfloat16: bool = False, count: int = 1
) -> Stepper:
    """Returns the fastest stepper for a copy of the rule; see ``Stepper`` for the arguments."""
    rule = deepcopy(rule).requires_grad_(False).to(device, dtype)
    return rule.stepper(device, dtype, in_bfloat16) or Stepper(rule, device, dtype, in_bfloat16, count)


def flat(tensors: list[Tensor]) -> Tensor:
    """Flattens and concatenates tensors; a single contiguous tensor is not copied."""
    if len(tensors) > 1:
        return torch.cat([tensor.reshape(-1) for tensor in tensors])
    row = tensors[0].contiguous()
    return row if row.ndim == 1 else row.view(-1)


def named_leaves(state: State) -> KeptState:
    """What a rule's state holds, by names such as hidden.0."""

    def name(path: Sequence[Any]) -> str:
        return ".".join(str(getattr(key, "name", getattr(key, "idx", getattr(key, "key", "")))) for key in path)

    return {name(path): value for path, value in pytree.tree_flatten_with_path(state)[0]}


def _has_each(value: Any, count: int) -> bool:
    """Whether a value of the state may have a number for each of so many coordinates."""
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[-1] == count


def _fills(value: Any, place: Any) -> bool:
    """Whether a value of a state can take another's place, up to its device and the size of its floating point."""
    if isinstance(place, Tensor):
        if not isinstance(value, Tensor) or value.is_floating_point() != place.is_floating_point():
            return False
        return (value.shape, value.layout) == (place.shape, place.layout)
    return not isinstance(value, Tensor) or (value.ndim == 0 and isinstance(place, int | float))


def _described(state: KeptState) -> str:
    """A state's names and forms, in words."""
    return ", ".join(f"{name} {described(value)}" for name, value in state.items()) or "nothing"
