"""Where pictures come from: folders of them, and the few that installed packages carry."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees.sources.picture_files import is_picture, open_picture, read_picture

CARRIED = ("flower", "china", "hopper")
SMALLEST = 16  # pixels of a side; VGG's third stage still sees four
ORDER_SEED = 0  # of the order of the files in a folder, which may be sorted

Picture = Callable[[], Image.Image]
"""Reads one picture as RGB."""


@cache
def carried_picture(name: str) -> Image.Image:
    """One of the pictures that scikit-learn (flower, china) and matplotlib (hopper) carry."""
    if name == "hopper":
        return read_picture(Path(get_sample_data("grace_hopper.jpg", asfileobj=False)), "matplotlib's picture")
    from sklearn.datasets import load_sample_image  # slow to import, and needed only without own pictures

    return Image.fromarray(load_sample_image(f"{name}.jpg"))


def pictures_in(folder: Path, subject: str) -> list[Path]:
    """The picture files of a folder, in the order of their names.

    Args:
        folder: where they are; other files are ignored.
        subject: what an error calls it.

    Raises:
        InvalidInputError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise InvalidInputError(f"{subject} is not there: give a folder of pictures.")
    found = sorted(filter(is_picture, folder.iterdir()))
    if not found:
        raise InvalidInputError(f"{subject} holds no picture: put some into it ({', '.join(IMG_EXTENSIONS)}).")
    return found


def file_sizes(folder: Path) -> list[str]:
    """The name and the size in bytes of each picture's file under a folder, by which a folder is known again."""
    paths = sorted(filter(is_picture, folder.rglob("*")))
    return [f"{path.relative_to(folder)} {path.stat().st_size}" for path in paths]


def folder_contents(folder: Path) -> dict[str, Sequence[Picture]]:
    """The content images of a folder with the folders train, val and test, each in a random order, always the same.

    Raises:
        InvalidInputError: a folder is missing or empty, or a file is not an image or too small.
    """
    contents: dict[str, Sequence[Picture]] = {}
    for part in ("train", "val", "test"):
        paths = pictures_in(folder / part, f"data.content is {folder}, whose folder {part}")
        order = np.random.default_rng(ORDER_SEED).permutation(len(paths))
        subjects = {path: f"data.content is {folder}, whose file {part}/{path.name}" for path in paths}
        for path, subject in subjects.items():  # now, not after hours of training; only the headers, to save time
            open_picture(path, subject, SMALLEST).close()
        contents[part] = [partial(read_picture, paths[n], subjects[paths[n]], SMALLEST) for n in order]
    return contents


def carried_contents() -> dict[str, Sequence[Picture]]:
    """Square crops of two carried pictures: 200 of china to train on, 20 and 100 of hopper's upper and lower half."""
    random = np.random.default_rng(ORDER_SEED)
    parts = {"train": ("china", 0.0, 1.0, 200), "val": ("hopper", 0.0, 0.5, 20), "test": ("hopper", 0.5, 1.0, 100)}
    contents: dict[str, Sequence[Picture]] = {}
    for part, (name, top, bottom, count) in parts.items():
        width, height = carried_picture(name).size
        first, last = int(top * height), int(bottom * height)
        boxes = []
        for _ in range(count):
            side = int(random.integers(64, 193))
            left, upper = int(random.integers(width - side + 1)), int(random.integers(first, last - side + 1))
            boxes.append((left, upper, left + side, upper + side))
        contents[part] = [partial(carried_picture(name).crop, box) for box in boxes]
    return contents


def shrink(picture: Image.Image, shorter: int) -> Image.Image:
    """The picture resized so that its shorter side has this many pixels."""
    factor = shorter / min(picture.size)
    width, height = (max(shorter, round(side * factor)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def square(picture: Image.Image, size: int) -> Image.Image:
    """The middle of the picture, cropped to a square and resized to this many pixels a side."""
    return ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
