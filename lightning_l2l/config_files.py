"""Finds configs by name and merges them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ActionConfigFile, Namespace

from lightning_l2l.errors import (
    InvalidInputError,
    first_line,
    require_inside,
    require_not_negative,
    require_positive,
    require_within,
)
from lightning_l2l.learners.old_schedule import refuse_old_schedule
from lightning_l2l.yaml_files import check_yaml, load_yaml, read_yaml

PACKAGE = Path(__file__).parent
CONFIG_FOLDERS = (PACKAGE / "configs", PACKAGE.parent / "configs")  # in an installed wheel, in a checkout
LEARNER = "lightning_l2l.learners.MetaLearner"  # unless a config or a flag names another


class ConfigByName(ActionConfigFile):
    """--config: a path, or the bare name of one of the package's own configs.

    A config overrides single settings of the configs before it, at any depth; {} empties a mapping.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.before: dict[str, Any] = {}  # the merged settings of all files so far
        self.files = 0

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Resolves the name, and applies what the file changes."""
        path = find_config(values)
        settings = read_config(path)
        self.files += 1
        if self.files <= parser.replaced:
            settings.pop("model", None)
        self.before = merge(self.before, settings)
        super().__call__(parser, cfg, yaml.safe_dump(_changed(self.before, settings), sort_keys=False), option_string)


def find_config(name: str, flag: str = "--config") -> Path:
    """Returns the file that a flag means.

    Args:
        name: of a file in configs/, or a path.
        flag: --config, or one that takes a file of problems.

    Raises:
        InvalidInputError: there is none; the message lists the available ones.
    """
    for folder in (Path(), *CONFIG_FOLDERS):
        if (folder / name).is_file() and (folder == Path() or "/" not in name):
            return folder / name
    known = sorted({path.stem for folder in CONFIG_FOLDERS for path in folder.glob("[!.]*.yaml")})
    known = [stem for stem in known if stem.endswith("_problems") == (flag != "--config")]
    raise InvalidInputError(
        f"{flag} is {name[:80]}, which is no file: give one, or a name from below.",
        f"{flag} {', '.join(known)} (.yaml)",
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
        sections = isinstance(value, dict) and key in (
            "model",
            "data",
            "trainer",
            "init_args",
            "comparison",
            "benchmark",
        )
        part[key] = _changed(merged[key], value) if sections else merged[key]
    return part


class Given(NamedTuple):
    """What a command line and its configs say of the learner, before they are parsed."""

    learner: str | None  # class path; None: the default
    replaced: int  # configs, the first ones, whose learner a later one replaces, and all of its settings
    settings: dict[str, Any]  # those of its own
    epochs: Any  # trainer.max_epochs


def given(arguments: Sequence[str]) -> Given:
    """Reads what the command line and its configs say of the learner."""
    model: dict[str, Any] = {}
    trainer: dict[str, Any] = {}
    configs = replaced = 0
    for flag in arguments:
        name, _, value = flag.partition("=")
        check_yaml(value or flag, f"{name[:40]}'s value")
    flags = iter(arguments)
    for flag in flags:
        name, has_value, value = flag.partition("=")
        if name not in ("-c", "--config", "--model", "--trainer.max_epochs") and not name.startswith("--model."):
            continue
        value = value if has_value else next(flags, "")
        if name in ("-c", "--config"):
            config = read_config(find_config(value))
            section = _as_mapping(config.get("model"))
            if "class_path" in section and _class_name(section) != _class_name(model):
                model, replaced = {}, configs
            configs += 1
            model = merge(model, section)
            trainer = merge(trainer, _as_mapping(config.get("trainer")))
        elif name == "--trainer.max_epochs":
            trainer["max_epochs"] = _parsed(value)
        elif name == "--model":
            model = merge(model, _as_mapping(_parsed(value)))
        else:
            model[name.removeprefix("--model.").removeprefix("init_args.")] = _parsed(value)
    return Given(
        model.get("class_path"), replaced, model | _as_mapping(model.get("init_args")), trainer.get("max_epochs")
    )


def refuse_old_keys(settings: Given) -> None:
    """Refuses settings of the default learner that ``model.stages`` has replaced.

    Raises:
        InvalidInputError: shows the equivalent table.
    """
    if _class_name({"class_path": settings.learner}) == _class_name({}):
        refuse_old_schedule(settings.settings, settings.epochs)


def _as_mapping(value: Any) -> dict[str, Any]:
    """A section of a config; a class path alone is short for one."""
    return value if isinstance(value, dict) else {"class_path": value} if isinstance(value, str) else {}


def _class_name(section: dict[str, Any]) -> str:
    """The learner's class in a section, by its own name alone."""
    return str(section.get("class_path") or LEARNER).rpartition(".")[2]


def _parsed(value: str) -> Any:
    """A flag's value; what is no YAML is refused where it is parsed for good."""
    try:
        return load_yaml(value, "a flag")
    except yaml.YAMLError:
        return value


def read_config(path: Path) -> dict[str, Any]:
    """Returns the settings of a YAML file.

    Raises:
        InvalidInputError: it cannot be read, or holds none.
    """
    subject = f"--config is {path}, which"
    try:
        settings = read_yaml(path, subject)
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{subject} is not a text in UTF-8: save it as that.") from error
    except (yaml.YAMLError, OSError) as error:
        raise InvalidInputError(f"{subject} cannot be read as YAML ({_problem(error)}): correct it.") from error
    if not isinstance(settings, dict):
        raise InvalidInputError(f"{subject} has no sections: give some, such as model, data and trainer.")
    _check_keys(settings, subject)
    return settings


def _problem(error: Exception) -> str:
    """What is wrong, and where."""
    mark = getattr(error, "problem_mark", None)
    return first_line(error) if mark is None else f"{getattr(error, 'problem', '')} in line {mark.line + 1}"


def _check_keys(settings: Any, subject: str) -> None:
    """Refuses keys that YAML does not read as text."""
    if isinstance(settings, list):
        for entry in settings:
            _check_keys(entry, subject)
    elif isinstance(settings, dict):
        for key, value in settings.items():
            if not isinstance(key, str):
                raise InvalidInputError(
                    f"{subject} has the key {key}, which YAML reads as {type(key).__name__}: put it in quotes."
                )
            _check_keys(value, subject)


def check_sections(config: Any) -> None:
    """Refuses sections that are no mappings, invalid names of variants, and settings that mean nothing.

    Args:
        config: the parsed settings of a command.

    Raises:
        InvalidInputError: names the first.
    """
    for key in ("trainer", "variants", "comparison", "benchmark", "pictures", "predictions", "early_stopping"):
        if key in config and not isinstance(section := config[key], Mapping | Namespace):
            shown = "null" if section is None else str(section)[:80]
            raise InvalidInputError(f"{key} is {shown}, but it must be a mapping: leave it out, or give its settings.")
    if config.seed_everything is None:
        raise InvalidInputError("seed_everything is null, but a run can only be repeated from a seed: give 0 or more.")
    require_within("seed_everything", config.seed_everything, 0, 2**32 - 1)  # what NumPy takes
    _check_trainer(config.trainer)
    _check_writer(config.trainer.logger)
    for key in ("patience", "min_delta"):
        require_not_negative(f"early_stopping.{key}", config.early_stopping[key])
    for key in ("stopping_threshold", "divergence_threshold"):
        if math.isinf(config.early_stopping[key] or 0):
            raise InvalidInputError(
                f"early_stopping.{key} is {config.early_stopping[key]}: give a finite loss, or null."
            )
    for name in config.variants:
        if not isinstance(name, str) or not name.strip():
            raise InvalidInputError(f"variants has the name {name!r}, which is no text: give another, in quotes.")


def _check_trainer(trainer: Namespace) -> None:
    """Refuses settings of the Trainer that it would take without a meaning."""
    if trainer.max_steps != -1:
        require_positive("trainer.max_steps", trainer.max_steps)
    for key in ("check_val_every_n_epoch", "val_check_interval"):
        if isinstance(value := trainer[key], int | float):
            require_positive(f"trainer.{key}", value)
    for key in ("log_every_n_steps", "min_epochs", "min_steps", "gradient_clip_val"):
        require_not_negative(f"trainer.{key}", trainer[key] or 0)
    require_within("trainer.num_sanity_val_steps", trainer.num_sanity_val_steps or 0, -1, math.inf)
    for key in ("epochs", "steps"):
        least, most = (trainer[f"{limit}_{key}"] for limit in ("min", "max"))
        if least is not None and most not in (None, -1) and least > most:
            raise InvalidInputError(
                f"trainer.min_{key} is {least}, but trainer.max_{key} is {most}: give that or less."
            )


def _check_place(settings: Mapping[str, Any]) -> None:
    """Refuses a logger's folder that is an address of another machine, and a run's folder outside of it."""
    if "://" in str(settings.get("save_dir", "")):
        raise InvalidInputError(
            f"trainer.logger.init_args.save_dir is {settings['save_dir']}, but runs are kept in folders: give a path."
        )
    for key in ("name", "version"):
        require_inside(f"trainer.logger.init_args.{key}", str(settings.get(key) or ""))


def _check_writer(loggers: Any) -> None:
    """Refuses settings that TensorBoard's writer would stumble over in its own thread, without naming them."""
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        settings = dict(getattr(logger, "init_args", None) or {})
        _check_place(settings)
        for key in ("flush_secs", "max_queue"):
            value, name = settings.get(key, 1), f"trainer.logger.init_args.{key}"
            if not isinstance(value, int | float):
                raise InvalidInputError(f"{name} is {value!r:.80}, which is no number: give one above 0.")
            require_positive(name, value)
