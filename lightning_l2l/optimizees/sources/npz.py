"""Arrays from an .npz: never code, and no more than it holds."""

import zipfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from lightning_l2l.errors import InvalidInputError, first_line
from lightning_l2l.file_sizes import require_room

LARGEST = float(np.finfo(np.float32).max)


def read_npz(
    path: Path, keys: Sequence[str], others: Sequence[str] = (), setting: str = "data.source"
) -> dict[str, np.ndarray]:
    """Reads arrays from an .npz; never runs code from it.

    Args:
        path: the file.
        keys: what it must have.
        others: keys that are read if the file has them.
        setting: what errors call the path.

    Raises:
        InvalidInputError: the file is missing, cannot be read as an .npz, lacks a key, has numbers that are not finite,
            or declares arrays that it does not hold or that do not fit into memory.
    """
    try:
        with zipfile.ZipFile(path) as file:
            found = [name.removesuffix(".npy") for name in file.namelist()]
            wanted = [key for key in (*keys, *others) if key in found]
            _check_sizes(file, wanted, f"{setting} is {path}, whose")
        with np.load(path, allow_pickle=False) as arrays:
            read = {key: _native(arrays[key]) for key in wanted}
    except FileNotFoundError:
        raise InvalidInputError(f"{setting} is {path}, which is not there: give the path of an .npz file.") from None
    except InvalidInputError:
        raise
    except Exception as error:  # damaged bytes may mean anything, and so raise anything
        raise InvalidInputError(
            f"{setting} is {path}, which is not an .npz file that can be read ({first_line(error)}): give the path "
            "of another."
        ) from error
    _check_finite(read, f"{setting} is {path}, where")
    missing = [key for key in keys if key not in read]
    if missing:
        raise InvalidInputError(
            f"{setting} is {path}, which has no {' and no '.join(missing)} (its keys: {', '.join(found) or 'none'}): "
            f"save it with the keys {', '.join(keys)}."
        )
    return read


def _check_finite(arrays: dict[str, np.ndarray], subject: str) -> None:
    for key, array in arrays.items():
        if array.dtype.kind != "f" or not array.size:
            continue
        if not (float(array.min()) >= -LARGEST and float(array.max()) <= LARGEST):  # float16 has no such number
            raise InvalidInputError(f"{subject} {key} has numbers that are not finite in float32: fix them.")


def _native(array: np.ndarray) -> np.ndarray:
    """The same numbers in a type that torch knows: of this machine's byte order, and of eight bytes at most."""
    if array.dtype.kind == "f" and array.itemsize > 8:
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check_sizes(file: zipfile.ZipFile, names: Sequence[str], subject: str) -> None:
    """Refuses arrays that together do not fit into memory, or whose headers declare other sizes than they have."""
    sizes = {name: file.getinfo(f"{name}.npy" if f"{name}.npy" in file.namelist() else name) for name in names}
    require_room(f"{subject} {' and '.join(names)}", sum(info.file_size for info in sizes.values()))
    for name, info in sizes.items():
        with file.open(info) as member:
            declared = declared_size(member)
        if declared != info.file_size:
            raise InvalidInputError(
                f"{subject} {name} declares {declared:,} bytes, but has {info.file_size:,}: save it again."
            )


def declared_size(file: IO[bytes]) -> int:
    """Bytes of a .npy, as its header declares them; reads no further than the header.

    Raises:
        ValueError: there is no header, or none of numbers and text.
    """
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of .npy")
    shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
    if dtype.hasobject:
        raise ValueError("Python objects")
    return file.tell() + prod(shape) * dtype.itemsize
