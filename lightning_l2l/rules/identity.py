"""What tells a rule from others: its contents, wherever they were read from."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_l2l.rules.base import UpdateRule


def identity(rule: UpdateRule) -> dict[str, Any]:
    """Returns a rule's class, settings and a digest of its numbers, as plain values for a state dict.

    Its settings are the plain public attributes of the rule and of the modules in it, by their names.
    """
    settings = {
        ".".join(filter(None, (name, key))): value
        for name, module in rule.named_modules()
        for key, value in vars(module).items()
        if not key.startswith("_") and key != "training" and is_plain(value)
    }
    return {"class": type(rule).__name__, "settings": settings, "numbers": digest(rule.state_dict())}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns a digest of named tensors, which is the same in each precision that holds their numbers."""
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} {list(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().to(torch.float64).numpy().tobytes())
    return found.hexdigest()


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two identities are those of one rule; settings that only one of them knows do not count."""
    shared = one["settings"].keys() & other["settings"].keys()
    return (one["class"], one["numbers"]) == (other["class"], other["numbers"]) and all(
        one["settings"][key] == other["settings"][key] for key in shared
    )


def is_plain(value: Any) -> bool:
    """Whether a value consists of numbers and text alone."""
    if isinstance(value, list | tuple):
        return type(value) in (list, tuple) and all(map(is_plain, value))
    if isinstance(value, dict):
        return all(map(is_plain, value)) and all(map(is_plain, value.values()))
    return value is None or type(value) in (bool, int, float, str)
