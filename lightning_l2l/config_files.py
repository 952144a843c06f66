"""Configs as a user names them, laid upon one another."""

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
    """--config: a path, or the bare name of one of the package's own configs."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Resolves the name and applies the file; variants are merged with those before, or removed by {}."""
        before = cfg.get("variants")
        super().__call__(parser, cfg, str(find_config(values)), option_string)
        now = cfg.get("variants")
        if isinstance(before, dict) and isinstance(now, dict) and now:  # a dict would replace the whole of the other
            cfg.variants = merge(before, now)


def find_config(name: str) -> Path:
    """Returns the file that --config means.

    Raises:
        InvalidInputError: there is none; the message lists those there are.
    """
    for folder in (Path(), *CONFIG_FOLDERS):
        if (folder / name).is_file() and (folder == Path() or "/" not in name):
            return folder / name
    known = sorted({path.name for folder in CONFIG_FOLDERS for path in folder.glob("*.yaml")})
    raise InvalidInputError(
        f"--config is {name}, which is neither a file nor one of the package's own: choose {', '.join(known)}."
    )


def merge(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Returns settings with some changed, at any depth; another class comes without the settings of the one before."""
    merged = dict(settings)
    for key, change in changes.items():
        into = merged.get(key)
        if isinstance(into, dict) and isinstance(change, dict) and "class_path" not in change:
            merged[key] = merge(into, change)
        else:
            merged[key] = change
    return merged


def refuse_old_keys(arguments: Sequence[str]) -> None:
    """Refuses configs and flags with settings of the learner that a table of stages has replaced.

    Args:
        arguments: the command line.

    Raises:
        InvalidInputError: shows the table.
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
            settings = _read(find_config(value))
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


def _read(path: Path) -> dict[str, Any]:
    """A config as it stands there; what is no config says so where it is parsed."""
    try:
        settings = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return {}
    return settings if isinstance(settings, dict) else {}
