"""Examples from tensors, and from the arrays of an .npz."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees.sources.base import SPLIT_SEED, Examples
from lightning_l2l.optimizees.sources.npz import read_npz

FEWEST = 12  # rows to train on, of which one is for validation


@dataclass(eq=False, repr=False)
class TensorExamples(Examples):
    """Inputs with targets.

    Attributes:
        inputs: [M, ...]; uint8 is scaled from 0..255 to 0..1, int64 is left unchanged.
        targets: [M, ...], int64 or floating point; None means the inputs themselves.
        ranges: first and last + 1 row of the parts train, val and test.
        source: where they came from, in words.
    """

    inputs: Tensor
    targets: Tensor | None
    ranges: dict[str, tuple[int, int]]
    source: str

    def minibatch(self, indices: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        inputs = as_input(_rows(self.inputs, indices), dtype)
        if self.targets is None:
            return inputs, inputs
        targets = _rows(self.targets, indices)
        return inputs, targets.to(dtype) if targets.is_floating_point() else targets


def _rows(tensor: Tensor, indices: Tensor) -> Tensor:
    """``tensor[indices]``, in a third of the time."""
    return tensor.index_select(0, indices.flatten()).view(*indices.shape, *tensor.shape[1:])


def as_input(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Inputs as a network takes them: 0..255 scaled to 0..1, class and character numbers unchanged."""
    if values.dtype == torch.int64:
        return values
    return values.to(dtype) / 255 if values.dtype == torch.uint8 else values.to(dtype)


def set_validation_apart(
    train: Sequence[Tensor], test: Sequence[Tensor]
) -> tuple[list[Tensor], dict[str, tuple[int, int]]]:
    """Holds out a random twelfth of the training rows for validation; at random, since files may be sorted.

    Args:
        train: tensors with the same number of rows.
        test: a matching tensor for each of them.

    Returns:
        The rows of both together, and the ranges of the parts in them.
    """
    count = len(train[0])
    order = torch.from_numpy(np.random.default_rng(SPLIT_SEED).permutation(count))
    tensors = [torch.cat([rows[order], others]) for rows, others in zip(train, test, strict=True)]
    fit = count - count // 12
    return tensors, {"train": (0, fit), "val": (fit, count), "test": (count, len(tensors[0]))}


def load_arrays(path: Path) -> TensorExamples:
    """Loads x_train, y_train, x_test and y_test from an .npz; one twelfth of the training rows is for validation.

    Args:
        path: holds arrays [M, ...]; without y_train and y_test the inputs are their own targets.

    Raises:
        InvalidInputError: the file is missing, is not an .npz, lacks a key, or holds arrays that cannot be used.
    """
    arrays = read_npz(path, ("x_train", "x_test"), ("y_train", "y_test"))
    if ("y_train" in arrays) != ("y_test" in arrays):
        raise InvalidInputError(
            f"data.source is {path}, which has only one of y_train and y_test: save both, or neither where the inputs "
            "are their own targets."
        )
    kinds = ["x", "y"] if "y_train" in arrays else ["x"]
    for kind in kinds:
        _check_pair(path, kind, arrays)
    for part in ("train", "test"):
        sizes = [len(arrays[f"{kind}_{part}"]) for kind in kinds]
        if len(set(sizes)) > 1 or sizes[0] < FEWEST:
            raise InvalidInputError(
                f"data.source is {path}, where {part} has {' inputs and '.join(map(str, sizes))} rows: save as many "
                f"of y_{part} as of x_{part}, and at least {FEWEST}."
            )
    train, test = ([_as_tensor(path, f"{kind}_{part}", arrays) for kind in kinds] for part in ("train", "test"))
    tensors, ranges = set_validation_apart(train, test)
    return TensorExamples(tensors[0], tensors[1] if len(tensors) > 1 else None, ranges, path.name)


def _check_pair(path: Path, kind: str, arrays: dict[str, np.ndarray]) -> None:
    """Refuses training and test arrays whose types or shapes differ, or that do not hold numbers."""
    names = f"{kind}_train", f"{kind}_test"
    train, test = (arrays[name] for name in names)
    if train.dtype != test.dtype or train.ndim == 0 or train.shape[1:] != test.shape[1:]:
        raise InvalidInputError(
            f"data.source is {path}, where {names[0]} is {train.dtype} {train.shape} and {names[1]} {test.dtype} "
            f"{test.shape}: save both as one type, with rows of one shape."
        )
    if train.dtype.kind not in "iuf":
        raise InvalidInputError(
            f"data.source is {path}, where {names[0]} is {train.dtype}: save integers or floating point."
        )


def _as_tensor(path: Path, name: str, arrays: dict[str, np.ndarray]) -> Tensor:
    """An array in float32, uint8 or int64, unless its numbers do not fit there."""
    array = arrays[name]
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    elif name.startswith("y") or array.dtype != np.uint8:
        if array.max(initial=0) > np.iinfo(np.int64).max:
            raise InvalidInputError(
                f"data.source is {path}, where {name} has numbers above {np.iinfo(np.int64).max}: save smaller ones."
            )
        array = array.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(array))
