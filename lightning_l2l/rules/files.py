"""Trained rules: a few thousand numbers each, as NAME.safetensors, beside a model card NAME.md.

A file holds tensors, and in its header the rule's class and settings as JSON. Reading it executes nothing: only
classes of ``lightning_l2l.rules`` are ever instantiated from it.
"""

import json
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import lightning_l2l.rules
from lightning_l2l.errors import InvalidInputError, first_line
from lightning_l2l.rules import UpdateRule

FOLDER = Path(__file__).parents[1] / "pretrained"
PRETRAINED = "pretrained:"  # before the name of a trained rule, where a checkpoint may stand too
KEY = "lightning_l2l.rule"  # of the rule's class and settings in a file's header


def names() -> list[str]:
    """The trained rules that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def load_rule(name: str | PathLike, rule: UpdateRule | None = None) -> UpdateRule:
    """Returns a trained rule.

    Args:
        name: one of the package's own, such as ``mnist``, or a file's path.
        rule: an untrained rule, which gets the file's numbers. This is how to load a rule of your own class, since only
            the package's own classes are ever instantiated from a file.

    Raises:
        InvalidInputError: there is no such rule, or the file cannot be used.
    """
    settings, tensors = read_rule(name)
    if rule is None:
        with torch.random.fork_rng(devices=[]):  # initial weights must not use up the caller's random numbers
            rule = make_rule(settings, name)
    try:
        rule.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InvalidInputError(f"rule is {name}, whose numbers do not fit {type(rule).__name__}: {reason}") from error
    return rule


def save_rule(rule: UpdateRule, path: str | PathLike, settings: dict[str, Any]) -> None:
    """Writes a rule for ``load_rule``.

    Args:
        rule: the trained rule.
        path: the file to write, by convention with the suffix .safetensors.
        settings: its class_path and init_args, as in a config.
    """
    write_rule(rule.state_dict(), path, settings)


def write_rule(tensors: dict[str, Tensor], path: str | PathLike, settings: dict[str, Any]) -> None:
    """As ``save_rule``, for a rule's ``state_dict``."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    Path(path).write_bytes(save(tensors, {KEY: json.dumps(settings, sort_keys=True)}))


def read_rule(name: str | PathLike) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the settings (class_path and init_args) and the tensors of a trained rule's file.

    Raises:
        InvalidInputError: there is none, or it is truncated or not such a file.
    """
    path = FOLDER / f"{name}.safetensors" if str(name) in names() else Path(name)
    if not path.is_file():
        raise InvalidInputError(
            f"rule is {name}, which is neither a file nor one of the package's own: choose {', '.join(names())}."
        )
    try:
        with safe_open(path, "pt") as file:
            settings = json.loads((file.metadata() or {})[KEY])
            return settings, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dictionary
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"rule is {name}, which is truncated or was not written by export or save_rule: give another file."
        ) from error


def read_safely(path: str | PathLike) -> Any:
    """Returns what ``torch.save`` wrote to a file, without executing anything in it; None if the file is damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # damaged bytes may mean anything, and so raise anything
        return None


def make_rule(settings: Any, name: str | PathLike) -> UpdateRule:
    """Makes an untrained rule; only the package's own classes are allowed.

    Args:
        settings: its class_path and init_args, as a file holds them.
        name: the file's, for the error message.

    Raises:
        InvalidInputError: they name a class that is not the package's, or do not fit theirs.
    """
    own = {f"lightning_l2l.rules.{key}": getattr(lightning_l2l.rules, key) for key in lightning_l2l.rules.__all__}
    rules = {key: value for key, value in own.items() if isinstance(value, type) and issubclass(value, UpdateRule)}

    def make(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "class_path" not in value:
            return {key: make(entry) for key, entry in value.items()}
        if (path := str(value["class_path"])) not in rules:
            raise InvalidInputError(
                f"rule is {name}, which is of {path}: that is none of the package's own rules, so make it yourself and "
                "give it to load_rule as rule."
            )
        return rules[path](**make(value.get("init_args", {})))

    try:
        rule = make(settings)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"rule is {name}, whose header has settings that do not fit its class ({first_line(error)}): give another "
            "file."
        ) from error
    if not isinstance(rule, UpdateRule):
        raise InvalidInputError(f"rule is {name}, whose header has no class_path: give another file.")
    return rule
