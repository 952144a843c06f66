"""One reader for pictures of all modes: its numbers, positions, transparent parts, and what it refuses."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees.sources.picture_files import MOST_PIXELS, is_picture, read_picture

GREY = np.arange(0, 240, 2, dtype=np.uint8).reshape(10, 12)  # even, so that half of one is a whole number
COLOURS = np.stack([GREY, 255 - GREY, GREY // 2], 2)
ALPHA = np.where(GREY < 100, 0, 255).astype(np.uint8)
GREY_AS_RGB = np.repeat(GREY[:, :, None], 3, 2)
ON_WHITE = np.where(ALPHA[:, :, None] == 0, 255, GREY_AS_RGB)
COLOURS_ON_WHITE = np.where(ALPHA[:, :, None] == 0, 255, COLOURS)


def read(name: str) -> np.ndarray:
    picture = read_picture(Path(name), f"data.style is {name}, which")
    assert picture.mode == "RGB"
    return np.asarray(picture)


def palette() -> Image.Image:
    """Grey as a palette, in which the entry n is grey 2 n."""
    picture = Image.fromarray(GREY // 2).convert("P")
    picture.putpalette([2 * n % 256 for n in range(256) for _ in range(3)])
    return picture


def with_alpha(mode: str) -> Image.Image:
    picture = Image.fromarray(GREY if mode == "LA" else COLOURS)
    picture.putalpha(Image.fromarray(ALPHA))
    return picture


ENTRIES = bytes(0 if 2 * n < 100 else 255 for n in range(120))  # the alpha of each
WRITTEN = {  # how a mode is written, and the pixels that it must give
    "1.png": (lambda: Image.fromarray(GREY > 100), np.where(GREY_AS_RGB > 100, 255, 0)),
    "1.tif": (lambda: Image.fromarray(GREY > 100), np.where(GREY_AS_RGB > 100, 255, 0)),
    "L.png": (lambda: Image.fromarray(GREY), GREY_AS_RGB),
    "L.bmp": (lambda: Image.fromarray(GREY), GREY_AS_RGB),
    "P.png": (palette, GREY_AS_RGB),
    "RGB.png": (lambda: Image.fromarray(COLOURS), COLOURS),
    "RGB.ppm": (lambda: Image.fromarray(COLOURS), COLOURS),
    "RGB.tif": (lambda: Image.fromarray(COLOURS), COLOURS),
    "LA.png": (lambda: with_alpha("LA"), ON_WHITE),
    "LA.tif": (lambda: with_alpha("LA"), ON_WHITE),
    "RGBA.png": (lambda: with_alpha("RGBA"), COLOURS_ON_WHITE),
    "RGBA.tif": (lambda: with_alpha("RGBA"), COLOURS_ON_WHITE),
    "RGBX.tif": (lambda: Image.fromarray(COLOURS).convert("RGBX"), COLOURS),
    "I;16.png": (lambda: Image.fromarray(GREY.astype(np.uint16) * 257), GREY_AS_RGB),
    "I;16.tif": (lambda: Image.fromarray(GREY.astype(np.uint16) * 257), GREY_AS_RGB),
    "I;16B.tif": (lambda: Image.fromarray((GREY.astype(np.uint16) * 257).astype(">u2")), GREY_AS_RGB),
    "I;16.pgm": (lambda: Image.fromarray(GREY.astype(np.uint16) * 257), GREY_AS_RGB),
    "I.tif": (lambda: Image.fromarray(GREY.astype(np.int32) * 257), GREY_AS_RGB),
    "F 0..1.tif": (lambda: Image.fromarray(GREY.astype(np.float32) / 255), GREY_AS_RGB),
    "F 0..255.tif": (lambda: Image.fromarray(GREY.astype(np.float32)), GREY_AS_RGB),
    "CMYK.tif": (lambda: Image.fromarray(COLOURS).convert("CMYK"), COLOURS),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_each_mode_gives_its_numbers(name):
    make, expected = WRITTEN[name]
    picture = make()
    picture.save(name)
    np.testing.assert_array_equal(read(name), expected)


@pytest.mark.parametrize("name", ["YCbCr.tif", "LAB.tif", "RGB.jpg", "L.jpg", "CMYK.jpg", "RGB.webp"])
def test_modes_and_formats_that_round_are_close(name):
    smooth = np.stack([np.add.outer(np.arange(32), np.arange(24)) * 3 + n * 20 for n in range(3)], 2).astype(np.uint8)
    mode = name.partition(".")[0]
    picture = Image.fromarray(smooth)
    if mode == "LAB":
        from PIL import ImageCms

        picture = ImageCms.profileToProfile(
            picture, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    picture.convert(mode).save(name, quality=95)
    expected = np.asarray(Image.fromarray(smooth).convert("L").convert("RGB")) if mode == "L" else smooth
    assert np.abs(read(name).astype(int) - expected).max() <= 12


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_white_at_any_depth(bits):
    """Pillow scales the pixels of 2 and 4 bits to 8, and not the transparent one."""
    most = 2**bits - 1
    values = np.arange(16).reshape(4, 4) * most // 15
    write_png("a.png", values[:, :, None], bits, colour_type=0, transparent=struct.pack(">H", most // 3))
    grey = values >> 8 if bits == 16 else values * 255 // most
    expected = np.where(values == most // 3, 255, grey)
    np.testing.assert_array_equal(read("a.png"), np.repeat(expected[:, :, None], 3, 2))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_colour_is_white_at_any_depth(bits):
    values = (np.arange(48).reshape(4, 4, 3) + 10) * (257 if bits == 16 else 1)
    write_png("a.png", values, bits, colour_type=2, transparent=struct.pack(">3H", *values[1, 2]))
    expected = values >> 8 if bits == 16 else values.copy()
    expected[1, 2] = 255
    np.testing.assert_array_equal(read("a.png"), expected)


@pytest.mark.parametrize("transparency", [ENTRIES, 30], ids=["entries", "one"])
def test_a_palette_can_be_transparent(transparency):
    palette().save("a.png", transparency=transparency)
    clear = GREY < 100 if transparency == ENTRIES else GREY == 60
    np.testing.assert_array_equal(read("a.png"), np.where(clear[:, :, None], 255, GREY_AS_RGB))
    palette().save("a.gif", transparency=30)
    np.testing.assert_array_equal(read("a.gif"), np.where(GREY[:, :, None] == 60, 255, GREY_AS_RGB))


def test_half_transparent_pixels_mix_with_white():
    picture = Image.fromarray(GREY)
    picture.putalpha(128)
    picture.save("a.png")
    expected = GREY * (128 / 255) + 127
    assert np.abs(read("a.png")[:, :, 0] - expected).max() <= 1


@pytest.mark.parametrize("name", ["a.png", "a.tif", "packed.tif", "a.jpg", "deep.png"])
@pytest.mark.parametrize(("orientation", "turned"), [(3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, -1))])
def test_pictures_are_turned_the_right_way_up(name, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    grey = np.where(GREY > 100, 255, 0).astype(np.uint8)
    picture = Image.fromarray(grey.astype(np.uint16) * 257 if name == "deep.png" else grey)
    picture.save(name, exif=exif, compression="tiff_lzw" if name == "packed.tif" else None)
    assert np.abs(read(name)[:, :, 0].astype(int) - turned(grey)).max() < 60


@pytest.mark.parametrize("values", [[-1.0, 2.0], [0.0, 256.0], [0.0, np.nan], [0.0, np.inf]])
def test_numbers_beyond_the_range_are_refused(values):
    Image.fromarray(np.array([values], np.float32)).save("a.tif")
    with pytest.raises(InvalidInputError, match=r"data\.style is a\.tif, which is not an image .*its numbers go from"):
        read("a.tif")
    Image.fromarray(np.array([[0, 65_536]], np.int32)).save("a.tif")
    with pytest.raises(InvalidInputError, match="its numbers go from 0 to 65536"):
        read("a.tif")


@pytest.mark.parametrize("side", [9_460, 60_000])
def test_too_many_pixels_are_refused_by_the_header(side):
    write_png("a.png", np.zeros((1, 1, 1), int), 8, colour_type=0, size=(side, side))
    assert side * side > MOST_PIXELS
    with pytest.raises(InvalidInputError, match=r"data\.style is a\.png, which has more than 89,478,485 pixels"):
        read("a.png")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_picture_is_refused(content):
    Path("a.png").write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"data\.style is a\.png, which is not an image that can be read"):
        read("a.png")


def test_macos_notes_are_no_pictures():
    for name in ("._a.png", "a.PNG", "a.txt"):
        Path(name).write_bytes(b"")
    Path("b.png").mkdir()
    assert [path.name for path in Path().iterdir() if is_picture(path)] == ["a.PNG"]


def write_png(
    name: str,
    values: np.ndarray,
    bits: int,
    colour_type: int,
    transparent: bytes = b"",
    size: tuple[int, int] | None = None,
) -> None:
    """Writes a PNG, which Pillow does not do at all depths; values are [H, W, C]."""
    height, width, _ = values.shape
    numbers = values.reshape(height, -1)
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in numbers]
    else:
        digits = [np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :] for row in numbers]
        rows = [np.packbits(row.reshape(-1)).tobytes() for row in digits]
    header = struct.pack(">2I5B", *(size or (width, height)), bits, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header)] + ([(b"tRNS", transparent)] if transparent else [])
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    Path(name).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
