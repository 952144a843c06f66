"""The interface of every update rule."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

MOST_LAYERS = 100  # of a rule's network, which a file's header might set to a billion

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


def full_precision(tensor: Tensor) -> AbstractContextManager:
    """Disables autocast for the update rule: under the Trainer's mixed precision only the optimizee runs in it."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


class UpdateRule(nn.Module, ABC):
    """The update rule g of θ_{t+1} = θ_t + g_t, with [g_t; h_{t+1}] = m(∇_t, h_t, φ) (arXiv:1606.04474, section 2).

    A rule is a pair of pure functions held in an ``nn.Module`` whose parameters are the meta-parameters φ. It keeps
    nothing of an optimizee's run in itself: all of that is in the state, which the caller carries.

    Every optimizee is one flat vector, so shapes are [N, P]: N episodes side by side, P coordinates of θ. A rule that
    needs the shapes of the parameter tensors overrides ``bind``.

    Attributes:
        coordinatewise: whether a coordinate's step depends only on that coordinate's gradients and θ. Such a rule may
            run on slices of the coordinates of all episodes together, as if they were one episode [1, slice].
            Subclasses inherit it: one that mixes coordinates must set it to False.
        sees: what ``update`` takes by keyword besides the gradient: any of "theta" (θ_t, [N, P]) and "loss" (f(θ_t),
            [N]).
        constants: descriptions of what ``update`` detaches from the graph although it depends on φ or on gradients, so
            that a meta-gradient can report what it leaves out.
        takes_phi_per_episode: whether every method also runs with parameters of its own for each episode, [N, ...];
            every tensor of the state must then have the episodes in its first dimension.
        tensorwise: whether ``LearnedOptimizer`` keeps a state for each parameter tensor and gives the rule's own
            ``stepper`` all tensors of a group, in their shapes. It is for rules that mix the coordinates of a tensor.
    """

    coordinatewise: ClassVar[bool] = False
    tensorwise: ClassVar[bool] = False
    sees: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    takes_phi_per_episode: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """What tables and figures call the rule."""
        return type(self).__name__

    def bind(self, layout: Layout) -> "UpdateRule":
        """Returns the rule to run on optimizees of this layout; most rules ignore the layout."""
        return self

    def start(self, theta: Tensor) -> Tensor:
        """Returns the θ_0 at which a run starts: the optimizee's own, unless the rule has learned a better one.

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
        """Computes one step. A rule that sees only gradients takes only ``grad`` and ``state``.

        Args:
            grad: the gradient ∇_t of each episode's own loss, [N, P].
            state: h_t, as ``init`` or the last ``update`` returned it.
            args: unused; a subclass names its own arguments.
            seen: what the rule's ``sees`` asks for, by name.

        Returns:
            The step g_t, [N, P], to be added to θ_t, and the next state h_{t+1}.
        """

    def tape(self, theta: Tensor, steps: int) -> "Tape":
        """Returns a tape of K steps of this rule for the meta-gradient; override it for a faster backward pass.

        Args:
            theta: like the θ it will run on, [N, P].
            steps: K, at most.
        """
        return Tape(self)

    def in_place(self) -> "UpdateRule | Tape":
        """Returns a rule or tape for the same steps without a meta-gradient; it may overwrite the states it is given.

        φ must not change while it is in use.
        """
        return self

    def compiled(self, theta: Tensor, threads: int) -> "UpdateRule | None":
        """Returns a rule that takes the same steps with code compiled for this machine, or None.

        Args:
            theta: like the θ it will run on, [N, P].
            threads: how many cores may work on one step.
        """
        return None

    def stepper(self, device: torch.device, dtype: torch.dtype, in_bfloat16: bool) -> Any:
        """Returns a faster ``rules.fast.stepper.Stepper`` for this rule, which steps parameters in place, or None.

        Args:
            device: where the parameters are.
            dtype: the floating-point type in which steps are computed.
            in_bfloat16: whether states are kept in bfloat16 from one step to the next.
        """
        return None

    def unpacked(self, state: dict[str, Any], count: int) -> dict[str, Any]:
        """Converts a state of ``count`` coordinates from any stepper of this rule to the form that ``Stepper`` has."""
        return state

    def saturated(self, state: State) -> Tensor | None:
        """Returns which share of a rule's inputs was at its limits in the last step, for diagnostics, or None.

        Args:
            state: as ``update`` returned it.

        Returns:
            One share for each parameter tensor, in the layout's order, [N, number of tensors].
        """
        return None

    def map(self, function: "Callable[[UpdateRule, Tensor], UpdateRule]", theta: Tensor) -> "UpdateRule":
        """Applies a function to the rule and θ; a rule made of others applies it to each of them and its part of θ."""
        return function(self, theta)


class Tape:
    """Records K steps of a rule, so that the meta-gradient can be backpropagated through them.

    It treats gradients as constants, and computes the backward pass by autograd.

    Args:
        rule: the update rule, whose parameters are φ.
    """

    def __init__(self, rule: UpdateRule) -> None:
        self.rule = rule
        self.sees = rule.sees
        self.updates: list[Tensor] = []

    def update(self, grad: Tensor, state: State, *args: Any, **seen: Any) -> tuple[Tensor, State]:
        """As the rule's ``update``; the returned step is detached from the graph.

        Args:
            grad: ∇_t, [N, P].
            state: the run's state on the first call, then what the last call returned; a tape may overwrite it.
            args: unused; a subclass names its own arguments.
            seen: what the rule's ``sees`` asks for.
        """
        with torch.enable_grad():
            update, state = self.rule.update(grad, state, **seen)
        self.updates.append(update)
        return update.detach(), state

    def backward(self, cotangents: list[Tensor]) -> list[Tensor]:
        """Computes Σ_t ⟨G_t, ∂g_t/∂φ⟩ for every parameter of the rule; call it only once.

        Args:
            cotangents: G_t .. G_{t+K-1}, the meta-loss's derivatives with respect to the steps, each [N, P].

        Returns:
            One tensor for every parameter, in the order of ``rule.parameters()``.
        """
        parameters = list(self.rule.parameters())
        if not parameters:  # a hand-designed rule among a group's learned ones
            return []
        learned = [pair for pair in zip(self.updates, cotangents, strict=True) if pair[0].requires_grad]
        if not learned:  # only the start of runs is
            return [torch.zeros_like(p) for p in parameters]
        updates, directions = zip(*learned, strict=True)
        grads = torch.autograd.grad(updates, parameters, directions, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
