"""The sizes that files declare, compared with this machine's memory before any of it is taken."""

import os
from contextlib import suppress
from pathlib import Path

from lightning_l2l.errors import InvalidInputError

CONTAINER = Path("/sys/fs/cgroup/memory.max")  # holds a number of bytes, or "max"


def most_bytes() -> int:
    """Half of the memory of this machine, or of its container: what is read is copied once when it is split."""
    memory = [16 << 30]  # where the system does not tell
    with suppress(AttributeError, OSError, ValueError):
        memory = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError):
        memory.append(int(CONTAINER.read_text()))
    return min(memory) // 2


def require_room(subject: str, size: int) -> None:
    """Refuses what would take more than half of the memory.

    Args:
        subject: what an error calls it, such as "data.source is big.npz, whose x_train".
        size: bytes in memory.

    Raises:
        InvalidInputError: there is not so much.
    """
    most = most_bytes()
    if size > most:
        raise InvalidInputError(
            f"{subject} takes {size / 2**30:,.1f} GiB, but half of this machine's memory is {most / 2**30:.1f} GiB: "
            "give less."
        )
