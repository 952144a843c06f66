"""What the controller computes of whole tensors: by kernels in Triton, in float32 on an NVIDIA GPU.

Triton comes with PyTorch for such GPUs.

A GPU waits for Python, so all tensors are processed by one launch. Each of its programs works on a block of
coordinates, finds what belongs to them by address, as in kernel.cpp, and adds up nothing that another one does: sums
are the same in every run.
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache, lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_l2l.errors import first_line
from lightning_l2l.rules.adam_controller.arithmetic import Arithmetic, OneStep, by_shape
from lightning_l2l.rules.adam_controller.kernel import integers, kernel_for, steps_due
from lightning_l2l.rules.adam_controller.orthogonal import orthogonalize_
from lightning_l2l.rules.adam_controller.statistics import Sizes
from lightning_l2l.rules.fast.cuda_graph import CudaGraph

BLOCK = 1024  # coordinates of a program
ROW = tl.constexpr(8)  # addresses of a tensor: θ, g, m₉, m₉₉, v₉₉, v₉₉₉, O (0 for a vector) and its memory
CONTROLS = tl.constexpr(6)
LOG9, LOG99, LOG999 = (tl.constexpr(math.log(decay)) for decay in (0.9, 0.99, 0.999))
SUMS = tl.constexpr(16)  # numbers of a block, ten of them or two in use
SMALLEST = tl.constexpr(torch.finfo(torch.float32).tiny)
ADDED = 128  # blocks whose sums are added at once
REPEATED = 3  # the time that matrices of the same shapes come together, when their work is recorded
MOST = 2**29  # bytes that a recording may take
log = logging.getLogger(__name__)


@triton.jit
def _write(at):
    tl.store(at, 1.0)


@triton.jit
def _place(blocks, counts, program, BLOCK: tl.constexpr):
    """The number of a program's tensor, its coordinates, and which of them exist."""
    tensor = tl.load(blocks + 2 * program)
    offsets = tl.load(blocks + 2 * program + 1) * BLOCK + tl.arange(0, BLOCK)
    return tensor, offsets, offsets < tl.load(counts + tensor)


@triton.jit
def _at(rows, tensor, field: tl.constexpr, offsets):
    return tl.load(rows + tensor * ROW + field).to(tl.pointer_type(tl.float32)) + offsets


@triton.jit
def _means(rows, tensor, offsets, exists, grad, averages: tl.constexpr):
    """m₉, m₉₉, v₉₉ and v₉₉₉, moved on if ``averages``."""
    m9 = tl.load(_at(rows, tensor, 2, offsets), exists, 0.0)
    m99 = tl.load(_at(rows, tensor, 3, offsets), exists, 0.0)
    v99 = tl.load(_at(rows, tensor, 4, offsets), exists, 0.0)
    v999 = tl.load(_at(rows, tensor, 5, offsets), exists, 0.0)
    if averages:
        m9 += 0.1 * (grad - m9)
        m99 += 0.01 * (grad - m99)
        v99 += 0.01 * (grad * grad - v99)
        v999 += 0.001 * (grad * grad - v999)
        tl.store(_at(rows, tensor, 2, offsets), m9, exists)
        tl.store(_at(rows, tensor, 3, offsets), m99, exists)
        tl.store(_at(rows, tensor, 4, offsets), v99, exists)
        tl.store(_at(rows, tensor, 5, offsets), v999, exists)
    return m9, m99, v99, v999


@triton.jit
def _bias_correction(t, LOG: tl.constexpr):
    """1 − βᵗ, by the logarithm of β, and by its series where a difference would lose digits."""
    x = t.to(tl.float32) * LOG  # many GPUs are slow in float64
    series = 1 + x / 5 * (1 + x / 6 * (1 + x / 7 * (1 + x / 8)))
    series = -x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * series)))
    return tl.where(x > -0.5, series, 1 - tl.exp(x))


@triton.jit(do_not_specialize=["t"])
def _step(rows, blocks, counts, controls, ahead, t, factor, averages: tl.constexpr, BLOCK: tl.constexpr):
    """Steps every tensor, as in ``factors_of``; a tensor's clock is at t + ahead."""
    tensor, offsets, exists = _place(blocks, counts, tl.program_id(0), BLOCK)
    at_theta = _at(rows, tensor, 0, offsets)
    grad = tl.load(_at(rows, tensor, 1, offsets), exists, 0.0)
    m9, m99, v99, v999 = _means(rows, tensor, offsets, exists, grad, averages)
    own_t = t + tl.load(ahead + tensor)
    b9, b99, b999 = _bias_correction(own_t, LOG9), _bias_correction(own_t, LOG99), _bias_correction(own_t, LOG999)
    root = tl.sqrt(b999)
    of = controls + tensor * CONTROLS
    direction = tl.load(of) * m9 + tl.load(of + 1) * b9 * grad + tl.load(of + 2) * (b9 / b99) * m99
    mixed = v999 + tl.load(of + 3) * (b999 / b99 * v99 - v999)
    below = tl.sqrt(tl.maximum(mixed, SMALLEST)) + tl.load(of + 4) * root
    theta = tl.load(at_theta, exists, 0.0) - factor * root / b9 * direction / below
    if tl.load(rows + tensor * ROW + 6) != 0:
        theta -= factor * tl.load(of + 5) * tl.load(_at(rows, tensor, 6, offsets), exists, 0.0)
    tl.store(at_theta, theta, exists)


@triton.jit
def _average(rows, blocks, counts, sums, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    tensor, offsets, exists = _place(blocks, counts, program, BLOCK)
    theta = tl.load(_at(rows, tensor, 0, offsets), exists, 0.0)
    grad = tl.load(_at(rows, tensor, 1, offsets), exists, 0.0)
    last = tl.load(_at(rows, tensor, 2, offsets), exists, 0.0)
    m9, m99, v99, v999 = _means(rows, tensor, offsets, exists, grad, True)
    own = sums + program * SUMS
    tl.store(own, tl.sum(last * last))
    tl.store(own + 1, tl.sum(grad * last))
    tl.store(own + 2, tl.sum(grad * grad))
    tl.store(own + 3, tl.sum(theta * theta))
    tl.store(own + 4, tl.sum(m9 * m9))
    tl.store(own + 5, tl.sum(m9 * m99))
    tl.store(own + 6, tl.sum(m99 * m99))
    tl.store(own + 7, tl.sum(v99))
    tl.store(own + 8, tl.sum(v999))
    tl.store(own + 9, tl.sum(m9 * m9 / tl.maximum(v99, SMALLEST)))


@triton.jit
def _multiply(rows, blocks, counts, sums, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    tensor, offsets, exists = _place(blocks, counts, program, BLOCK)
    squares, products = 0.0, 0.0
    if tl.load(rows + tensor * ROW + 6) != 0:
        direction = tl.load(_at(rows, tensor, 6, offsets), exists, 0.0)
        m9 = tl.load(_at(rows, tensor, 2, offsets), exists, 0.0)
        squares, products = tl.sum(direction * direction), tl.sum(direction * m9)
    tl.store(sums + program * SUMS, squares)
    tl.store(sums + program * SUMS + 1, products)


@triton.jit
def _add(sums, bounds, totals, ADDED: tl.constexpr):
    """Adds up the sums of a tensor's blocks."""
    tensor = tl.program_id(0)
    begin, end = tl.load(bounds + tensor), tl.load(bounds + tensor + 1)
    columns = tl.arange(0, SUMS)
    total = tl.zeros([SUMS], tl.float64)
    for first in range(begin, end, ADDED):
        blocks = first + tl.arange(0, ADDED)
        values = tl.load(sums + blocks[:, None] * SUMS + columns[None, :], (blocks < end)[:, None], 0.0)
        total += tl.sum(values.to(tl.float64), 0)
    tl.store(totals + tensor * SUMS + columns, total.to(tl.float32))


class GpuArithmetic(Arithmetic):
    """All tensors by one launch of each kernel, and all that belongs to O by one launch of a CUDA graph."""

    def __init__(self) -> None:
        self.tables: dict[tuple, tuple[list, Tensor]] = {}  # numbers of a row for each tensor, here and on the GPU
        self.recordings: dict[tuple, CudaGraph] = {}
        self.seen: Counter[tuple] = Counter()
        self.kernel = kernel_for(torch.device("cpu"), torch.float32)

    def average(self, steps: list[OneStep]) -> Tensor:
        return self._sums(_average, steps)[:, :10]

    def step(self, steps: list[OneStep], factor: float, average: bool) -> None:
        blocks, counts, _ = self._blocks(steps)
        t = steps[0].state["step"]
        controls = self._table(steps, [[*one.state["controls"]] for one in steps], torch.float32)
        ahead = self._table(steps, [[one.state["step"] - t] for one in steps], torch.int64)
        rows = self._rows(steps)
        with _on(counts.device):
            _step[(len(blocks),)](rows, blocks, counts, controls, ahead, t, factor, averages=average, BLOCK=BLOCK)
        torch.autograd.graph.increment_version([one.theta for one in steps])  # overwritten behind autograd's back

    def products(self, steps: list[OneStep]) -> Tensor:
        return self._sums(_multiply, steps)[:, :2]

    def orthogonalize(self, steps: list[OneStep], spectral_limit: int | None, block: int | None) -> None:
        if not steps:
            return
        kept = [one.state["orthogonal"] for one in steps]
        mixed = torch._foreach_lerp([one.state["m9"] for one in steps], [one.grad for one in steps], 0.1)
        key = tuple((matrix.shape, matrix.stride()) for matrix in mixed), spectral_limit, block

        def function(matrices: Sequence[Tensor]) -> list[Tensor]:
            return orthogonal(matrices, spectral_limit, block)

        self.seen[key] += 1
        if self.seen[key] == REPEATED and fits(mixed):
            with suppress(RuntimeError):  # it is launched one by one, then
                self.recordings[key] = CudaGraph(function, mixed)
        torch._foreach_copy_(kept, self.recordings[key].replay(mixed) if key in self.recordings else function(mixed))

    def describe(
        self, steps: list[OneStep], due: list[bool], sums: Tensor, shapes: Tensor, every: int
    ) -> tuple[Tensor, Sizes]:
        if self.kernel is None:
            return super().describe(steps, due, sums, shapes, every)
        sums, products, kept = (part.contiguous() for part in self.gathered(steps, sums))
        rows = [[one.row[0], *[0] * 7, row.data_ptr()] for one, row in zip(steps, kept, strict=True)]
        numbers = integers(rows), sums.double(), products.double()
        described = self.kernel.described(steps_due(steps, due), *numbers, shapes, every)
        self.keep(steps, kept)
        return described

    def _sums(self, kernel: Any, steps: list[OneStep]) -> Tensor:
        """Sums over each tensor, [tensors, 16]."""
        blocks, counts, bounds = self._blocks(steps)
        shapes = [(len(table), SUMS.value) for table in (blocks, counts)]
        sums, totals = (torch.empty(shape, dtype=torch.float32, device=counts.device) for shape in shapes)
        with _on(counts.device):
            kernel[(len(blocks),)](self._rows(steps), blocks, counts, sums, BLOCK=BLOCK)
            _add[(len(counts),)](sums, bounds, totals, ADDED=ADDED)
        return totals

    def _rows(self, steps: list[OneStep]) -> Tensor:
        """The addresses of each tensor's parts, [tensors, 8]; they are often those of the last step."""
        return self._table(steps, [one.row[1:] for one in steps], torch.int64)

    def _table(self, steps: list[OneStep], numbers: list[list], dtype: torch.dtype) -> Tensor:
        """A row of numbers for each tensor, on the GPU; they are copied to it if they have changed since last time."""
        device = steps[0].theta.device
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
        key = id(steps[0].state), len(steps), len(numbers[0]), stream
        last, table = self.tables.get(key, ([], None))
        if table is None or numbers != last:
            table = torch.tensor(numbers, dtype=dtype, device="cpu").to(device, non_blocking=True)
            self.tables[key] = numbers, table
        return table

    def _blocks(self, steps: list[OneStep]) -> tuple[Tensor, Tensor, Tensor]:
        return _blocks_of(tuple(one.theta.numel() for one in steps), BLOCK, steps[0].theta.device)


def orthogonal(matrices: Sequence[Tensor], spectral_limit: int | None, block: int | None) -> list[Tensor]:
    """The O of each of these, in its shape; those of one shape are computed together."""
    found = list(matrices)
    for shape, numbers in by_shape(matrices).items():
        same = torch.stack([matrices[number].reshape(shape) for number in numbers])
        for number, direction in zip(numbers, orthogonalize_(same, spectral_limit, block), strict=True):
            found[number] = direction.reshape(matrices[number].shape)
    return found


def fits(matrices: Sequence[Tensor]) -> bool:
    """Whether a recording is worth the memory that it takes: large matrices keep a GPU busy anyway."""
    bytes_taken = 8 * sum(matrix.nbytes for matrix in matrices)
    device = matrices[0].device
    return device.type == "cuda" and bytes_taken < min(MOST, torch.cuda.mem_get_info(device)[0])


@cache
def launches(device: torch.device) -> bool:
    """Whether Triton can launch a kernel there; the first launch needs a C compiler and Python's headers."""
    try:
        with _on(device):
            _write[(1,)](torch.empty(1, dtype=torch.float32, device=device))
    except Exception as error:  # of a compiler, a driver or Triton itself
        log.warning("Rules run without kernels on %s: Triton cannot launch any (%s).", device, first_line(error))
        return False
    return True


@lru_cache(maxsize=64)
def _blocks_of(counts: tuple[int, ...], size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Splits tensors of so many coordinates into blocks of a size.

    Returns:
        The number of each block's tensor and its own in that tensor, [blocks, 2]; the tensors' coordinates, [tensors];
        and the first block of each tensor and the end of the last, [tensors + 1].
    """
    blocks, bounds = [], [0]
    for number, count in enumerate(counts):
        blocks += [(number, block) for block in range(-(-count // size))]
        bounds.append(len(blocks))
    table = torch.tensor(blocks, dtype=torch.int64).view(-1, 2)
    return table.to(device), torch.tensor(counts).to(device), torch.tensor(bounds).to(device)


def _on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current GPU; its interpreter, which tests use, runs on a CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
