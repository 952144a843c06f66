"""Whether tensors are finite, at the cost of one sum of each."""

from collections.abc import Iterable

import torch
from torch import Tensor


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every number of every tensor is finite."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        by_device.setdefault(tensor.device, []).append(tensor)
    return all(_all_finite(same) for same in by_device.values())


def _all_finite(tensors: list[Tensor]) -> bool:
    """As ``all_finite``, on one device; a finite sum proves that all numbers are finite, and is tried first."""
    if torch.stack([tensor.sum(dtype=torch.float32) for tensor in tensors]).isfinite().all():
        return True
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
