"""Images of many classes, for few-shot learning: the parts train, val and test have classes of their own."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets

from lightning_l2l.errors import InvalidInputError, first_line
from lightning_l2l.optimizees.sources.base import SPLIT_SEED
from lightning_l2l.optimizees.sources.downloads import downloading
from lightning_l2l.optimizees.sources.image_folders import load_class_folders
from lightning_l2l.optimizees.sources.images import LabelledImages, refuse_odd_labels, refuse_odd_pixels
from lightning_l2l.optimizees.sources.npz import read_npz
from lightning_l2l.whole_files import replacing

OMNIGLOT = "omniglot28.npz"  # the file in data.root that keeps Omniglot's characters
IMAGES = 32_460  # of Omniglot, 20 of each character
PARTS = ("train", "val", "test")
SIZE = 28  # of their sides in pixels, as in arXiv:1606.04080, section 4.1.1


def prepare_omniglot(root: Path) -> Path:
    """Fetches Omniglot by torchvision and shrinks its 32,460 images to 28 × 28, unless that has been done.

    Args:
        root: folder of datasets.

    Returns:
        The .npz in it with ``images`` [M, 28, 28], ink black on white, their characters as ``labels`` [M], and the
        number of their ``alphabet`` in alphabetical order, [M].

    Raises:
        InvalidInputError: there is no network, or only a part of the images.
    """
    path = root / OMNIGLOT
    if path.is_file():
        return path
    with downloading(root):
        if path.is_file():  # another process has been faster
            return path
        try:
            files = _fetched(root)
            images = [_shrunk(file) for file in files]
        except (RuntimeError, OSError) as error:
            raise InvalidInputError(
                f"data.source is Omniglot, which could neither be found in {root} nor fetched ({first_line(error)}): "
                "check the network, or give an .npz file."
            ) from error
        if len(images) != IMAGES:
            raise InvalidInputError(
                f"data.source is Omniglot, but {root / 'omniglot-py'} has {len(images):,} of its {IMAGES:,} images: "
                "remove that folder, so that they are fetched anew."
            )
        numbers = {character: number for number, character in enumerate(dict.fromkeys(file.parent for file in files))}
        labels = np.array([numbers[file.parent] for file in files])
        alphabet = np.unique([file.parts[-3] for file in files], return_inverse=True)[1]
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            np.savez_compressed(file, images=np.stack(images), labels=labels, alphabet=alphabet)
    return path


def _fetched(root: Path) -> list[Path]:
    """Omniglot's files, in order of alphabet, character and name; torchvision lists them in any order."""
    files: list[Path] = []
    for background in (True, False):
        part = datasets.Omniglot(str(root), background=background, download=True, loader=Path)
        files += [file for file, _ in part]
    return sorted(files, key=lambda file: file.parts[-3:])


def _shrunk(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("L").resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def load_image_classes(path: Path) -> LabelledImages:
    """Loads images of many classes, not yet split.

    Args:
        path: an .npz with ``images``, [M, H, W] or [M, H, W, C], and ``labels``, [M]; or a folder with one folder of
            images for each class.

    Raises:
        InvalidInputError: it is neither, or lacks something.
    """
    if path.is_dir():
        return LabelledImages(*load_class_folders(path), {}, path.name)
    images, labels = read_npz(path, ("images", "labels")).values()
    if images.ndim not in (3, 4) or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise InvalidInputError(
            f"data.source is {path}, where images has shape {images.shape} and labels {labels.shape} of "
            f"{labels.dtype}: images must be [M, H, W] or [M, H, W, C] with one integer label each."
        )
    refuse_odd_pixels(images, path)
    refuse_odd_labels(labels, f"data.source is {path}, where labels")
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    tensors = torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64))
    return LabelledImages(*tensors, {}, path.name)


def split_classes(images: LabelledImages, sizes: Sequence[int] | None) -> LabelledImages:
    """Gives the parts train, val and test classes of their own, drawn at random but always the same ones.

    Args:
        images: of all classes.
        sizes: classes in each part; None gives val and test a sixth each.

    Returns:
        The images of these classes, one class after the other and numbered in that order.

    Raises:
        InvalidInputError: there are fewer classes.
    """
    used = images.labels >= 0  # the others have labels that were not chosen
    images = replace(images, images=images.images[used], labels=images.labels[used])
    known, labels = images.labels.unique(return_inverse=True)
    sixth = len(known) // 6
    given = "null" if sizes is None else list(sizes)
    sizes = (len(known) - 2 * sixth, sixth, sixth) if sizes is None else sizes
    if len(sizes) != len(PARTS) or min(sizes) <= 0 or sum(sizes) > len(known):
        raise InvalidInputError(
            f"data.classes is {given}, but {images.source} has {len(known)} classes: give three positive numbers that "
            "add up to that or less."
        )
    places = np.argsort(np.random.default_rng(SPLIT_SEED).permutation(len(known)))  # where each class comes to stand
    labels = torch.from_numpy(places)[labels]
    order = labels.argsort(stable=True)
    labels = labels[order]
    ends = torch.searchsorted(labels, torch.tensor([0, *np.cumsum(sizes)])).tolist()
    ranges = dict(zip(PARTS, pairwise(ends), strict=True))
    return replace(images, images=images.images[order[: ends[-1]]], labels=labels[: ends[-1]], ranges=ranges)


def with_rotations(images: LabelledImages, parts: Sequence[str]) -> LabelledImages:
    """Adds the images turned by 90, 180 and 270 degrees as further classes (arXiv:1605.06065, section 4.1).

    Args:
        images: as ``split_classes`` returns them.
        parts: those that get further classes.

    Raises:
        InvalidInputError: images that are to be turned are not square.
    """
    height, width = images.images.shape[-2:]
    if parts and height != width:
        raise InvalidInputError(
            f"data.rotations adds turned images, but those of {images.source} are {height} × {width}: set it to none, "
            "or give square images."
        )
    pixels: list[Tensor] = []
    labels: list[Tensor] = []
    ranges, end = {}, 0
    for part, (first, last) in images.ranges.items():
        turns = range(4) if part in parts else range(1)
        pixels += [images.images[first:last].rot90(turn, (2, 3)) for turn in turns]
        labels += [images.labels[first:last] + turn * (int(images.labels.max()) + 1) for turn in turns]
        ranges[part] = end, end + len(turns) * (last - first)
        end = ranges[part][1]
    return replace(images, images=torch.cat(pixels), labels=torch.cat(labels), ranges=ranges)
