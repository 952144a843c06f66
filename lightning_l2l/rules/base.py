"""The interface of every update rule."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_l2l.rules.tape import Tape

State = tuple[Any, ...]
"""What a rule remembers between two steps: a (named) tuple of tensors, numbers or further tuples."""


Layout = dict[str, slice]
"""Which coordinates of θ belong to which named parameter of the optimizee."""


class UpdateRule(nn.Module, ABC):
    """The update rule g of θ_{t+1} = θ_t + g_t, with [g_t; h_{t+1}] = m(∇_t, h_t, φ) (arXiv:1606.04474, section 2).

    A rule is a pair of pure functions held in an ``nn.Module`` whose parameters are the meta-parameters φ. It never
    keeps anything of an optimizee's run in itself: all of that is in the state, which the caller carries.

    Every optimizee is one flat vector, so shapes are [N, P]: N episodes side by side, P coordinates of θ.

    Attributes:
        coordinatewise: whether a coordinate's step depends on that coordinate's gradients alone. Such a rule may be
            run on slices of the coordinates, of all episodes together, as if they were one episode [1, slice]. A
            subclass inherits it: one that mixes coordinates must say False.
    """

    coordinatewise: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """What tables and figures call the rule."""
        return type(self).__name__

    def bind(self, layout: Layout) -> "UpdateRule":
        """Returns the rule to run on optimizees of this layout; most rules do not care."""
        return self

    @abstractmethod
    def init(self, theta: Tensor) -> State:
        """Returns the state h_0 before the first step.

        Args:
            theta: the parameters θ_0 at which the run starts, [N, P].
        """

    @abstractmethod
    def update(self, grad: Tensor, state: State) -> tuple[Tensor, State]:
        """Computes one step.

        Args:
            grad: the gradient ∇_t of each episode's own loss, [N, P].
            state: h_t, as ``init`` or the last ``update`` returned it.

        Returns:
            The step g_t, [N, P], to be added to θ_t, and the next state h_{t+1}.
        """

    def tape(self, theta: Tensor, steps: int) -> Tape:
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
