"""Terminal output beside results: silenced notices, the package's own log, and errors that a user can fix."""

import argparse
import errno
import logging
import os
import threading
import traceback
import warnings
from typing import NoReturn

from pytorch_lightning.utilities.exceptions import MisconfigurationException

from lightning_l2l.errors import InvalidInputError, first_line

PROGRAM = "python -m lightning_l2l"
LONGEST = 280  # characters of a sentence, with "error: " before it less than 300
LONGEST_WORD = 80
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # what a user's input is not to blame for
MEMORY = ("allocate memory", "Unable to allocate", "Maximum allowed dimension", "array is too big", "out of memory")
OTHERS = {"pytorch_lightning", "lightning_fabric", "lightning_utilities", "jsonargparse", "tensorboard"}
RESTORING = ("resume_start", "_restore_modules_and_callbacks", "restore_training_state")  # methods of Lightning's
STANDARD = os.path.dirname(os.__file__)


class ShortParser(argparse.ArgumentParser):
    """For a command with a few flags of its own: says what is wrong in one sentence.

    Args:
        command: its name.
        does: a docstring, whose first two paragraphs are the command's help.
    """

    def __init__(self, command: str, does: str | None) -> None:
        description = "\n\n".join((does or "").split("\n\n")[:2])
        super().__init__(f"{PROGRAM} {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises ``InvalidInputError``, which the command line prints."""
        raise InvalidInputError(message)


def invalid_input(error: BaseException | None) -> BaseException | None:
    """Finds an error that the user can fix in the chain of causes: the parser wraps errors of constructors."""
    found: BaseException | None = None
    seen: set[int] = set()  # errors may be causes of each other
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        found = error if isinstance(error, InvalidInputError | MisconfigurationException) else found
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def ending(error: BaseException) -> tuple[str, int] | None:
    """How a command ends with an error.

    Returns:
        One sentence, with what is to be copied below it, and the exit status: 1 where a disk failed, 2 otherwise. None
        for a fault of a program's own, which needs its traceback.
    """
    if (invalid := invalid_input(error)) is not None:
        to_copy = getattr(invalid, "to_copy", "")
        return one_sentence(str(invalid)) + (f"\n  {to_copy}" if to_copy else ""), 2
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno is not None:
            place = cause.filename if cause.filename is not None else "A file"
            sentence = f"{place} cannot be read or written: {cause.strerror}."
            return one_sentence(sentence), 1 if cause.errno in DISK else 2
        if isinstance(cause, MemoryError) or any(words in str(cause) for words in MEMORY):
            return one_sentence(f"There is not enough memory ({first_line(cause)}): give smaller settings."), 2
        if isinstance(cause, RecursionError):
            return "The settings are nested too deeply: write them flatter.", 2
        if isinstance(cause, UnicodeError):
            return one_sentence(f"A file or a setting is no text in UTF-8 ({first_line(cause)}): correct it."), 2
        if "null byte" in str(cause):
            return "A path has a null byte in it: give another path.", 2
        if isinstance(cause, ImportError):
            return one_sentence(f"{first_line(cause)}: install it, or change the setting that needs it."), 2
    if _restoring(error):
        reason = f"{type(error).__name__}: {first_line(error)}"
        return one_sentence(f"--ckpt_path cannot be used ({reason[:150]}): give another checkpoint."), 2
    if library := OTHERS.intersection(_raised_in(error)):
        reason = first_line(error)
        if isinstance(error, TypeError | AttributeError):  # which says nothing of a setting
            reason = f"{min(library)} cannot use a setting ({reason}): correct it."
        return one_sentence(reason), 2
    return None


def _causes(error: BaseException) -> list[BaseException]:
    """An error, after that which it was raised from, and so on."""
    found = [error]
    while (cause := found[-1].__cause__) is not None and cause not in found:
        found.append(cause)
    return found[::-1]


def _restoring(error: BaseException) -> bool:
    """Whether Lightning was restoring a checkpoint, and neither a learner nor a callback of the user's own fails."""
    frames = traceback.extract_tb(error.__traceback__)
    restores = [f.name for f in frames if f.filename.endswith("checkpoint_connector.py") and f.name in RESTORING]
    return bool(restores and _raised_in(error) & {"site-packages", "lightning_l2l"})


def _raised_in(error: BaseException) -> set[str]:
    """The parts of the path of the file that raised an error, by itself, in the standard library or in PyTorch."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    own = [file for file in files if "site-packages" in file or not file.startswith(STANDARD)]
    own = [file for file in own if f"{os.sep}torch{os.sep}" not in file]
    return set(own[-1].split(os.sep)) if own else set()


def one_sentence(text: str) -> str:
    """A message on one line, in printable characters, and with long words and the end of a long text cut."""
    printable = "".join(c if c.isprintable() or c.isspace() else repr(c)[1:-1] for c in text)
    half = LONGEST_WORD // 2 - 1
    words = [word if len(word) <= LONGEST_WORD else f"{word[:half]}…{word[-half:]}" for word in printable.split()]
    line = " ".join(words)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


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
    threading.excepthook = _not_from_tensorboard


def _not_from_tensorboard(stopped: threading.ExceptHookArgs) -> None:
    """Prints what stopped a thread, unless it is TensorBoard's: the next write raises that error anew."""
    if not type(stopped.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(stopped)


def show_log() -> None:
    """Prints the package's own log, such as how long a kernel took to compile."""
    log = logging.getLogger("lightning_l2l")
    if os.environ.get("LOCAL_RANK", "0") == "0":
        log.setLevel(logging.INFO)
        log.handlers = [logging.StreamHandler()]  # anew, since another command in this process may have had its own
