"""Terminal output beside results: silenced notices, the package's own log, and errors that a user can fix."""

import argparse
import logging
import os
import warnings
from typing import NoReturn

from pytorch_lightning.utilities.exceptions import MisconfigurationException

from lightning_l2l.errors import InvalidInputError


class ShortParser(argparse.ArgumentParser):
    """For a command with a few flags of its own: says what is wrong in one sentence.

    Args:
        command: its name.
        does: a docstring, whose first two paragraphs are the command's help.
    """

    def __init__(self, command: str, does: str | None) -> None:
        description = "\n\n".join((does or "").split("\n\n")[:2])
        super().__init__(f"python -m lightning_l2l {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises ``InvalidInputError``, which the command line prints."""
        raise InvalidInputError(message)


def invalid_input(error: BaseException | None) -> BaseException | None:
    """Finds an error that the user can fix in the chain of causes: the parser wraps errors of constructors."""
    found: BaseException | None = None
    while error is not None:
        found = error if isinstance(error, InvalidInputError | MisconfigurationException) else found
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def quieten() -> None:
    """Silences notices that a user can do nothing about."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    warnings.filterwarnings("ignore", ".*overridden `on_after_batch_transfer`.*")
    warnings.filterwarnings("ignore", ".*args parameter is intended to run from within Python.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*WeightAveraging callback, but loading a checkpoint outside.*")
    warnings.filterwarnings("ignore", ".*was deprecated in v4.*")  # of jsonargparse, by Lightning
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: "Tip" not in record.getMessage()
    )


def show_log() -> None:
    """Prints the package's own log, such as how long a kernel took to compile."""
    log = logging.getLogger("lightning_l2l")
    if os.environ.get("LOCAL_RANK", "0") == "0":
        log.setLevel(logging.INFO)
        log.handlers = [logging.StreamHandler()]  # anew, since another command in this process may have had its own
