"""What rounding takes from half-precision parameters, kept so that small steps add up."""

import math

import torch
from torch import Tensor

PARTS = 2**16  # of the distance between neighbouring numbers of the parameter's type; remainders are counted in them


def exact(theta: Tensor, remainder: Tensor | None, dtype: torch.dtype) -> Tensor:
    """θ with what rounding took from it, in the type of the computation.

    Args:
        theta: parameters, in half precision where there is a remainder.
        remainder: as ``round_into`` left it, int16; None where none is kept.
        dtype: the result's.
    """
    if remainder is None:
        return theta.to(dtype)
    return (remainder * unit(theta)).add_(theta).to(dtype)


def round_into(theta: Tensor, remainder: Tensor | None, moved: Tensor) -> None:
    """Overwrites θ by its new value, rounded, and the remainder, if any, by the rest; ``moved`` is used up."""
    theta.copy_(moved)
    if remainder is None:
        return
    parts = moved.sub_(theta).div_(unit(theta))
    remainder.copy_(parts.round_().clamp_(-PARTS // 2, PARTS // 2 - 1))


def unit(theta: Tensor) -> Tensor:
    """What one part is worth beside each number; relative to it, so weights that others overwrite stay as they are."""
    limits = torch.finfo(theta.dtype)
    smallest = math.frexp(limits.tiny)[1]
    exponent = torch.frexp(theta.float()).exponent.masked_fill_(theta == 0, smallest).clamp_(min=smallest)
    return torch.ldexp(torch.full_like(exponent, limits.eps / 2 / PARTS, dtype=torch.float32), exponent)
