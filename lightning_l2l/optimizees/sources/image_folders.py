"""Labelled images from folders, one for each label."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.file_sizes import require_room
from lightning_l2l.optimizees.sources.images import LabelledImages, part_images
from lightning_l2l.optimizees.sources.picture_files import is_picture, read_picture


def load_folder(path: Path) -> LabelledImages:
    """Loads path/train and path/test, in which each label has a folder of images, all of one size, as RGB.

    Folders whose names are all numbers mean these labels; others are numbered from 0, in the order of their names.

    Raises:
        InvalidInputError: a folder is missing, its labels differ, or an image cannot be read or has another size.
    """
    labels = {part: _labels(path, part) for part in ("train", "test")}
    x_train, y_train = _read_part(path, "train", labels["train"])
    x_test, y_test = _read_part(path, "test", labels["test"])
    if labels["train"] != labels["test"] or len(x_train) < 12 or x_train.shape[1:] != x_test.shape[1:]:
        raise InvalidInputError(
            f"data.source is {path}, where train has the labels {', '.join(labels['train'])} on {len(x_train)} images "
            f"and test {', '.join(labels['test'])} on {len(x_test)}: give both the same labels and image size, and at "
            "least 12 images to train on."
        )
    return part_images(path.name, x_train, y_train, x_test, y_test)


def load_class_folders(path: Path) -> tuple[Tensor, Tensor]:
    """Loads a folder that has one folder of images for each class, all images of one size, as RGB.

    Returns:
        The images, [M, 3, H, W], uint8, and their labels, [M], as ``load_folder`` numbers them.

    Raises:
        InvalidInputError: there are no folders, or an image cannot be read or has another size.
    """
    return _read_part(path, "", _labels(path, ""))


def _labels(path: Path, part: str) -> dict[str, int]:
    """The label of each of a part's folders, in their order."""
    try:
        found = [entry.name for entry in (path / part).iterdir() if entry.is_dir() and entry.name[0] != "."]
    except OSError as error:
        raise InvalidInputError(
            f"data.source is {path}, where {part or path.name} could not be read ({error.strerror}): {_fix(part)}"
        ) from error
    if not found:
        raise InvalidInputError(f"data.source is {path}, where {part or path.name} has no folders: {_fix(part)}")
    if all(name.isdecimal() and len(name) < 10 for name in found) and len(set(map(int, found))) == len(found):
        return {name: int(name) for name in sorted(found, key=int)}
    return {name: number for number, name in enumerate(sorted(found))}


def _read_part(path: Path, part: str, label_of: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Images [M, 3, H, W], uint8, and labels [M]."""
    files: list[Path] = []
    labels: list[int] = []
    for name, number in label_of.items():
        own = sorted(filter(is_picture, (path / part / name).rglob("*")))
        if not own:
            raise InvalidInputError(f"data.source is {path}, where {Path(part, name)} holds no image: {_fix(part)}")
        files += own
        labels += [number] * len(own)
    width, height = _read(path, files[0]).size
    require_room(f"data.source is {path}, whose {part}", len(files) * 3 * height * width)
    images = torch.empty(len(files), 3, height, width, dtype=torch.uint8)
    for row, file in zip(images, files, strict=True):
        picture = _read(path, file)
        if picture.size != (width, height):
            raise InvalidInputError(
                f"data.source is {path}, where {file.relative_to(path)} has {picture.width} x {picture.height} pixels "
                f"and {files[0].relative_to(path)} {width} x {height}: {_fix(part)}"
            )
        row.copy_(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    return images, torch.tensor(labels)


def _fix(part: str) -> str:
    folders = "train and test, each with one folder a label" if part else "one folder a label"
    return f"give a folder with {folders}, and images of one size in them."


def _read(path: Path, file: Path) -> Image.Image:
    return read_picture(file, f"data.source is {path}, where {file.relative_to(path)}")
