"""A learned start of runs, for any rule."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_l2l.rules.base import Layout, State, Tape, UpdateRule
from lightning_l2l.rules.shaped import ShapedByOptimizee, coordinate_parameter, refuse_other_size, size_of, take_shape


class LearnedStart(ShapedByOptimizee):
    """Learns the θ_0 at which all runs start, and steps by another rule (MAML, arXiv:1703.03400, equation 1).

    φ is θ_0 [P] and the other rule's φ. Before anything is learned, θ_0 is the start of one episode, so another
    ``data.seed`` begins elsewhere. With SGD, the last loss alone and the exact meta-gradient over the whole horizon it
    is MAML, with the first-order meta-gradient FOMAML, and with ``PerCoordinateSGD`` Meta-SGD (arXiv:1707.09835).

    Args:
        rule: the rule that takes the steps.
    """

    def __init__(self, rule: UpdateRule) -> None:
        super().__init__()
        self.theta = coordinate_parameter()
        self.rule = rule
        self.sees = rule.sees
        self.constants = rule.constants
        self.takes_phi_per_episode = rule.takes_phi_per_episode  # type: ignore[misc]

    @property
    def label(self) -> str:
        return f"learned start + {self.rule.label}"

    def bind(self, layout: Layout) -> "LearnedStart":
        """Binds the other rule.

        Raises:
            InvalidInputError: θ_0 has another size than the optimizee.
        """
        refuse_other_size(self, self.theta, size_of(layout))
        return self._with(self.rule.bind(layout))

    def start(self, theta: Tensor) -> Tensor:
        """Returns θ_0 for every episode; the first call makes it, from the first episode's own.

        Args:
            theta: the optimizee's own θ_0, [N, P].
        """
        if self.theta.numel() == 0:
            self.theta.data = theta[0].detach().clone().to(self.theta)
        return self.theta.expand(len(theta), -1).contiguous()

    def take_shapes(self, tensors: Mapping[str, Tensor]) -> None:
        take_shape(self.theta, tensors.get("theta"))

    def init(self, theta: Tensor) -> State:
        return self.rule.init(theta)

    def update(self, grad: Tensor, state: State, **seen: Tensor) -> tuple[Tensor, State]:
        return self.rule.update(grad, state, **seen)

    def tape(self, theta: Tensor, steps: int) -> Tape:
        return LearnedStartTape(self, self.rule.tape(theta, steps))

    def in_place(self) -> UpdateRule | Tape:
        return self.rule.in_place()

    def unpacked(self, state: dict[str, Any], count: int) -> dict[str, Any]:
        return self.rule.unpacked(state, count)

    def saturated(self, state: State) -> Tensor | None:
        return self.rule.saturated(state)

    def map(self, function: Callable[[UpdateRule, Tensor], UpdateRule], theta: Tensor) -> "LearnedStart":
        return self._with(self.rule.map(function, theta))

    def _with(self, rule: UpdateRule) -> "LearnedStart":
        """The same start for another form of the rule."""
        other = LearnedStart(rule)
        other.theta = self.theta  # the same parameter, even if it is made later
        return other


class LearnedStartTape(Tape):
    """The tape of the rule that takes the steps; what θ_0 adds to the meta-gradient is not in the steps."""

    def __init__(self, rule: LearnedStart, tape: Tape) -> None:
        super().__init__(rule)
        self.start = rule.theta
        self.tape = tape

    def update(self, grad: Tensor, state: State, **seen: Tensor) -> tuple[Tensor, State]:
        return self.tape.update(grad, state, **seen)

    def backward(self, cotangents: list[Tensor]) -> list[Tensor]:
        return [torch.zeros_like(self.start), *self.tape.backward(cotangents)]
