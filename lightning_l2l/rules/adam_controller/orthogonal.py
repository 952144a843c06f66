"""Orthogonalised directions for matrices, by the Newton–Schulz iteration of Muon."""

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


def spectral_factor(shape: tuple[int, int], limit: int | None) -> float:
    """What keeps O's spectral norm, .3 √(larger side), from growing beyond a larger side of ``limit``."""
    return 1.0 if limit is None else min(1.0, (limit / max(*shape, 1)) ** 0.5)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Moves all singular values of matrices near to each other, and scales each matrix to a root mean square of .3.

    A matrix of zeros stays one. Nothing underflows, however small the numbers are.

    Args:
        matrices: [matrices, rows, columns].
    """
    tall = matrices.shape[1] > matrices.shape[2]
    rows = matrices.flatten(1)
    tiny = torch.finfo(rows.dtype).tiny
    rows = rows / rows.abs().amax(1, keepdim=True).clamp(min=tiny)  # so that squares do not underflow
    rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=tiny)
    wide = rows.view_as(matrices).mT.contiguous() if tall else rows.view_as(matrices)
    wide = _iterate_gram(wide) if wide.shape[2] > WIDE * wide.shape[1] else _iterate(wide)
    size = torch.linalg.vector_norm(wide.flatten(1), dim=1)[:, None, None] / rows.shape[1] ** 0.5
    wide = wide * (RMS / size.clamp(min=tiny))
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
    product = None
    for iteration in range(ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if iteration < ITERATIONS - 1:
            gram = factor @ gram @ factor
    return product @ x
