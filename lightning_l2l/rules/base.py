"""The interface of every update rule."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

State = tuple[Any, ...]
"""What a rule remembers between two steps: a (named) tuple of tensors, numbers or further tuples."""


class Place(NamedTuple):
    """Where a named parameter tensor of the optimizee lies in the flat θ."""

    start: int
    stop: int
    shape: tuple[int, ...]

    @property
    def coordinates(self) -> slice:
        """Its coordinates, as an index of the last dimension."""
        return slice(self.start, self.stop)


Layout = dict[str, Place]
"""The named parameter tensors of an optimizee, in the order in which they lie in θ."""


def layout_of(shapes: Mapping[str, Sequence[int]]) -> Layout:
    """Lays out tensors of these shapes one after the other."""
    places, start = {}, 0
    for name, shape in shapes.items():
        places[name] = Place(start, start + prod(shape), tuple(shape))
        start = places[name].stop
    return places


def full_precision(tensor: Tensor) -> torch.autocast:
    """Where the Trainer asks for mixed precision, the optimizee runs in it and the update rule does not."""
    return torch.autocast(tensor.device.type, enabled=False)


class UpdateRule(nn.Module, ABC):
    """The update rule g of θ_{t+1} = θ_t + g_t, with [g_t; h_{t+1}] = m(∇_t, h_t, φ) (arXiv:1606.04474, section 2).

    A rule is a pair of pure functions held in an ``nn.Module`` whose parameters are the meta-parameters φ. It never
    keeps anything of an optimizee's run in itself: all of that is in the state, which the caller carries.

    Every optimizee is one flat vector, so shapes are [N, P]: N episodes side by side, P coordinates of θ. A rule that
    needs the shapes of the parameter tensors overrides ``bind``.

    Attributes:
        coordinatewise: whether a coordinate's step depends on that coordinate's gradients, and its θ, alone. Such a
            rule may be run on slices of the coordinates, of all episodes together, as if they were one episode
            [1, slice]. A subclass inherits it: one that mixes coordinates must say False.
        sees: what ``update`` takes by keyword beside the gradient: any of "theta" (θ_t, [N, P]) and "loss" (f(θ_t),
            [N]).
        constants: what ``update`` itself cuts from the graph although it depends on φ or on gradients, in words, so
            that a meta-gradient can say what it leaves out.
    """

    coordinatewise: ClassVar[bool] = False
    sees: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What tables and figures call the rule."""
        return type(self).__name__

    def bind(self, layout: Layout) -> "UpdateRule":
        """Returns the rule to run on optimizees of this layout; most rules do not care."""
        return self

    def start(self, theta: Tensor) -> Tensor:
        """Returns the θ_0 at which a run starts; the optimizee's own, unless a rule has learned a better one.

        Args:
            theta: the optimizee's own θ_0, [N, P].
        """
        return theta

    @abstractmethod
    def init(self, theta: Tensor) -> State:
        """Returns the state h_0 before the first step.

        Args:
            theta: the parameters θ_0 at which the run starts, [N, P].
        """

    @abstractmethod
    def update(self, grad: Tensor, state: State, *args: Any, **seen: Any) -> tuple[Tensor, State]:
        """Computes one step. A rule that sees nothing but gradients takes ``grad`` and ``state`` alone.

        Args:
            grad: the gradient ∇_t of each episode's own loss, [N, P].
            state: h_t, as ``init`` or the last ``update`` returned it.
            args: none; a subclass names what it takes.
            seen: what the rule's ``sees`` asks for, by name.

        Returns:
            The step g_t, [N, P], to be added to θ_t, and the next state h_{t+1}.
        """

    def tape(self, theta: Tensor, steps: int) -> "Tape":
        """Returns what remembers K steps of this rule for the meta-gradient; override it for a faster way back.

        Args:
            theta: like the θ it will run on, [N, P].
            steps: K, at most.
        """
        return Tape(self)

    def in_place(self) -> "UpdateRule | Tape":
        """Returns what takes the same steps where no meta-gradient is wanted; it may overwrite the states it is given.

        φ must not change while it is used.
        """
        return self

    def compiled(self, theta: Tensor, threads: int) -> "UpdateRule | None":
        """Returns a rule that takes the same steps by code compiled for this machine; None where there is none.

        Args:
            theta: like the θ it will run on, [N, P].
            threads: how many cores may work on one step.
        """
        return None

    def stepper(self, device: torch.device, dtype: torch.dtype, in_bfloat16: bool) -> Any:
        """Returns what steps parameters in place as ``rules.fast.stepper.Stepper`` does, faster; None: there is none.

        Args:
            device: where the parameters are.
            dtype: the floating point type in which steps are computed.
            in_bfloat16: whether states are kept in bfloat16 from one step to the next.
        """
        return None

    def unpacked(self, state: dict[str, Any], count: int) -> dict[str, Any]:
        """Returns a state of ``count`` coordinates as ``Stepper`` keeps it, whichever stepper of this rule kept it."""
        return state

    def map(self, function: "Callable[[UpdateRule, Tensor], UpdateRule]", theta: Tensor) -> "UpdateRule":
        """Returns what a function makes of the rule and θ; a rule made of others hands it each with its part of θ."""
        return function(self, theta)


class Tape:
    """K steps of a rule, remembered so that the meta-gradient can go back through them.

    Runs the rule on gradients that are taken as constants, and goes backward by autograd.

    Args:
        rule: the update rule, whose parameters are φ.
    """

    def __init__(self, rule: UpdateRule) -> None:
        self.rule = rule
        self.sees = rule.sees
        self.updates: list[Tensor] = []

    def update(self, grad: Tensor, state: State, *args: Any, **seen: Any) -> tuple[Tensor, State]:
        """As the rule's ``update``; the step returned is cut from the graph.

        Args:
            grad: ∇_t, [N, P].
            state: where the run starts, the first time; then what the last call returned, which a tape may reuse.
            args: none; a subclass names what it takes.
            seen: what the rule's ``sees`` asks for.
        """
        with torch.enable_grad():
            update, state = self.rule.update(grad, state, **seen)
        self.updates.append(update)
        return update.detach(), state

    def backward(self, cotangents: list[Tensor]) -> list[Tensor]:
        """Computes Σ_t ⟨G_t, ∂g_t/∂φ⟩ for every parameter of the rule; to be called once.

        Args:
            cotangents: G_t .. G_{t+K-1}, the meta-loss's derivatives by the steps, each [N, P].

        Returns:
            One tensor for every parameter, in the order of ``rule.parameters()``.
        """
        parameters = list(self.rule.parameters())
        if not parameters:  # a hand-designed rule among a group's learned ones
            return []
        grads = torch.autograd.grad(self.updates, parameters, cotangents, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
