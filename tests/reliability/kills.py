"""Ways to kill a process from inside, which the process cannot prevent."""

import os
import resource
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any

WRITES = {"os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir"}  # as Python's audit hooks call them


def after(seconds: float, *signals: int) -> None:
    """Sends signals to this process, one after another, once it has used so much time of its CPU."""
    left = list(signals)

    def send(*_: Any) -> None:
        if left:
            os.kill(os.getpid(), left.pop(0))

    if signals[0] == signal.SIGKILL:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which kills as surely, even inside of a call
    else:
        signal.signal(signal.SIGPROF, send)
    signal.setitimer(signal.ITIMER_PROF, max(seconds, 1e-3), 0.05)


def at_write(number: int, size: int | None = None) -> None:
    """Kills this process at the n-th change of a file or folder below the working directory.

    Args:
        number: n, from 1.
        size: kills it inside of a write from then on, when a file grows beyond this many bytes; None kills it before
            the change.
    """
    changes = count(1)
    folder = os.getcwd()

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if not _changes(event, arguments, folder) or next(changes) != number:
            return
        if size is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python's own handler turns it into an OSError
    sys.addaudithook(audit)


def count_writes() -> None:
    """Counts those changes in the file ``writes``, one byte each."""
    folder = os.getcwd()
    file = os.open("writes", os.O_CREAT | os.O_WRONLY)
    sys.addaudithook(lambda *event: os.write(file, b".") and None if _changes(*event, folder) else None)


def _changes(event: str, arguments: tuple[Any, ...], folder: str) -> bool:
    if event == "open":
        path, _, flags = arguments
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
    elif event in WRITES:
        path = arguments[0]
    else:
        return False
    return isinstance(path, str | bytes | os.PathLike) and str(Path(os.fsdecode(path)).absolute()).startswith(folder)
