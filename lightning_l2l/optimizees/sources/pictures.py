"""Where pictures come from: files, folders of them, and the few that installed packages carry."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS

from lightning_l2l.errors import InvalidInputError, first_line

CARRIED = ("flower", "china", "hopper")
SMALLEST = 16  # pixels of a side; VGG's third stage still sees four
ORDER_SEED = 0  # of the order of the files in a folder, which may be sorted

Picture = Callable[[], Image.Image]
"""Reads one picture as RGB."""


def read_picture(path: Path, subject: str) -> Image.Image:
    """Reads a picture as RGB, the right way up; grey ones get colours, and white shows through transparent ones.

    Args:
        path: the file.
        subject: what an error calls it, such as "data.style is wave.jpg, which".

    Raises:
        InvalidInputError: it is not there, not an image, or too small.
    """
    with open_picture(path, subject) as file:
        try:
            picture = ImageOps.exif_transpose(file)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            if picture.mode.startswith("I"):  # grey in 16 bits, which RGB would cut off at 255
                picture = Image.fromarray((np.asarray(picture) // 256).astype(np.uint8))
            return picture.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise unreadable(subject, error) from error


def open_picture(path: Path, subject: str) -> Image.Image:
    """Reads the header of a picture's file and checks the format and the size; see ``read_picture``."""
    try:
        picture = Image.open(path)
    except FileNotFoundError as error:
        raise InvalidInputError(f"{subject} is not there: give the path of a picture.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise unreadable(subject, error) from error
    if min(picture.size) < SMALLEST:
        width, height = picture.size
        picture.close()
        raise InvalidInputError(
            f"{subject} has {width} x {height} pixels: give a picture of {SMALLEST} or more on each side."
        )
    return picture


def unreadable(subject: str, error: Exception) -> InvalidInputError:
    """The error for what is not an image."""
    return InvalidInputError(f"{subject} is not an image that can be read ({first_line(error)}): give a JPEG or PNG.")


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
        folder: where they are; files without a picture's suffix are ignored.
        subject: what an error calls it.

    Raises:
        InvalidInputError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise InvalidInputError(f"{subject} is not there: give a folder of pictures.")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMG_EXTENSIONS)
    if not found:
        raise InvalidInputError(f"{subject} holds no picture: put some into it ({', '.join(IMG_EXTENSIONS)}).")
    return found


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
            open_picture(path, subject).close()
        contents[part] = [partial(read_picture, paths[n], subjects[paths[n]]) for n in order]
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
