"""Reads the files of pictures, of any mode and in any position, as RGB."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS

from lightning_l2l.errors import InvalidInputError, first_line

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")  # Pillow starts a program to read some of the others
MOST_PIXELS = 89_478_485  # Pillow's limit, beyond which a file may be made to fill the memory
SIXTEEN_BITS = 65_535


def read_picture(path: Path, subject: str, smallest: int = 1) -> Image.Image:
    """Reads a picture as RGB, the right way up; grey ones get colours, and white shows through transparent ones.

    Of 16 bits the upper 8 are kept. Whole numbers in 32 bits are taken for 16 bits, as Pillow makes them of a PGM.
    Floating point is taken for 0..1 where no pixel is above 1, and for 0..255 otherwise.

    Args:
        path: the file.
        subject: what an error calls it, such as "data.style is wave.jpg, which".
        smallest: the fewest pixels of a side.

    Raises:
        InvalidInputError: it is not there, not an image, too small or too large, or has numbers beyond those ranges.
    """
    with open_picture(path, subject, smallest) as file:
        try:
            _fit_transparent_colour(file)
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith(("I", "F")):
                return _from_numbers(picture)
            if picture.mode == "LAB":
                srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
                return ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")  # type: ignore[return-value]
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            return picture.convert("RGB")
        except Exception as error:  # damaged bytes may mean anything, and so raise anything
            raise _unreadable(subject, error) from error


def open_picture(path: Path, subject: str, smallest: int = 1) -> Image.Image:
    """Reads the header of a picture's file and checks the format and the size; see ``read_picture``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(path, formats=FORMATS)
    except FileNotFoundError as error:
        raise InvalidInputError(f"{subject} is not there: give the path of a picture.") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InvalidInputError(f"{subject} has more than {MOST_PIXELS:,} pixels: give a smaller picture.") from error
    except Exception as error:
        raise _unreadable(subject, error) from error
    picture.filename = ""  # else Pillow maps the file, and garbles a TIFF on its side
    if min(picture.size) < smallest:
        width, height = picture.size
        picture.close()
        raise InvalidInputError(
            f"{subject} has {width} x {height} pixels: give a picture of {smallest} or more on each side."
        )
    return picture


def is_picture(path: Path) -> bool:
    """Whether a file has a picture's suffix; macOS keeps notes on a file under its name with ._ before it."""
    return path.suffix.lower() in IMG_EXTENSIONS and not path.name.startswith("._") and path.is_file()


def _unreadable(subject: str, error: Exception) -> InvalidInputError:
    return InvalidInputError(f"{subject} is not an image that can be read ({first_line(error)}): give a JPEG or PNG.")


def _fit_transparent_colour(file: Image.Image) -> None:
    """Brings a PNG's transparent colour to the 8 bits to which Pillow brings its pixels, but not that colour."""
    bits = file.tile[0].args if file.format == "PNG" and file.tile else None  # type: ignore[attr-defined]
    colour = file.info.get("transparency")
    if colour is None:
        return
    if bits == "RGB;16B":
        file.info["transparency"] = tuple(value >> 8 for value in colour)
    elif bits in ("L;2", "L;4"):
        file.info["transparency"] = colour * {"L;2": 85, "L;4": 17}[bits]


def _from_numbers(picture: Image.Image) -> Image.Image:
    """A picture of 16-bit, 32-bit or floating-point numbers, in 8 bits."""
    values = np.asarray(picture)
    most = (1 if values.max() <= 1 else 255) if picture.mode == "F" else SIXTEEN_BITS
    if not (values.min() >= 0 and values.max() <= most):  # nor NaN
        raise ValueError(f"its numbers go from {values.min()} to {values.max()}")
    grey = np.round(values * (255 / most)) if picture.mode == "F" else values // 256
    if "transparency" in picture.info:
        grey = np.where(values == picture.info["transparency"], 255, grey)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
