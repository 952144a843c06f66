"""The part of the controller's step that touches every coordinate: by PyTorch's operations, or by a kernel."""

import ctypes
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_l2l.rules.adam_controller.statistics import bias_corrections
from lightning_l2l.rules.fast import machine
from lightning_l2l.rules.fast.compiler import load_kernel
from lightning_l2l.rules.fast.cores import map_on_cores
from lightning_l2l.rules.fast.stepper import KeptState

MEANS = ("m9", "m99", "v99", "v999")
SUMS = 10  # of a tensor, for its statistics
PIECE = 65_536  # coordinates that are worth waking a thread


class OneStep(NamedTuple):
    """A tensor that is stepped. All its tensors lie alike in memory."""

    theta: Tensor  # in the type of the computation
    grad: Tensor
    state: KeptState


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
    m9, grad, m99, mixture, epsilon, _ = one.state["controls"]
    b9, b99, b999 = bias_corrections(one.state["step"])
    root = b999**0.5
    return Factors(m9, grad * b9, m99 * b9 / b99, b999 / b99, mixture, epsilon * root, -factor * root / b9, factor)


class Arithmetic:
    """Operations on lists of tensors, on any device."""

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

    def step(self, steps: list[OneStep], factors: list[Factors], average: bool) -> None:
        """Steps every tensor, after moving its running means on if ``average``."""
        if average:
            self._average(steps)
        thetas, grads, states = map(list, zip(*steps, strict=True))
        m9, m99, v99, v999 = ([state[name] for state in states] for name in MEANS)
        of = Factors(*zip(*factors, strict=True))  # type: ignore[arg-type]  # a list for each
        direction = torch._foreach_mul(m9, of.m9)
        torch._foreach_add_(direction, torch._foreach_mul(grads, of.grad))
        torch._foreach_add_(direction, torch._foreach_mul(m99, of.m99))
        root = torch._foreach_lerp(v999, torch._foreach_mul(v99, of.v99), of.mixture)
        torch._foreach_clamp_min_(root, torch.finfo(root[0].dtype).tiny)
        torch._foreach_sqrt_(root)
        torch._foreach_add_(root, of.epsilon)
        torch._foreach_addcdiv_(thetas, direction, root, of.direction)
        matrices = [one for one in steps if "orthogonal" in one.state]
        if matrices:
            orthogonal = [one.state["orthogonal"] for one in matrices]
            torch._foreach_add_([one.theta for one in matrices], orthogonal, alpha=factors[0].orthogonal)

    def _average(self, steps: list[OneStep]) -> None:
        grads = [one.grad for one in steps]
        squares = list(torch._foreach_mul(grads, grads))
        for name, new, weight in zip(MEANS, (grads, grads, squares, squares), (0.1, 0.01, 0.01, 0.001), strict=True):
            torch._foreach_lerp_([one.state[name] for one in steps], new, weight)


class KernelArithmetic(Arithmetic):
    """One pass over memory, in float32 on a CPU."""

    def __init__(self, kernel: ctypes.CDLL, threads: int) -> None:
        self.kernel = kernel
        self.threads = threads

    def average(self, steps: list[OneStep]) -> Tensor:
        pieces = self._pieces(steps)
        threads = min(self.threads, len(pieces))
        sums = torch.zeros(len(steps), SUMS, dtype=torch.double)

        def run(core: int) -> tuple[Tensor, Tensor]:
            own = pieces[core::threads]
            result = torch.empty(len(own), SUMS, dtype=torch.double)
            self.kernel.average(*arrays([piece[:-1] for piece in own]), ctypes.c_void_p(result.data_ptr()))
            return torch.tensor([number for number, *_ in own]), result

        for numbers, result in map_on_cores(threads, run, range(threads)):
            sums.index_add_(0, numbers, result)
        return sums.float()

    def step(self, steps: list[OneStep], factors: list[Factors], average: bool) -> None:
        pieces = self._pieces(steps)
        threads = min(self.threads, len(pieces))

        def run(core: int) -> None:
            own = pieces[core::threads]
            flat = [number for piece in own for number in factors[piece[0]]]
            self.kernel.step(*arrays(own), (ctypes.c_float * len(flat))(*flat), ctypes.c_int(average))

        map_on_cores(threads, run, range(threads))
        torch.autograd.graph.increment_version([one.theta for one in steps])  # overwritten behind autograd's back

    def _pieces(self, steps: list[OneStep]) -> list[tuple]:
        """For each piece its tensor's number, its coordinates, and the addresses of all its parts."""
        pieces = []
        for number, one in enumerate(steps):
            count = one.theta.numel()
            addresses = [tensor.data_ptr() for tensor in (one.theta, one.grad, *(one.state[name] for name in MEANS))]
            orthogonal = one.state["orthogonal"].data_ptr() if "orthogonal" in one.state else None
            size = count if self.threads == 1 else PIECE
            for first in range(0, count, size):
                moved = [address + 4 * first for address in addresses]
                last = None if orthogonal is None else orthogonal + 4 * first
                pieces.append((number, min(size, count - first), *moved, last))
        return pieces


def arrays(pieces: list[tuple]) -> list:
    """How many pieces there are, and C's arrays of their coordinates and addresses."""
    _, counts, *addresses = zip(*pieces, strict=True)
    size = len(pieces)
    return [
        ctypes.c_long(size),
        (ctypes.c_long * size)(*counts),
        *((ctypes.c_void_p * size)(*each) for each in addresses),
    ]


def arithmetic(device: torch.device, dtype: torch.dtype) -> Arithmetic:
    """The fastest one."""
    kernel = None
    if (device.type, dtype) == ("cpu", torch.float32) and machine.compiled():
        kernel = load_kernel(Path(__file__).with_name("kernel.cpp"))
    return Arithmetic() if kernel is None else KernelArithmetic(kernel, torch.get_num_threads())


def dot(first: Tensor, second: Tensor) -> Tensor:
    """The scalar product of two tensors of as many numbers, []."""
    return torch.dot(first.reshape(-1), second.reshape(-1))
