"""What the controller computes of whole tensors: by a kernel, in float32 on a CPU."""

import ctypes
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from lightning_l2l.rules.adam_controller.arithmetic import Arithmetic, Factors, OneStep
from lightning_l2l.rules.adam_controller.statistics import FEATURES, Sizes
from lightning_l2l.rules.fast import machine
from lightning_l2l.rules.fast.compiler import load_kernel
from lightning_l2l.rules.fast.cores import map_on_cores

SOURCE = Path(__file__).with_name("kernel.cpp")
SUMS, PRODUCTS, SIZES = 10, 2, 4  # numbers of a tensor that the kernel writes
PIECE = 65_536  # coordinates that are worth waking a thread
FIELDS = 9  # of a piece, as kernel.cpp has them


class Kernel:
    """The compiled functions of kernel.cpp.

    All take pieces of tensors, each a row of integers: how many coordinates it has, and the addresses of its θ, g, m₉,
    m₉₉, v₉₉, v₉₉₉, O (0 for a vector) and of what its tensor remembers.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def sums(self, name: str, rows: list[int]) -> Tensor:
        """Sums over each piece, [pieces, 10] by ``average`` and [pieces, 2] by ``multiply``."""
        count = len(rows) // FIELDS
        result = torch.empty(count, SUMS if name == "average" else PRODUCTS, dtype=torch.double)
        getattr(self.library, name)(ctypes.c_int64(count), integers(rows), pointer(result))
        return result

    def step(self, rows: list[int], factors: list[float], average: bool) -> None:
        """Steps each piece by its eight factors, after moving its running means on if ``average``."""
        count = ctypes.c_int64(len(rows) // FIELDS)
        self.library.step(count, integers(rows), (ctypes.c_float * len(factors))(*factors), ctypes.c_int64(average))

    def describe(
        self, rows: list[int], sums: Tensor, products: Tensor, t: Tensor, shapes: Tensor, every: int
    ) -> tuple[Tensor, Sizes]:
        """As ``Arithmetic.describe``, of whole tensors at steps t [networks, tensors], 0 where it is not due."""
        inputs, sizes = torch.empty(*t.shape, FEATURES), torch.empty(*t.shape, SIZES)
        tensors = (pointer(tensor) for tensor in (sums, products, t, shapes))
        counts = map(ctypes.c_int64, t.shape)
        outputs = pointer(inputs), pointer(sizes)
        self.library.describe(*counts, integers(rows), *tensors, ctypes.c_double(every), *outputs)
        *others, vanished = sizes.unbind(-1)
        return inputs, Sizes(*others, vanished > 0)


class KernelArithmetic(Arithmetic):
    """Large tensors are split into pieces, for several threads."""

    def __init__(self, kernel: Kernel, threads: int) -> None:
        self.kernel = kernel
        self.threads = threads

    def average(self, steps: list[OneStep]) -> Tensor:
        return self._sums("average", steps)

    def describe(
        self, steps: list[OneStep], due: list[bool], sums: Tensor, shapes: Tensor, every: int
    ) -> tuple[Tensor, Sizes]:
        t = torch.tensor([[one.state["step"] * own for one, own in zip(steps, due, strict=True)]], dtype=torch.double)
        inputs, sizes = self.kernel.describe(rows_of(steps), sums, self._sums("multiply", steps), t, shapes, every)
        chosen = slice(None) if all(due) else torch.tensor(due)
        return inputs[0, chosen], Sizes(*(size[0, chosen] for size in sizes))

    def step(self, steps: list[OneStep], factors: list[Factors], average: bool) -> None:
        def run(numbers: list[int], rows: list[int]) -> None:
            self.kernel.step(rows, list(chain.from_iterable([factors[number] for number in numbers])), average)

        self._on_cores(run, steps)
        torch.autograd.graph.increment_version([one.theta for one in steps])  # overwritten behind autograd's back

    def _sums(self, name: str, steps: list[OneStep]) -> Tensor:
        """Sums over each tensor, [tensors, ...]."""
        parts = self._on_cores(lambda numbers, rows: (numbers, self.kernel.sums(name, rows)), steps)
        if self.threads == 1:
            return parts[0][1]
        sums = torch.zeros(len(steps), parts[0][1].shape[1], dtype=torch.double)
        for numbers, part in parts:
            sums.index_add_(0, torch.tensor(numbers), part)
        return sums

    def _on_cores(self, function: Callable[[list[int], list[int]], object], steps: list[OneStep]) -> list:
        """Calls a function on each core with the numbers of the tensors of its pieces, and the pieces' rows."""
        if self.threads == 1:
            return [function(list(range(len(steps))), rows_of(steps))]
        pieces = []
        for number, one in enumerate(steps):
            count, *addresses, memory = one.row
            for first in range(0, count, PIECE):
                moved = [address and address + 4 * first for address in addresses]
                pieces.append((number, (min(PIECE, count - first), *moved, memory)))
        threads = min(self.threads, len(pieces))
        own = [pieces[core::threads] for core in range(threads)]
        numbers = [[number for number, _ in each] for each in own]
        rows = [[value for _, row in each for value in row] for each in own]
        return map_on_cores(threads, function, numbers, rows)


def rows_of(steps: list[OneStep]) -> list[int]:
    """The pieces that are whole tensors."""
    return list(chain.from_iterable([one.row for one in steps]))


def integers(values: list[int]) -> ctypes.Array:
    return (ctypes.c_int64 * len(values))(*values)


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def kernel_for(device: torch.device, dtype: torch.dtype) -> Kernel | None:
    """The kernel, if this machine has one for these tensors."""
    if (device.type, dtype) != ("cpu", torch.float32) or not machine.compiled():
        return None
    library = load_kernel(SOURCE)
    return library and Kernel(library)


def arithmetic(device: torch.device, dtype: torch.dtype) -> Arithmetic:
    """The fastest one."""
    kernel = kernel_for(device, dtype)
    return Arithmetic() if kernel is None else KernelArithmetic(kernel, torch.get_num_threads())
