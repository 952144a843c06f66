"""Reads checkpoints, and checks that they fit."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.learners.old_schedule import refuse_another_schedule
from lightning_l2l.optimizees.origin import KEPT, is_kept
from lightning_l2l.rules.files import PRETRAINED, data_of, described, read_rule, read_safely
from lightning_l2l.tensorboard import run_folder

SECTIONS = ("hyper_parameters", "datamodule_hyper_parameters", "callbacks", "loops")  # mappings of a checkpoint
WEIGHTS, OF_ADAM = ("state_dict", "current_model_state"), ("optimizer_states", "lr_schedulers")  # parts with numbers


def read_checkpoint(path: Path, resumes: bool, flag: str = "--ckpt_path") -> dict[str, Any]:
    """Reads a checkpoint without executing anything in it.

    Args:
        path: the file.
        resumes: whether training resumes from it, which needs more than the weights.
        flag: what gave the file.

    Raises:
        InvalidInputError: it is truncated, not one of this package, or has invalid numbers; in the first two cases
            the error names the newest intact one of the same run.
    """
    if (checkpoint := _read_whole(path, resumes)) is not None:
        check_numbers(checkpoint, f"{flag} is {path}", resumes)
        return checkpoint
    others = set(path.parent.glob("[!.]*.ckpt")) - {path} if run_folder(path) else set()
    newest = sorted(others, key=lambda other: other.stat().st_mtime, reverse=True)
    whole = next((other for other in newest if _read_whole(other, resumes) is not None), None)
    instead = "another" if whole is None else f"{whole.name} beside it, which is whole"
    raise InvalidInputError(
        f"{flag} is {path}, which is truncated or not a checkpoint of this package: give {instead}."
    )


def _read_whole(path: Path, resumes: bool) -> dict[str, Any] | None:
    """The checkpoint; None if the file is damaged, or lacks something."""
    checkpoint = read_safely(path)
    needed = {"state_dict", "pytorch-lightning_version"} | ({"loops", "optimizer_states"} if resumes else set())
    if not isinstance(checkpoint, dict) or not needed <= checkpoint.keys():
        return None
    sections = [checkpoint[key] for key in SECTIONS if key in checkpoint]
    sections += [own["data"] for own in sections if isinstance(own, dict) and "data" in own]
    if not all(isinstance(section, dict) for section in sections):
        return None
    weights = checkpoint["state_dict"]
    if not isinstance(weights, dict) or not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        return None
    kept = checkpoint["optimizer_states"] if resumes else []
    if not isinstance(kept, list) or not all(map(_is_optimizer_state, kept)):
        return None
    return checkpoint if KEPT not in checkpoint or is_kept(checkpoint[KEPT]) else None


def _is_optimizer_state(kept: Any) -> bool:
    """Whether this has the form that an optimizer's ``state_dict`` returns, of real numbers."""
    states, groups = (kept.get(key) if isinstance(kept, dict) else None for key in ("state", "param_groups"))
    if not isinstance(states, dict) or not isinstance(groups, list):
        return False
    numbers = [group.get("params") if isinstance(group, dict) else None for group in groups]
    if not all(isinstance(own, list) and all(isinstance(number, int) for number in own) for own in numbers):
        return False
    values = [value for state in states.values() if isinstance(state, dict) for value in state.values()]
    return not any(isinstance(value, torch.Tensor) and value.is_complex() for value in values)


def check_numbers(checkpoint: dict[str, Any], subject: str, resumes: bool) -> None:
    """Refuses numbers that are not finite, and those of Adam and its schedule that must not be negative but are.

    Args:
        checkpoint: its weights count, and, where training resumes, what Adam and its schedule keep.
        subject: what the error begins with.
        resumes: whether training resumes from it.

    Raises:
        InvalidInputError: names the first such number.
    """
    for part in WEIGHTS + OF_ADAM if resumes else WEIGHTS[:1]:
        for key, value in _numbers(checkpoint.get(part), part):
            tensor = torch.as_tensor(value)
            within = part in WEIGHTS or _within(key, tensor)
            finite = bool(tensor.isfinite().all()) or (part == "lr_schedulers" and _is_unset(key, value))
            if not finite or not within:
                many = "numbers that are not finite" if within else "negative numbers"
                found = many if tensor.ndim else tensor.item()
                raise InvalidInputError(f"{subject}, in which {key} has {found}: give another checkpoint.")


def _is_unset(key: str, value: Any) -> bool:
    """Whether this is the infinity that ReduceLROnPlateau keeps for a loss before it has seen any."""
    return key.endswith((".best", ".mode_worse")) and isinstance(value, float) and math.isinf(value)


def _within(key: str, number: torch.Tensor) -> bool:
    """Whether a number of Adam or its schedule is 0 or more where it must be, and a β below 1."""
    if ".betas." in key:
        return bool((number >= 0).all() and (number < 1).all())
    from_0 = key.rpartition(".")[2] in ("lr", "initial_lr", "step", "exp_avg_sq", "eps", "weight_decay") or "_lr" in key
    return not from_0 or bool((number >= 0).all())


def _numbers(value: Any, key: str) -> Iterator[tuple[str, torch.Tensor | float]]:
    """All tensors and numbers in nested dictionaries and lists, each with its full name."""
    if isinstance(value, dict | list | tuple):
        for name, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(entry, f"{key}.{name}")
    elif isinstance(value, torch.Tensor | float | int):
        yield key, value


def read_pretrained(name: str) -> dict[str, Any]:
    """Reads a trained rule, given as pretrained:NAME or pretrained:PATH, as if it were a checkpoint.

    Raises:
        InvalidInputError: there is none, or it cannot be used.
    """
    try:
        settings, tensors = read_rule(name.removeprefix(PRETRAINED))
    except InvalidInputError as error:  # it speaks of the rule that LearnedOptimizer takes
        raise InvalidInputError(f"--ckpt_path is {PRETRAINED}{str(error).removeprefix('rule is ')}") from None
    return {
        "state_dict": {f"rule.{key}": tensor for key, tensor in tensors.items()},
        "hyper_parameters": {"rule": settings},
        "data": data_of(name.removeprefix(PRETRAINED)),
    }


def check_same_settings(checkpoint: dict[str, Any], config: Namespace, resumes: bool) -> None:
    """Refuses settings that contradict the checkpoint instead of letting either silently win.

    Args:
        checkpoint: as ``read_checkpoint`` returned it.
        config: the current settings.
        resumes: whether training resumes, in which case all settings count. Otherwise only the rule, the learner's
            class and the split of images of the same source count, since a test must not see images of meta-training.

    Raises:
        InvalidInputError: names the first setting that differs.
    """
    settings = checkpoint.get("hyper_parameters", {})
    kept = flatten(settings, "model.")
    kept |= flatten(checkpoint.get("datamodule_hyper_parameters", {}).get("data", {}), "data.")
    model = {"class_path": config.model.class_path, **plain(config.model.get("init_args", {}))}
    given = flatten(model, "model.") | flatten(plain(config.data), "data.")
    source, parts = "data.init_args.source", "data.init_args.parts"
    for key in sorted(kept.keys() & given.keys() - {"data.init_args.root"}):
        counts = resumes or key.startswith("model.rule.") or key == "model.class_path"
        counts = counts or (key == parts and kept.get(source) == given.get(source))
        if counts and not same_settings(kept[key], given[key]):
            raise _differs(key, given[key], kept[key])
    for key in sorted(given.keys() ^ kept.keys()):  # one may be a value where the other is a class with settings
        other, more = (kept, given) if key in given else (given, kept)
        whole = next((name for name in other if key.startswith(f"{name}.")), None)
        if whole is not None and (resumes or whole.startswith("model.rule")):
            both = (other[whole], f"{key.removeprefix(whole + '.')} {more[key]}")
            raise _differs(whole, *(both if other is given else reversed(both)))
    if resumes:
        _refuse_fewer_epochs(checkpoint, config.trainer.max_epochs)
        refuse_another_schedule(settings, model.get("stages"), config.trainer.max_epochs)


def same_settings(kept: Any, given: Any) -> bool:
    """Whether two settings are equal; in mappings inside of lists, keys that one alone has do not count, either.

    An earlier version may not have known them.
    """
    if isinstance(kept, list) and isinstance(given, list):
        return len(kept) == len(given) and all(map(same_settings, kept, given))
    if isinstance(kept, dict) and isinstance(given, dict):
        return all(same_settings(kept[key], given[key]) for key in kept.keys() & given.keys())
    return kept == given


def _refuse_fewer_epochs(checkpoint: dict[str, Any], epochs: int | None) -> None:
    try:
        begun = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"]
    except (KeyError, TypeError):
        return  # another version of Lightning's
    if epochs is not None and 0 < epochs < begun:
        raise InvalidInputError(
            f"trainer.max_epochs is {epochs}, but the checkpoint is of epoch {begun}: give that or more."
        )


def _differs(key: str, given: Any, kept: Any) -> InvalidInputError:
    return InvalidInputError(
        f"{key} is {given}, but the checkpoint was trained with {kept}: give that, or start anew without --ckpt_path."
    )


def check_same_shapes(weights: dict[str, torch.Tensor], own: dict[str, torch.Tensor], path: str) -> None:
    """Refuses weights of another shape, or of whole numbers.

    Args:
        weights: those of a checkpoint.
        own: the weights that they replace.
        path: the checkpoint's.

    Raises:
        InvalidInputError: names the first that differs.
    """
    kept, here = described(weights), described(own)
    if kept != here:
        name = next(iter(dict(kept.items() ^ here.items())))
        raise InvalidInputError(
            f"--ckpt_path is {path}, in which {name} has {kept.get(name, 'nothing')}, but here "
            f"{here.get(name, 'nothing')}: give the model.rule it was trained with."
        )


def without_ckpt_path(arguments: list[str]) -> list[str]:
    """The command line without --ckpt_path and its value."""
    kept = [argument for argument in arguments if not argument.startswith("--ckpt_path=")]
    if "--ckpt_path" in kept:
        index = kept.index("--ckpt_path")
        del kept[index : index + 2]
    return kept


def plain(settings: Any) -> Any:
    """Settings as dictionaries, lists, strings, numbers and None, which a checkpoint may hold safely."""
    if isinstance(settings, Namespace):
        return {key: plain(value) for key, value in vars(settings).items()}
    if isinstance(settings, dict):
        return {str(key): plain(value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [plain(value) for value in settings]
    return settings if isinstance(settings, bool | int | float | str | None) else str(settings)


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their full names, such as data.init_args.seed, without private ones."""
    if not isinstance(settings, dict):
        return {prefix.removesuffix("."): settings}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if not key.startswith("_"):
            flat |= flatten(value, f"{prefix}{key}.")
    return flat
