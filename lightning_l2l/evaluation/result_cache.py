"""A cache of slow results, keyed by what they depend on."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_l2l.optimizees.sources.npz import declared_size
from lightning_l2l.whole_files import remove_leftovers, replacing

LARGEST = 1 << 30  # bytes of a file; results are curves


class ResultCache:
    """A folder of tensors, each under a digest of what it depends on; safe for concurrent processes.

    Args:
        folder: where results are kept; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, compute: Callable[[], Tensor], *depends_on: object) -> Tensor:
        """Returns the cached result for these dependencies, or calls ``compute``.

        Args:
            compute: the slow function, which returns a tensor on any device.
            depends_on: everything that the result depends on, as printed by ``repr``.
        """
        if self.folder is None:
            return compute()
        digest = hashlib.sha256(repr(depends_on).encode()).hexdigest()[:16]
        file = self.folder / f"{digest}.npy"
        try:
            return _read(file)
        except Exception:  # missing, or bytes that may mean anything, and so raise anything
            result = compute().cpu()
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder, age=3600)  # others may be writing there
        with replacing(file) as part:
            part.write_bytes(_as_bytes(result))
        return result


def _as_bytes(result: Tensor) -> bytes:
    """A .npy, and a digest of it."""
    stream = io.BytesIO()
    np.save(stream, result.numpy())
    return stream.getvalue() + hashlib.sha256(stream.getvalue()).digest()


def _read(file: Path) -> Tensor:
    """Reads what ``_as_bytes`` made; files of earlier versions have no digest.

    Raises:
        Exception: the file is not there, is too large, declares another size than it has, or is damaged.
    """
    size = file.stat().st_size
    if size > LARGEST:
        raise ValueError(f"{file} has {size} bytes")
    stream = io.BytesIO(file.read_bytes())
    end = declared_size(stream)
    array, digest = stream.getbuffer()[:end], bytes(stream.getbuffer()[end:])
    if len(array) != end or (digest and digest != hashlib.sha256(array).digest()):
        raise ValueError(f"{file} is damaged")
    stream.seek(0)
    return torch.from_numpy(np.load(stream, allow_pickle=False))
