"""Digests of numbers, by which they are known again."""

import hashlib

import numpy as np
import torch
from torch import Tensor


def content(tensor: Tensor) -> str:
    """A digest of a tensor's type, shape and numbers."""
    numbers = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()  # NumPy has no bfloat16
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(numbers).hexdigest()}"


def row_digests(rows: Tensor) -> Tensor:
    """A digest of 64 bits of each row: its words times fixed random numbers, summed and mixed (multilinear hashing).

    Args:
        rows: [M, ...].

    Returns:
        [M], int64.
    """
    data = rows.reshape(len(rows), -1).contiguous().cpu().view(torch.uint8).numpy()
    words = np.pad(data, ((0, 0), (0, -data.shape[1] % 8))).view(np.uint64)
    sums = words @ np.random.default_rng(0).integers(2**64, size=words.shape[1], dtype=np.uint64)
    sums ^= sums >> np.uint64(32)
    sums *= np.uint64(0xD6E8FEB86659FD93)  # odd, so that different sums stay different
    sums ^= sums >> np.uint64(32)
    return torch.from_numpy(sums.view(np.int64))
