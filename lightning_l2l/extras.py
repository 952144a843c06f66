"""Packages that are not always installed."""

import contextlib
import importlib
import io
from types import ModuleType

from lightning_l2l.errors import InvalidInputError


def learn2learn(needed_by: str) -> ModuleType:
    """Imports learn2learn, without the notice that gym prints.

    Args:
        needed_by: the key and the value that need it, for the error message.

    Raises:
        InvalidInputError: it is not installed.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return importlib.import_module("learn2learn")
    except ModuleNotFoundError as error:
        raise InvalidInputError(
            f"{needed_by} needs {error.name}, which is not installed: run uv sync --extra learn2learn."
        ) from error
