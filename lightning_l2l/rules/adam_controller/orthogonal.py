"""Orthogonalised directions for matrices, by the Newton–Schulz iteration of Muon."""

import ctypes
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from lightning_l2l.rules.fast.addresses import address
from lightning_l2l.rules.fast.compiler import load_cpu_kernel
from lightning_l2l.rules.fast.cores import map_on_cores

SOURCE = Path(__file__).with_name("orthogonal.cpp")
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the quintic that Muon iterates (K. Jordan, 2024)
ITERATIONS = 5
RMS = 0.3  # of the result
WIDE = 3  # sides' ratio above which iterating on the Gram matrix is faster
WORTHWHILE = 2**19  # coordinates times smaller side that are worth waking a thread
VANISHED = 1e-6  # share of a matrix's norm below which a part of it counts as zero


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The rows and columns of a parameter tensor seen as a matrix [out, rest]; None if it is a vector or a number."""
    if len(shape) < 2:
        return None
    columns = 1
    for side in shape[1:]:
        columns *= side
    return shape[0], columns


def orthogonalize_(matrices: Tensor, spectral_limit: int | None = None, block: int | None = None) -> Tensor:
    """Moves all singular values of matrices near to each other, and scales each matrix to a root mean square of .3.

    A matrix of zeros stays one. Nothing underflows, however small the numbers are.

    Args:
        matrices: [matrices, rows, columns], contiguous; they are overwritten.
        spectral_limit: the larger side beyond which the spectral norm, .3 √(larger side), does not grow.
        block: the largest smaller side of what is computed as one matrix. A larger one is split along that side, and
            each part is treated as a matrix of its own, which takes time in proportion to the matrix's size.

    Returns:
        The results, [matrices, rows, columns].

    Raises:
        InvalidInputError: a kernel would compute them, but they are not contiguous.
    """
    small, large = sorted(matrices.shape[1:])
    rms = RMS if spectral_limit is None else RMS * min(1.0, (spectral_limit / large) ** 0.5)
    parts = 1 if block is None else max(-(-small // block), 1)
    if (kernel := load_cpu_kernel(SOURCE, matrices.device, matrices.dtype)) is not None:
        return _by_kernel(kernel, matrices, rms, parts)
    rows = matrices.flatten(1)
    tiny = torch.finfo(rows.dtype).tiny
    largest = torch.maximum(rows.amax(1, keepdim=True), -rows.amin(1, keepdim=True))
    rows /= largest.clamp(min=tiny)  # so that squares do not underflow
    rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=tiny)
    tall = matrices.shape[1] > small
    wide = matrices.mT.contiguous() if tall else matrices
    if small % parts:
        wide = torch.cat([_orthogonal(part, rms) for part in wide.tensor_split(parts, 1)], 1)
    else:  # all parts are equal
        wide = _orthogonal(wide.reshape(-1, small // parts, large), rms).view_as(wide)
    return wide.mT if tall else wide


def _by_kernel(kernel: ctypes.CDLL, matrices: Tensor, rms: float, parts: int) -> Tensor:
    """Does all of it in place, the parts of all matrices on all cores."""
    count, *shape = matrices.shape
    norms = torch.empty(count * parts, dtype=torch.double, device="cpu")
    place, at_norms = ctypes.c_void_p(address(matrices, matrices.numel())), ctypes.c_void_p(norms.data_ptr())
    sides = [ctypes.c_long(number) for number in (*shape, parts)]
    kernel.norms(place, ctypes.c_long(count), *sides, at_norms)
    worthwhile = matrices.numel() * min(shape) // WORTHWHILE
    threads = max(min(torch.get_num_threads(), len(norms), worthwhile), 1)
    bounds = [ctypes.c_long(len(norms) * core // threads) for core in range(threads + 1)]

    def run(begin: ctypes.c_long, end: ctypes.c_long) -> None:
        kernel.orthogonalize(place, *sides, at_norms, begin, end, ctypes.c_float(rms))

    map_on_cores(threads, run, bounds[:-1], bounds[1:])
    return matrices


def _orthogonal(x: Tensor, rms: float) -> Tensor:
    """Orthogonalises parts of matrices of norm 1; a part that has almost nothing of that norm becomes zero."""
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    x = x / norm.clamp(min=VANISHED)
    x = _iterate_gram(x) if x.shape[2] > WIDE * x.shape[1] else _iterate(x)
    size = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) / (x.shape[1] * x.shape[2]) ** 0.5
    return x * (rms / size.clamp(min=torch.finfo(x.dtype).tiny) * (norm > VANISHED))


def _iterate(x: Tensor) -> Tensor:
    """X ← aX + (bA + cA²)X with A = XXᵀ, five times; [matrices, rows, columns]."""
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _iterate_gram(x: Tensor) -> Tensor:
    """As ``_iterate``: X is multiplied only once, by the product of all factors aI + bA + cA², which commute."""
    a, b, c = COEFFICIENTS
    gram = x @ x.mT
    factors: list[Tensor] = []
    for _ in range(ITERATIONS):
        if factors:
            gram = factors[-1] @ gram @ factors[-1]
        factors.append(torch.baddbmm(gram, gram, gram, beta=b, alpha=c))
        factors[-1].diagonal(dim1=-2, dim2=-1).add_(a)
    return reduce(torch.matmul, factors) @ x
