"""Files that are there whole or not at all, whenever the process that writes them is killed."""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a file to write to, which takes the path's place when it is complete and on the disk.

    It lies in the same folder, since a file can only take the place of another on the same file system. Its name ends
    with the path's.
    """
    part = path.with_name(f".{secrets.token_hex(8)}.part.{path.name}")  # process numbers repeat across machines
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def remove_leftovers(folder: Path, age: float = 0.0) -> None:
    """Removes what processes that were killed have left of ``replacing``.

    Args:
        folder: where they wrote.
        age: seconds since the last change, so that what another process is writing stays.
    """
    for part in folder.glob(".*.part.*"):
        try:
            if time.time() - part.stat().st_mtime >= age:
                part.unlink()
        except FileNotFoundError:  # another process was faster
            continue
