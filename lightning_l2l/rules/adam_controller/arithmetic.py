"""What the controller computes of whole tensors: by PyTorch's operations, on any device."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_l2l.rules.adam_controller.orthogonal import matrix_shape, orthogonalize_
from lightning_l2l.rules.adam_controller.statistics import (
    MEMORY,
    Means,
    Memory,
    Sizes,
    bias_corrections,
    features,
    remember,
)
from lightning_l2l.rules.fast.stepper import KeptState

MEANS = ("m9", "m99", "v99", "v999")


class OneStep(NamedTuple):
    """A tensor that is stepped. All its tensors lie alike in memory."""

    theta: Tensor  # in the type of the computation
    grad: Tensor
    state: KeptState
    row: list[int]  # how many coordinates it has, and the addresses of all its parts, as kernel.cpp takes them


class Factors(NamedTuple):
    """A tensor's controls with bias corrections folded in, so that few operations on long tensors are left."""

    m9: float
    grad: float
    m99: float
    v99: float
    mixture: float
    epsilon: float
    direction: float  # of what comes from the running means
    orthogonal: float


def factors_of(one: OneStep, factor: float) -> Factors:
    """The factors of a tensor's next step, θ ← θ + factor · g."""
    m9, grad, m99, mixture, epsilon, orthogonal = one.state["controls"]
    b9, b99, b999 = bias_corrections(one.state["step"])
    root = b999**0.5
    return Factors(
        m9, grad * b9, m99 * b9 / b99, b999 / b99, mixture, epsilon * root, -factor * root / b9, -factor * orthogonal
    )


class Arithmetic:
    """Operations on lists of tensors."""

    def average(self, steps: list[OneStep]) -> Tensor:
        """Moves the running means on and returns the sums of each tensor, [tensors, 10].

        They are of the last m₉², g · last m₉, g², θ², m₉², m₉ · m₉₉, m₉₉², v₉₉, v₉₉₉ and m₉² / v₉₉.
        """
        before = [(dot(one.state["m9"], one.state["m9"]), dot(one.grad, one.state["m9"])) for one in steps]
        self._average(steps)
        sums = []
        for one, last in zip(steps, before, strict=True):
            m9, m99, v99, v999 = (one.state[name] for name in MEANS)
            squares = dot(one.grad, one.grad), dot(one.theta, one.theta), dot(m9, m9), dot(m9, m99), dot(m99, m99)
            adam = m9.square().div_(v99.clamp(min=torch.finfo(v99.dtype).tiny)).sum()
            sums.append(torch.stack([*last, *squares, v99.sum(), v999.sum(), adam]))
        return torch.stack(sums)

    def step(self, steps: list[OneStep], factor: float, average: bool) -> None:
        """Steps every tensor, θ ← θ + factor · g, after moving its running means on if ``average``."""
        if average:
            self._average(steps)
        thetas, grads, states = ([getattr(one, name) for one in steps] for name in ("theta", "grad", "state"))
        m9, m99, v99, v999 = ([state[name] for state in states] for name in MEANS)
        factors = [factors_of(one, factor) for one in steps]
        of = Factors(*zip(*factors, strict=True))  # type: ignore[arg-type]  # a list for each
        direction = torch._foreach_mul(m9, of.m9)
        torch._foreach_add_(direction, torch._foreach_mul(grads, of.grad))
        torch._foreach_add_(direction, torch._foreach_mul(m99, of.m99))
        root = torch._foreach_lerp(v999, torch._foreach_mul(v99, of.v99), of.mixture)
        torch._foreach_clamp_min_(root, torch.finfo(root[0].dtype).tiny)
        torch._foreach_sqrt_(root)
        torch._foreach_add_(root, of.epsilon)
        torch._foreach_addcdiv_(thetas, direction, root, of.direction)
        for one, own in zip(steps, factors, strict=True):
            if "orthogonal" in one.state:
                one.theta.add_(one.state["orthogonal"], alpha=own.orthogonal)

    def orthogonalize(self, steps: list[OneStep], spectral_limit: int | None, block: int | None) -> None:
        """Renews the O of matrices; those of one shape are computed together."""
        for shape, numbers in by_shape([one.theta for one in steps]).items():
            same = [steps[number] for number in numbers]
            kept = [one.state["orthogonal"] for one in same]
            alone = len(same) == 1 and kept[0].is_contiguous()  # then it is computed where it is kept
            mixed = kept[0].view(1, *shape) if alone else kept[0].new_empty(len(same), *shape)
            for one, matrix in zip(same, mixed, strict=True):
                torch.lerp(one.state["m9"].reshape(shape), one.grad.reshape(shape), 0.1, out=matrix)
            directions = orthogonalize_(mixed, spectral_limit, block)
            if directions is not mixed or not alone:
                for one, direction in zip(kept, directions, strict=True):
                    one.copy_(direction.reshape(one.shape))

    def describe(
        self, steps: list[OneStep], due: list[bool], sums: Tensor, shapes: Tensor, every: int
    ) -> tuple[Tensor, Sizes]:
        """What the network sees of the tensors for which it is due; what they remember is renewed.

        It is computed on the CPU, since launching so little work on a GPU would take longer.

        Args:
            steps: all tensors that are stepped, with the O of this step.
            due: for which of them the network runs.
            sums: see ``average``, [tensors, 10].
            shapes: see ``shape_features``, [tensors, 5].
            every: see ``AdamController``.

        Returns:
            The inputs of those that are due, [due, 22], and what the outputs refer to.
        """
        sums, products, kept = self.gathered(steps, sums)
        rows = torch.tensor(due, device="cpu")
        t, counts = kept.new_tensor([(one.state["step"], one.theta.numel()) for one in steps])[rows].unbind(1)
        last = Memory(kept[rows, 0], kept[rows, 1], kept[rows, 2:])
        memory, own, sizes = remember(tensor_means(sums[rows], products[rows], counts), last, t, every)
        kept[rows] = torch.cat([memory.agreement[:, None], memory.reference[:, None], memory.shared], 1)
        self.keep(steps, kept)
        return features(memory.shared, kept[:, 2:].mean(0, keepdim=True), own, shapes[rows], t), sizes

    def gathered(self, steps: list[OneStep], sums: Tensor) -> Sequence[Tensor]:
        """Sums [tensors, 10] and products [tensors, 2] on the CPU, and what is remembered, [tensors, 8]."""
        remembered = torch.stack([one.state["memory"] for one in steps])
        return torch.cat([sums, self.products(steps), remembered], 1).cpu().split([10, 2, MEMORY], 1)

    def keep(self, steps: list[OneStep], remembered: Tensor) -> None:
        """Renews what is remembered, [tensors, 8]."""
        memories = [one.state["memory"] for one in steps]
        torch._foreach_copy_(memories, list(remembered.to(memories[0].device, non_blocking=True).unbind()))

    def products(self, steps: list[OneStep]) -> Tensor:
        """The sums of each tensor's O² and m₉ · O, [tensors, 2]; zeros for a vector."""
        zero = steps[0].grad.new_zeros(2)
        pairs = [(one.state.get("orthogonal"), one.state["m9"]) for one in steps]
        return torch.stack([zero if o is None else torch.stack([dot(o, o), dot(o, m9)]) for o, m9 in pairs])

    def _average(self, steps: list[OneStep]) -> None:
        grads = [one.grad for one in steps]
        squares = list(torch._foreach_mul(grads, grads))
        for name, new, weight in zip(MEANS, (grads, grads, squares, squares), (0.1, 0.01, 0.01, 0.001), strict=True):
            torch._foreach_lerp_([one.state[name] for one in steps], new, weight)


def by_shape(tensors: Sequence[Tensor]) -> dict[tuple[int, int], list[int]]:
    """The numbers of the matrices of each shape, rows and columns."""
    found: dict[tuple[int, int], list[int]] = {}
    for number, tensor in enumerate(tensors):
        if shape := matrix_shape(tensor.shape):
            found.setdefault(shape, []).append(number)
    return found


def dot(first: Tensor, second: Tensor) -> Tensor:
    """The scalar product of two tensors of as many numbers, []."""
    return torch.dot(first.reshape(-1), second.reshape(-1))


def tensor_means(sums: Tensor, products: Tensor, counts: Tensor) -> Means:
    """Divides sums [tensors, 10] and products [tensors, 2] of tensors by their numbers of coordinates [tensors]."""
    last, grad_last, grad, theta, m9, m9_m99, m99, v99, v999, adam = (sums.T / counts).unbind()
    orthogonal, with_m9 = (products.T / counts).unbind()
    return Means(last, grad_last, grad, theta, m9, m9_m99, with_m9, m99, orthogonal, v99, v999, adam)
