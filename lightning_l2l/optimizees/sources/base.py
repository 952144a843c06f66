"""Where examples come from, and what minibatches are drawn from."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

SPLIT_SEED = 0  # of the permutations that split examples, which may be sorted


class Source(ABC):
    """Where examples come from; ``data.source`` names a source by its class path."""

    @abstractmethod
    def load(self) -> "Examples":
        """Reads the examples."""


class Examples(Source):
    """Examples in tensors, split into disjoint ranges for meta-training, validation and test.

    A subclass is a dataclass (``eq=False, repr=False``) with the two attributes below. Its tensor fields are copied to
    a device once, and serve every episode of every batch.

    Attributes:
        ranges: first and last + 1 row of the parts train, val and test.
        source: where they came from, in words.
        items: what messages call the rows.
    """

    ranges: dict[str, tuple[int, int]]
    source: str
    items: ClassVar[str] = "examples"

    @abstractmethod
    def minibatch(self, indices: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns a network's inputs and the targets with which a loss compares its outputs.

        Args:
            indices: numbers of rows, [...].
            dtype: of everything except class and character numbers.

        Returns:
            Inputs and targets, both [..., *the shape of one].
        """

    def load(self) -> Self:
        """Returns itself: loaded examples are a source, too."""
        return self

    def tensors(self) -> dict[str, Tensor]:
        """The tensor fields by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @cached_property
    def digest(self) -> str:
        """Of all tensors."""
        digest = hashlib.sha256()
        for tensor in self.tensors().values():
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source}, {self.digest})"

    def __len__(self) -> int:
        return len(next(iter(self.tensors().values())))

    def to(self, device: torch.device | str) -> Self:
        """Moves the tensors to a device; one copy there serves every episode of every batch."""
        device = torch.device(device)
        if next(iter(self.tensors().values())).device == device:
            return self
        if device not in self._copies:
            self._copies[device] = self._with({name: tensor.to(device) for name, tensor in self.tensors().items()})
        return self._copies[device]

    @cached_property
    def _copies(self) -> dict[torch.device, Self]:
        return {}

    def parted(self, sizes: Sequence[int]) -> Self:
        """Splits all rows anew at random, into train, val and test of these sizes."""
        order = torch.from_numpy(np.random.default_rng(SPLIT_SEED).permutation(len(self)))
        ends = np.cumsum(sizes).tolist()
        ranges = dict(zip(("train", "val", "test"), zip([0, *ends], ends, strict=False), strict=True))
        return self._with({name: tensor[order] for name, tensor in self.tensors().items()} | {"ranges": ranges})

    def in_sixths(self) -> Self:
        """Splits all rows anew at random: a sixth each for validation and test, the rest to train on."""
        sixth = len(self) // 6
        return self.parted((len(self) - 2 * sixth, sixth, sixth))

    def part(self, name: str) -> np.ndarray:
        """Numbers of the rows of a part."""
        return np.arange(*self.ranges[name])

    def extreme_rows(self) -> np.ndarray:
        """Rows with the largest and the smallest class or character, for which a network may be too small."""
        rows = np.concatenate([self.part(name) for name in self.ranges])
        found = []
        for tensor in self.tensors().values():
            if tensor.dtype == torch.int64:
                values = tensor[rows].flatten(1) if tensor.ndim > 1 else tensor[rows, None]
                found += [rows[values.amax(1).argmax()], rows[values.amin(1).argmin()]]
        return np.array(found, dtype=rows.dtype)

    def _with(self, changes: dict[str, Any]) -> Self:
        return replace(self, **changes)  # type: ignore[type-var]
