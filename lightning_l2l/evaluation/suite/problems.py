"""The problems of a benchmark, read from a YAML file."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from lightning_l2l.errors import InvalidInputError, first_line
from lightning_l2l.optimizees import EpisodeDataModule, ModuleTraining
from lightning_l2l.parser import OneSentenceParser
from lightning_l2l.yaml_files import read_yaml


@dataclass
class Problem:
    """A network to train on some data.

    Attributes:
        name: what tables call it; a published curve is found by it.
        settings: those of ``data``, as the file gives them.
        data: the DataModule that they describe.
    """

    name: str
    settings: dict[str, Any]
    data: ModuleTraining


def read_file(path: str, key: str = "benchmark.problems") -> dict[str, Any]:
    """Reads a file of problems.

    Args:
        path: where it is.
        key: the setting that names it, for errors.

    Returns:
        ``problems``, settings by name, and ``published``, curves by name.

    Raises:
        InvalidInputError: it cannot be read, has no problems, or has published curves in another form.
    """
    try:
        settings = read_yaml(Path(path), f"{key} is {path}, which")
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInputError(
            f"{key} is {path}, which cannot be read ({first_line(error)}): give a YAML file of problems."
        ) from error
    if not isinstance(settings, dict) or not isinstance(settings.get("problems"), dict) or not settings["problems"]:
        raise InvalidInputError(f"{key} is {path}, which has no problems: give them under that key.")
    for name in settings["problems"]:
        if not isinstance(name, str):
            raise InvalidInputError(f"{key} is {path}, where a problem is called {name}: put its name in quotes.")
    published = settings.get("published") or {}
    if not isinstance(published, dict) or not all(map(_is_curve, published.values())):
        raise InvalidInputError(
            f"{key} is {path}, whose key published does not give losses by problem and step: give numbers, as in "
            "{mnist: {2000: 0.001}}; YAML reads 1e-3 as text."
        )
    return settings | {"published": published}


def _is_curve(curve: object) -> bool:
    return isinstance(curve, dict) and all(isinstance(number, int | float) for pair in curve.items() for number in pair)


def read_problems(problems: dict[str, Any], root: str | None = None, key: str = "benchmark.problems") -> list[Problem]:
    """Makes the problems of a file.

    Args:
        problems: a name for each, with its ``data`` settings.
        root: the folder of datasets, where no setting ``root`` is given.
        key: the setting that names the file, for errors.

    Raises:
        InvalidInputError: names the problem, and what is wrong with its settings.
    """
    found = []
    for name, settings in problems.items():
        try:
            data = make_data(settings, root)
        except InvalidInputError as error:
            raise InvalidInputError(f"{key} has {name}: {error}") from None
        except Exception as error:  # of the parser
            cause = error.__cause__ if isinstance(error.__cause__, InvalidInputError) else error
            raise InvalidInputError(f"{key} has {name}: {' '.join(str(cause).split())}") from None
        if not isinstance(data, ModuleTraining):
            raise InvalidInputError(
                f"{key} has {name}, a {type(data).__name__}, but a benchmark trains networks: give a "
                "lightning_l2l.optimizees.ModuleTraining, or a subclass of it."
            )
        found.append(Problem(name, settings, data))
    return found


def make_data(settings: dict[str, Any], root: str | None = None) -> EpisodeDataModule:
    """Makes a DataModule from its class path and settings; see ``read_problems`` for ``root``."""
    parser = OneSentenceParser()
    parser.add_subclass_arguments(EpisodeDataModule, "data", required=True)
    parsed = parser.parse_object({"data": copy.deepcopy(settings)})  # which it changes
    if root is not None:
        set_roots(parsed, {"data": settings}, root)
    return parser.instantiate_classes(parsed).data


def set_roots(parsed: Namespace, given: dict[str, Any], root: str) -> None:
    """Sets every ``root`` in parsed settings that was not given, at any depth."""
    for key in list(parsed.keys()):
        if key.rpartition(".")[2] == "root" and not _has(given, key.split(".")):
            parsed[key] = root


def _has(settings: Any, path: list[str]) -> bool:
    """Whether nested settings have a key."""
    for part in path:
        if not isinstance(settings, dict) or part not in settings:
            return False
        settings = settings[part]
    return True
