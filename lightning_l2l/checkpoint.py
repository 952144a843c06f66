"""Checkpoints as a user names them, and whether they fit."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from lightning_l2l.errors import InvalidInputError


def find_checkpoint(name: str, runs: Path | None) -> Path:
    """Returns the file that --ckpt_path means.

    Args:
        name: a path, or ``best`` or ``last``: that of the newest run that has one.
        runs: the folder of the runs of this experiment.

    Raises:
        InvalidInputError: there is no such file.
    """
    if name not in ("best", "last"):
        if Path(name).is_file():
            return Path(name)
        raise InvalidInputError(f"--ckpt_path is {name}, but there is no such file: give best, last or a path.")
    found = list(runs.glob(f"*/checkpoints/{name}.ckpt")) if runs else []
    if not found:
        raise InvalidInputError(
            f"--ckpt_path is {name}, but no run in {runs or 'this logger'} has one: run fit first, or give a path."
        )
    return max(found, key=lambda path: path.stat().st_mtime)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint without executing anything in it.

    Raises:
        InvalidInputError: it is truncated, or not one of this package.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if not any(key.startswith("rule.") for key in checkpoint["state_dict"]):
            raise KeyError("rule")
    except (
        OSError,
        RuntimeError,
        EOFError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        KeyError,
        TypeError,
    ) as error:
        raise InvalidInputError(
            f"--ckpt_path is {path}, which is truncated or not a checkpoint of this package: give another."
        ) from error
    return checkpoint


def check_same_settings(checkpoint: dict[str, Any], model: Any, resumes: bool) -> None:
    """Refuses settings of the model that contradict the checkpoint instead of letting either silently win.

    Args:
        checkpoint: as ``read_checkpoint`` returned it.
        model: the settings given now.
        resumes: whether training goes on, for which all settings count; otherwise only those of the rule do.

    Raises:
        InvalidInputError: names the first setting that differs.
    """
    kept = _flatten(checkpoint.get("hyper_parameters", {}))
    given = _flatten(model.as_dict() if hasattr(model, "as_dict") else model)
    for key in sorted(kept.keys() & given.keys()):
        if kept[key] != given[key] and (resumes or key.startswith("rule.")):
            raise InvalidInputError(
                f"model.{key} is {given[key]}, but the checkpoint was trained with {kept[key]}: give that, or start "
                "anew without --ckpt_path."
            )


def _flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(settings, dict):
        return {prefix.removesuffix("."): settings}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if not key.startswith("_"):
            flat |= _flatten(value, f"{prefix}{key}.")
    return flat
