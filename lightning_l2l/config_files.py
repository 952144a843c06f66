"""Finds configs by name and merges them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.learners.old_schedule import OLD_KEYS, refuse_old_schedule

PACKAGE = Path(__file__).parent
CONFIG_FOLDERS = (PACKAGE / "configs", PACKAGE.parent / "configs")  # in an installed wheel, in a checkout


class ConfigByName(ActionConfigFile):
    """--config: a path, or the bare name of one of the package's own configs.

    A config overrides single settings of the configs before it, at any depth; {} empties a mapping.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.before: dict[str, Any] = {}  # the merged settings of all files so far

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Resolves the name, and applies what the file changes."""
        path = find_config(values)
        settings = read_config(path)
        if settings is None:  # the parser reports what is wrong with it
            super().__call__(parser, cfg, str(path), option_string)
            return
        self.before = merge(self.before, settings)
        super().__call__(parser, cfg, yaml.safe_dump(_changed(self.before, settings)), option_string)


def find_config(name: str) -> Path:
    """Returns the file that --config means.

    Raises:
        InvalidInputError: there is none; the message lists the available ones.
    """
    for folder in (Path(), *CONFIG_FOLDERS):
        if (folder / name).is_file() and (folder == Path() or "/" not in name):
            return folder / name
    known = sorted({path.name for folder in CONFIG_FOLDERS for path in folder.glob("*.yaml")})
    raise InvalidInputError(
        f"--config is {name}, which is neither a file nor one of the package's own: choose {', '.join(known)}."
    )


def merge(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Returns settings with some changed, at any depth; a new class_path drops the settings of the previous class."""
    merged = dict(settings)
    for key, change in changes.items():
        into = merged.get(key)
        if not (isinstance(into, dict) and isinstance(change, dict) and change):
            merged[key] = change
            continue
        same_class = change.get("class_path", into.get("class_path")) == into.get("class_path")
        merged[key] = merge(into, change) if same_class else change
    return merged


def _changed(merged: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The part of the merged settings that one config sets, so that flags given before it keep their values."""
    part = {}
    for key, value in settings.items():
        sections = isinstance(value, dict) and key in ("model", "data", "trainer", "init_args", "comparison")
        part[key] = _changed(merged[key], value) if sections else merged[key]
    return part


def refuse_old_keys(arguments: Sequence[str]) -> None:
    """Refuses configs and flags with learner settings that ``model.stages`` has replaced.

    Args:
        arguments: the command line.

    Raises:
        InvalidInputError: shows the equivalent table.
    """
    model: dict[str, Any] = {}
    epochs = None
    flags = iter(arguments)
    for flag in flags:
        name, has_value, value = flag.partition("=")
        key = name.removeprefix("--model.").removeprefix("init_args.")
        wanted = name in ("-c", "--config", "--trainer.max_epochs") or (name.startswith("--model.") and key in OLD_KEYS)
        if not wanted:
            continue
        value = value if has_value else next(flags, "")
        if name in ("-c", "--config"):
            settings = read_config(find_config(value)) or {}
            given = settings.get("model") or {}
            given = given.get("init_args", given) if isinstance(given, dict) else {}
            model |= {key: given[key] for key in (*OLD_KEYS, "unroll") if key in given}
            trainer = settings.get("trainer")
            epochs = trainer.get("max_epochs", epochs) if isinstance(trainer, dict) else epochs
        elif name == "--trainer.max_epochs":
            epochs = yaml.safe_load(value)
        else:
            model[key] = yaml.safe_load(value)
    refuse_old_schedule(model, epochs)


def read_config(path: Path) -> dict[str, Any] | None:
    """Returns the settings of a YAML file; None if it holds none that can be read."""
    try:
        settings = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return None
    return settings if isinstance(settings, dict) else None
