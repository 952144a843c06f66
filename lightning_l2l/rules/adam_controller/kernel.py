"""What the controller computes of whole tensors: by a kernel, in float32 on a CPU."""

import ctypes
from array import array
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_l2l.rules.adam_controller.arithmetic import Arithmetic, OneStep
from lightning_l2l.rules.adam_controller.statistics import FEATURES, SHAPE, Sizes
from lightning_l2l.rules.fast.addresses import address
from lightning_l2l.rules.fast.compiler import load_cpu_kernel
from lightning_l2l.rules.fast.cores import map_on_cores

SOURCE = Path(__file__).with_name("kernel.cpp")
SUMS = {"average": 10, "multiply": 2}  # numbers of a piece that these functions add up
PIECE = 65_536  # coordinates that are worth waking a thread
C_TYPES: dict[str, Any] = {"q": ctypes.c_int64, "f": ctypes.c_float, "d": ctypes.c_double}
FIELDS = 9  # of a piece, as kernel.cpp has them


class Kernel:
    """The compiled functions of kernel.cpp.

    All take pieces of tensors, each a row of nine integers: how many coordinates it has, and the addresses of its θ, g,
    m₉, m₉₉, v₉₉, v₉₉₉, O (0 for a vector) and of what its tensor remembers.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def sums(self, name: str, count: int, rows: Any) -> Tensor:
        """Sums over each piece, [pieces, 10] by ``average`` and [pieces, 2] by ``multiply``."""
        result = torch.empty(count, SUMS[name], dtype=torch.double, device="cpu")
        getattr(self.library, name)(ctypes.c_int64(count), rows, ctypes.c_void_p(result.data_ptr()))
        return result

    def step(self, count: int, rows: Any, controls: Any, t: Any, factor: float, average: bool) -> None:
        """Steps each piece by its six controls at its step t, after moving its running means on if ``average``."""
        self.library.step(ctypes.c_int64(count), rows, controls, t, ctypes.c_double(factor), ctypes.c_int64(average))

    def describe(
        self, rows: Any, sums: Tensor, products: Tensor, t: Tensor, shapes: Tensor, every: int
    ) -> tuple[Tensor, Sizes]:
        """As ``Arithmetic.describe``, of whole tensors at steps t [networks, tensors], 0 where it is not due."""
        widths = FEATURES, len(Sizes._fields)
        inputs, sizes = (torch.empty(*t.shape, width, dtype=torch.float32, device="cpu") for width in widths)
        of_tensors = ((sums, SUMS["average"]), (products, SUMS["multiply"]), (t, 1))
        given = [address(tensor, t.numel() * width, torch.double) for tensor, width in of_tensors]
        given.append(address(shapes, t.shape[1] * SHAPE))
        counts, results = map(ctypes.c_int64, t.shape), (inputs.data_ptr(), sizes.data_ptr())
        self.library.describe(
            *counts, rows, *map(ctypes.c_void_p, given), ctypes.c_double(every), *map(ctypes.c_void_p, results)
        )
        return inputs, Sizes(*sizes.unbind(-1))

    def described(
        self, t: list[int], rows: Any, sums: Tensor, products: Tensor, shapes: Tensor, every: int
    ) -> tuple[Tensor, Sizes]:
        """As ``Arithmetic.describe``, from sums and products on a CPU, of tensors at steps t, 0 where it is not due."""
        steps = torch.tensor([t], dtype=torch.double, device="cpu")
        inputs, sizes = self.describe(rows, sums, products, steps, shapes, every)
        chosen = slice(None) if all(t) else steps[0] > 0
        return inputs[0, chosen], Sizes(*(size[0, chosen] for size in sizes))


class KernelArithmetic(Arithmetic):
    """Large tensors are split into pieces, for as many threads as torch has."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def average(self, steps: list[OneStep]) -> Tensor:
        return self._sums("average", steps)

    def describe(
        self, steps: list[OneStep], due: list[bool], sums: Tensor, shapes: Tensor, every: int
    ) -> tuple[Tensor, Sizes]:
        t, rows = steps_due(steps, due), integers([one.row for one in steps])
        return self.kernel.described(t, rows, sums, self._sums("multiply", steps), shapes, every)

    def step(self, steps: list[OneStep], factor: float, average: bool) -> None:
        def run(numbers: list[int], rows: ctypes.Array) -> None:
            count = len(numbers)
            states = [steps[number].state for number in numbers]
            controls = numbers_of("f", chain.from_iterable([state["controls"] for state in states]))
            t = numbers_of("d", [state["step"] for state in states])
            self.kernel.step(count, rows, controls, t, factor, average)

        self._on_cores(run, steps)
        torch.autograd.graph.increment_version([one.theta for one in steps])  # overwritten behind autograd's back

    def _sums(self, name: str, steps: list[OneStep]) -> Tensor:
        """Sums over each tensor, [tensors, ...]."""

        def run(numbers: list[int], rows: ctypes.Array) -> tuple[list[int], Tensor]:
            return numbers, self.kernel.sums(name, len(numbers), rows)

        parts = self._on_cores(run, steps)
        if len(parts) == 1 and len(parts[0][0]) == len(steps):
            return parts[0][1]
        sums = torch.zeros(len(steps), SUMS[name], dtype=torch.double, device="cpu")
        for numbers, part in parts:
            sums.index_add_(0, torch.tensor(numbers, device="cpu"), part)
        return sums

    def _on_cores(self, function: Callable[[list[int], ctypes.Array], Any], steps: list[OneStep]) -> list:
        """Calls a function on each core with the numbers of the tensors of its pieces, and the pieces' rows."""
        if (threads := torch.get_num_threads()) == 1:
            return [function(list(range(len(steps))), integers([one.row for one in steps]))]
        pieces = []
        for number, one in enumerate(steps):
            count, *addresses, memory = one.row
            for first in range(0, count, PIECE):
                moved = [address and address + 4 * first for address in addresses]
                pieces.append((number, [min(PIECE, count - first), *moved, memory]))
        threads = min(threads, len(pieces))
        own = [pieces[core::threads] for core in range(threads)]
        numbers = [[number for number, _ in each] for each in own]
        rows = [integers([row for _, row in each]) for each in own]
        return map_on_cores(threads, function, numbers, rows)


def steps_due(steps: list[OneStep], due: list[bool]) -> list[int]:
    """The step of each tensor, 0 where the network is not due."""
    return [one.state["step"] * own for one, own in zip(steps, due, strict=True)]


def integers(rows: Iterable[Iterable[int]]) -> ctypes.Array:
    """C's array of the numbers of all rows."""
    return numbers_of("q", chain.from_iterable(rows))


def numbers_of(code: str, numbers: Iterable[float]) -> ctypes.Array:
    """C's array of numbers of a type, by its code in ``array``; ctypes itself would take several times as long."""
    kept = array(code, list(numbers))
    return (C_TYPES[code] * len(kept)).from_buffer(kept)


def kernel_for(device: torch.device, dtype: torch.dtype) -> Kernel | None:
    """The kernel, if this machine has one for these tensors."""
    library = load_cpu_kernel(SOURCE, device, dtype)
    return None if library is None else Kernel(library)
