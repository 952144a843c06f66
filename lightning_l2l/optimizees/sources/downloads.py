"""Downloads into folders that several processes may share."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

TIMEOUT = 10.0  # seconds without an answer, after which a download gives up


@contextmanager
def downloading(folder: Path) -> Iterator[None]:
    """Lets one process at a time fetch files into a folder; the others wait, and then find the files.

    Connections that are opened inside it give up after ``TIMEOUT`` seconds without an answer.
    """
    lock = FileLock(folder / ".lock")
    before = socket.getdefaulttimeout()
    # nobody can fetch files into a folder that cannot be written, and not every file system has locks
    with suppress(OSError, NotImplementedError):
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
        lock.release()
