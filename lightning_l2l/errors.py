"""The exception for errors that the user can fix, and helpers for its messages."""

import math
from pathlib import Path


class InvalidInputError(Exception):
    """Raised for a value, file or flag that cannot be used.

    Its message is one sentence that names the key, the value and the fix; the command line prints it without a
    traceback and exits with status 2.

    Args:
        message: the sentence.
        to_copy: what the user may copy, such as a flag; it is printed in full on a line of its own.
    """

    def __init__(self, message: str = "", to_copy: str = "") -> None:
        super().__init__(message)
        self.to_copy = to_copy


def first_line(error: BaseException) -> str:
    """The first line of an error's message, to be quoted in another sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def require_positive(key: str, value: float) -> None:
    """Raises ``InvalidInputError`` unless a setting is above zero, and finite."""
    if not 0 < value < math.inf:
        raise InvalidInputError(f"{key} is {value}, but it must be positive and finite: give a value above 0.")


def require_not_negative(key: str, value: float) -> None:
    """Raises ``InvalidInputError`` unless a setting is zero or above, and finite."""
    if not 0 <= value < math.inf:
        raise InvalidInputError(f"{key} is {value}, but it must be finite and not negative: give 0 or more.")


def require_share(key: str, value: float) -> None:
    """Raises ``InvalidInputError`` unless a setting is a share of the past that is kept: from 0 to less than 1."""
    if not 0 <= value < 1:
        raise InvalidInputError(f"{key} is {value}: give 0 or more, and less than 1.")


def require_suffix(key: str, path: Path, suffix: str) -> None:
    """Raises ``InvalidInputError`` unless a file's name ends with a suffix."""
    if path.suffix != suffix:
        raise InvalidInputError(f"{key} is {path}: give it the ending {suffix}.")


def require_inside(key: str, value: str) -> None:
    """Raises ``InvalidInputError`` unless a setting names a folder inside the run's."""
    if Path(value).is_absolute() or ".." in Path(value).parts:
        raise InvalidInputError(f"{key} is {value}, which lies outside the run's folder: give a name.")


def require_within(key: str, value: float, lowest: float, highest: float) -> None:
    """Raises ``InvalidInputError`` unless a setting lies between two values, or is one of them."""
    if not lowest <= value <= highest:
        raise InvalidInputError(f"{key} is {value}: give a number from {lowest} to {highest}.")
