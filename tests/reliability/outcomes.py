"""What a run leaves, in a form that can be compared."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TIMES = {"train/episodes_per_second"}  # of what is logged
OTHERS = ("dirpath", "model_path", "k_models", "hyper_parameters", "current_score")
"""Ends of names of what depends on the place, and of a score that Lightning keeps but does not restore."""


def outcome(folder: Path) -> dict[str, Any]:
    """The checkpoints and the logged numbers of the newest run in a folder; empty without a run."""
    if (run := newest(folder)) is None:
        return {}
    return {file.stem: content(file) for file in run.glob("checkpoints/[lb]*.ckpt")} | {"logged": logged(run)}


def newest(folder: Path) -> Path | None:
    """The run with the highest number in a folder that has one."""
    runs = folder.glob("runs/*/version_*")
    return max(runs, key=lambda run: int(run.name.removeprefix("version_")), default=None)


def content(path: Path) -> Any:
    """A checkpoint's values in digits, since NaN equals nothing."""

    def stripped(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: stripped(one) for key, one in value.items() if not str(key).endswith(OTHERS)}
        if isinstance(value, list | tuple):
            return [stripped(one) for one in value]
        return repr(value.tolist() if isinstance(value, torch.Tensor) else value)

    return stripped(torch.load(path, weights_only=True))


def logged(run: Path) -> dict[tuple[str, int], set[str]]:
    """The numbers of a run by name and step, in digits; those that were logged twice must be equal."""
    numbers: dict[tuple[str, int], set[str]] = {}
    for file in run.glob("events.*"):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for name in set(events.Tags()["scalars"]) - TIMES:
            for event in events.Scalars(name):
                numbers.setdefault((name, event.step), set()).add(repr(event.value))
    return numbers


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Where two outcomes differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys(), key=str)
        return [line for key in keys for line in differences(one.get(key), other.get(key), f"{name}.{key}")]
    return [] if one == other else [f"{name}: {one!s:.100} is not {other!s:.100}"]


def not_finite(folder: Path, but: Collection[Path] = ()) -> list[str]:
    """The numbers of φ and of its optimizer in checkpoints below a folder that are NaN or infinite."""
    found = []
    for file in set(folder.rglob("*.ckpt")) - set(but):
        checkpoint = torch.load(file, weights_only=True)
        tensors = dict(checkpoint["state_dict"])
        for optimizer in checkpoint.get("optimizer_states", []):
            for number, state in optimizer["state"].items():
                tensors |= {f"{number}.{key}": value for key, value in state.items() if isinstance(value, torch.Tensor)}
        found += [f"{file.name}: {name}" for name, tensor in tensors.items() if not tensor.isfinite().all()]
    return found
