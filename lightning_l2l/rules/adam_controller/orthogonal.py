"""Orthogonalised directions for matrices, by the Newton–Schulz iteration of Muon."""

from functools import reduce

import torch
from torch import Tensor

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the quintic that Muon iterates (K. Jordan, 2024)
ITERATIONS = 5
RMS = 0.3  # of the result
WIDE = 3  # sides' ratio above which iterating on the Gram matrix is faster


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The rows and columns of a parameter tensor seen as a matrix [out, rest]; None if it is a vector or a number."""
    if len(shape) < 2:
        return None
    columns = 1
    for side in shape[1:]:
        columns *= side
    return shape[0], columns


def orthogonalize_(matrices: Tensor, spectral_limit: int | None = None) -> Tensor:
    """Moves all singular values of matrices near to each other, and scales each matrix to a root mean square of .3.

    A matrix of zeros stays one. Nothing underflows, however small the numbers are.

    Args:
        matrices: [matrices, rows, columns], contiguous; they are overwritten.
        spectral_limit: the larger side beyond which the spectral norm, .3 √(larger side), does not grow.

    Returns:
        The results, [matrices, rows, columns].
    """
    tall = matrices.shape[1] > matrices.shape[2]
    rows = matrices.flatten(1)
    tiny = torch.finfo(rows.dtype).tiny
    largest = torch.maximum(rows.amax(1, keepdim=True), -rows.amin(1, keepdim=True))
    rows /= largest.clamp(min=tiny)  # so that squares do not underflow
    rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=tiny)
    wide = matrices.mT.contiguous() if tall else matrices
    wide = _iterate_gram(wide) if wide.shape[2] > WIDE * wide.shape[1] else _iterate(wide)
    size = torch.linalg.vector_norm(wide.flatten(1), dim=1)[:, None, None] / rows.shape[1] ** 0.5
    held = 1.0 if spectral_limit is None else min(1.0, (spectral_limit / wide.shape[2]) ** 0.5)
    wide *= RMS * held / size.clamp(min=tiny)
    return wide.mT if tall else wide


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
