"""Orthogonalised directions for matrices, by the Newton–Schulz iteration of Muon."""

import torch
from torch import Tensor

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the quintic that Muon iterates (K. Jordan, 2024)
ITERATIONS = 5
RMS = 0.3  # of the result
WIDE = 1.5  # sides' ratio above which iterating on the Gram matrix takes fewer multiplications


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
        matrices: [..., rows, columns].
    """
    wide = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    tiny = torch.finfo(wide.dtype).tiny
    wide = wide / wide.abs().amax((-2, -1), keepdim=True).clamp(min=tiny)  # so that squares do not underflow
    wide = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp(min=tiny)
    iterate = _iterate_gram if wide.shape[-1] > WIDE * wide.shape[-2] else _iterate
    result = iterate(wide)
    size = result.square().mean((-2, -1), keepdim=True).sqrt()
    result = result * (RMS / size.clamp(min=tiny))
    return result.mT if wide is not matrices and matrices.shape[-2] > matrices.shape[-1] else result


def _iterate(x: Tensor) -> Tensor:
    """X ← aX + (bA + cA²)X with A = XXᵀ, five times."""
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def _iterate_gram(x: Tensor) -> Tensor:
    """As ``_iterate``: X is multiplied only once, by the product of all factors aI + bA + cA², which commute."""
    a, b, c = COEFFICIENTS
    gram = x @ x.mT
    product = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
    for iteration in range(ITERATIONS):
        factor = b * gram + c * gram @ gram
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor @ product if iteration else factor
        if iteration < ITERATIONS - 1:
            gram = factor @ gram @ factor
    return product @ x
