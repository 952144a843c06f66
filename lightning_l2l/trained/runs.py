"""The folders of runs: save_dir/NAME/version_N, each with its checkpoints."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.tensorboard import run_folder


def runs_folder(logger: Any) -> Path | None:
    """Where runs of this name are kept; None without a TensorBoardLogger."""
    if not isinstance(logger, Namespace) or not str(logger.get("class_path", "")).endswith("TensorBoardLogger"):
        return None
    return Path(logger.init_args.save_dir).resolve() / (logger.init_args.name or "lightning_logs")


def find_checkpoint(name: str, runs: Path | None, version: int | str | None = None) -> Path:
    """Returns the file that --ckpt_path means.

    Args:
        name: a path; or ``best`` or ``last``, from the run with the highest number that has one.
        runs: the folder of the runs of this experiment.
        version: the run, if the user has chosen one.

    Raises:
        InvalidInputError: there is no such file, or several runs without a number have one.
    """
    if name not in ("best", "last"):
        if Path(name).is_file():
            return Path(name)
        raise InvalidInputError(f"--ckpt_path is {name}, but there is no such file: give best, last or a path.")
    place = runs / _folder_name(version) if runs and version is not None else runs
    chosen = "" if version is not None else "*/"
    found = {path.parents[1].name: path for path in place.glob(f"{chosen}checkpoints/{name}.ckpt")} if place else {}
    if not found:
        raise InvalidInputError(
            f"--ckpt_path is {name}, but no run in {place or 'this logger'} has one: run fit first, or give a path."
        )
    numbered = {run: int(run.removeprefix("version_")) for run in found if re.fullmatch(r"version_\d+", run)}
    if not numbered and len(found) > 1:
        raise InvalidInputError(
            f"--ckpt_path is {name}, but {' and '.join(sorted(found)[:2])} in {runs} both have one: give a path."
        )
    return found[max(numbered, key=numbered.__getitem__) if numbered else next(iter(found))]


def continue_run(checkpoint: Path, logger: Namespace, arguments: Sequence[str]) -> None:
    """Points the logger at the run that a checkpoint belongs to, unless the command line names another place.

    Args:
        checkpoint: its absolute path; one that lies in no run changes nothing.
        logger: the settings of the TensorBoardLogger, which are changed.
        arguments: the command line.
    """
    folder = run_folder(checkpoint)
    if folder is None:
        return
    own = {"save_dir": folder.parents[1], "name": folder.parent.name, "version": folder.name}
    given = logger.init_args
    runs = Path(given.save_dir).resolve() / (given.name or "lightning_logs")
    now = {"save_dir": runs.parent, "name": runs.name, "version": _folder_name(given.version)}
    if all(own[key] == now[key] for key in own if on_command_line(key, arguments)):
        given.save_dir, given.name, given.version = str(own["save_dir"]), own["name"], own["version"]


def on_command_line(key: str, arguments: Sequence[str]) -> bool:
    """Whether a flag sets this key of the logger."""
    flag = re.compile(rf"--trainer\.logger(\.init_args)?(\.{key}(=.*)?|=.*\b{key}\b.*)", re.DOTALL)
    # a flag and its value may be two arguments
    apart = [f"{one}={value}" for one, value in pairwise(arguments) if "=" not in one]
    return any(flag.fullmatch(argument) for argument in (*arguments, *apart))


def _folder_name(version: int | str | None) -> str:
    return f"version_{version}" if isinstance(version, int) else str(version)
