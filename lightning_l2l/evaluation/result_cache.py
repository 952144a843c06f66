"""A cache of slow results, keyed by what they depend on."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


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
            return torch.from_numpy(np.load(file, allow_pickle=False))
        except (OSError, ValueError, EOFError):  # missing, or truncated while it was written
            result = compute().cpu()
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as part:
            np.save(part, result.numpy())
        os.replace(part.name, file)
        return result
