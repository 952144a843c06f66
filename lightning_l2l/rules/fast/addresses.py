"""Tensors whose addresses kernels take, which cannot tell what lies there."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_l2l.errors import InvalidInputError


def address(tensor: Tensor, count: int, dtype: torch.dtype = torch.float32) -> int:
    """The address of a tensor's numbers, which must stay alive while it is used.

    Args:
        tensor: contiguous, on the CPU, without a pending negation (``Tensor.is_neg``).
        count: how many numbers a kernel will read or write there.
        dtype: their type.

    Raises:
        InvalidInputError: the tensor is another one.
    """
    plain = tensor.dtype is dtype and tensor.is_cpu and tensor.layout is torch.strided and not tensor.is_neg()
    if plain and tensor.numel() == count and tensor.is_contiguous():
        place = tensor.data_ptr()
        if place or not count:  # a tensor that wraps others has no numbers of its own
            return place
    raise InvalidInputError(
        f"a kernel was given {described(tensor)}, but it takes {count} numbers of {dtype}, contiguous on the CPU: give "
        "those, as they were made for it."
    )


def lie_alike(tensors: Sequence[Tensor], like: Tensor, dtype: torch.dtype) -> bool:
    """Whether tensors of this type have another's shape and device, and lie alike in memory, without gaps."""
    shape, device = like.shape, like.device
    for tensor in tensors:
        if tensor.dtype is not dtype or tensor.shape != shape or tensor.device != device:
            return False
    if all([tensor.is_contiguous() for tensor in tensors]):
        return True
    strides = torch.empty_like(tensors[0]).stride()  # its own, if it has no gaps
    return all(tensor.stride() == strides for tensor in tensors)


def described(value: object) -> str:
    """A tensor's form in words."""
    if not isinstance(value, Tensor):
        return f"{type(value).__name__} {value}"
    return f"{list(value.shape)} of {str(value.dtype).removeprefix('torch.')} on {value.device}"
