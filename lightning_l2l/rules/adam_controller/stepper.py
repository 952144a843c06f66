"""Steps parameter tensors by the controller, in place and all tensors of a group together."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_l2l.rules.adam_controller.arithmetic import OneStep, arithmetic, dot, factors_of
from lightning_l2l.rules.adam_controller.network import ControllerNetwork
from lightning_l2l.rules.adam_controller.orthogonal import matrix_shape, orthogonalize_
from lightning_l2l.rules.adam_controller.remainder import exact, round_into
from lightning_l2l.rules.adam_controller.statistics import (
    SHARED,
    Means,
    Memory,
    features,
    remember,
    shape_features,
)
from lightning_l2l.rules.fast.stepper import KeptState, Stepper, Work


class ControllerStepper(Stepper):
    """Takes the steps of ``AdamController`` on parameter tensors in their shapes, without concatenating them.

    A tensor's state holds four running means and, for matrices, the last −lr a_O O: 20 bytes a coordinate in float32.
    Half-precision parameters are stepped in float32, and what rounding took from them is kept in a ``remainder``, two
    bytes more, so that small steps add up.

    Each tensor has a clock of its own, and means over tensors are over those that are stepped together: a frozen one is
    not among them, and one that is thawed late begins at its own first step.

    Args:
        rule: the rule, on that device and in that type.
        device: where parameters are.
        dtype: the floating-point type in which steps are computed.
    """

    keeps_shapes = True

    def __init__(self, rule: ControllerNetwork, device: torch.device, dtype: torch.dtype) -> None:
        self.rule: ControllerNetwork = rule
        self.device = device
        self.dtype = dtype
        self.arithmetic = arithmetic(device, dtype)

    def init(self, theta: Tensor) -> KeptState:
        """Returns the state before the first step of a tensor of any shape."""
        state: KeptState = {name: torch.zeros_like(theta, dtype=self.dtype) for name in ("m9", "m99", "v99", "v999")}
        if self.rule.orthogonal and matrix_shape(theta.shape):
            state["orthogonal"] = torch.zeros_like(theta, dtype=self.dtype)
        if theta.dtype != self.dtype:
            state["remainder"] = torch.zeros_like(theta, dtype=torch.int16)
        memory = torch.zeros(2 + SHARED, dtype=self.dtype, device=self.device)
        return {**state, "memory": memory, "controls": [], "step": 0}

    def holds(self, state: KeptState) -> bool:
        return "m9" in state and state["m9"].device == self.device

    def adopt(self, state: KeptState, theta: Tensor) -> KeptState:
        adopted = self.copy(state, self.init(theta))
        return {**adopted, "controls": list(adopted["controls"])}

    def step(self, work: Sequence[Work], factor: float, loss: float | Tensor | None = None, decay: float = 0.0) -> None:
        """Takes one step of each tensor, as in ``Stepper``; θ and its gradient are in any shape."""
        steps = [OneStep(opened(theta, state), ordered(grad, state), state) for theta, grad, state in work]
        if decay:
            torch._foreach_mul_([one.theta for one in steps], 1 - decay)
        for one in steps:
            one.state["step"] += 1
        due = [number for number, one in enumerate(steps) if self.rule.due(one.state["step"])]
        if due:
            sums = self.arithmetic.average(steps)
            self._renew(steps, due, sums[due])
        self.arithmetic.step(steps, [factors_of(one, factor) for one in steps], average=not due)
        for (theta, _, state), one in zip(work, steps, strict=True):
            close(theta, state, one.theta)

    def _renew(self, steps: list[OneStep], numbers: list[int], sums: Tensor) -> None:
        """Runs the network for the tensors with these numbers and renews their O."""
        due = [steps[number] for number in numbers]
        directions = self._directions(due)
        means = tensor_means(due, sums, directions)
        t = torch.tensor([one.state["step"] for one in due], dtype=self.dtype, device=self.device)
        kept = torch.stack([one.state["memory"] for one in due])
        memory, own, sizes = remember(means, Memory(kept[:, 0], kept[:, 1], kept[:, 2:]), t, self.rule.every)
        kept = torch.cat([memory.agreement[:, None], memory.reference[:, None], memory.shared], 1)
        for one, row in zip(due, kept, strict=True):
            one.state["memory"].copy_(row)
        everyone = torch.stack([one.state["memory"] for one in steps])[:, 2:].mean(0, keepdim=True)
        shapes = t.new_tensor([shape_features(one.theta.shape, self.rule.all_sides) for one in due])
        controls = self.rule.controls(features(memory.shared, everyone, own, shapes, t), sizes).T.tolist()
        for one, numbers, direction in zip(due, controls, directions, strict=True):
            one.state["controls"] = numbers
            if direction is not None:
                one.state["orthogonal"].copy_(direction.mul_(-numbers[-1]).reshape(one.theta.shape))

    def _directions(self, due: list[OneStep]) -> list[Tensor | None]:
        """O of each tensor as a matrix, None for a vector; matrices of one shape are computed together."""
        directions: list[Tensor | None] = [None] * len(due)
        by_shape: dict[tuple[int, int], list[int]] = {}
        for number, one in enumerate(due):
            if "orthogonal" in one.state and (shape := matrix_shape(one.theta.shape)):
                by_shape.setdefault(shape, []).append(number)
        for shape, numbers in by_shape.items():
            mixed = torch.empty(len(numbers), *shape, dtype=self.dtype, device=self.device)
            for number, matrix in zip(numbers, mixed, strict=True):
                torch.lerp(due[number].state["m9"].reshape(shape), due[number].grad.reshape(shape), 0.1, out=matrix)
            results = orthogonalize_(mixed, self.rule.spectral_limit, self.rule.block)
            for number, result in zip(numbers, results, strict=True):
                directions[number] = result
        return directions


def opened(theta: Tensor, state: KeptState) -> Tensor:
    """θ in the type and order of its state, with what rounding took from it before."""
    if "remainder" in state:
        theta = exact(theta, state["remainder"], state["m9"].dtype)
    return ordered(theta, state)


def ordered(tensor: Tensor, state: KeptState) -> Tensor:
    """A tensor in the type and order of the state."""
    same = tensor.dtype == state["m9"].dtype and tensor.stride() == state["m9"].stride()
    return tensor if same else torch.empty_like(state["m9"]).copy_(tensor)


def close(theta: Tensor, state: KeptState, moved: Tensor) -> None:
    """Writes back what was moved; if that rounds it, keeps the rest."""
    if "remainder" in state:
        round_into(theta, state["remainder"], moved)
    elif moved is not theta:
        theta.copy_(moved)


def tensor_means(due: list[OneStep], sums: Tensor, directions: list[Tensor | None]) -> Means:
    """Divides sums [tensors, 10] by the number of coordinates, and adds the means of products with O."""
    zero = sums.new_zeros(())
    squares = [zero if direction is None else dot(direction, direction) for direction in directions]
    products = [
        zero if direction is None else dot(direction, one.state["m9"])
        for one, direction in zip(due, directions, strict=True)
    ]
    counts = sums.new_tensor([one.theta.numel() for one in due])
    last, grad_last, grad, theta, m9, m9_m99, m99, v99, v999, adam = (sums.T / counts).unbind()
    with_m9, orthogonal = torch.stack(products) / counts, torch.stack(squares) / counts
    return Means(last, grad_last, grad, theta, m9, m9_m99, with_m9, m99, orthogonal, v99, v999, adam)
