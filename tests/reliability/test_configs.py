"""Configs, flags and variants with settings deleted or replaced: refused in one sentence, or meant as they stand."""

import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import tiny

from reliability import mutations
from reliability.forks import Forks
from reliability.mutations import as_flag, mutated, mutated_text, value_at
from reliability.outcomes import differences, newest, not_finite, outcome

CONFIGS = ["quadratic.yaml", "quadratic.yaml", "own_workload.yaml", "mnist.yaml"]
COMMANDS = ["fit", "fit", "test", "validate", "predict"]
WAYS = ["config", "config", "config", "flag", "flag", "variant", "text"]
LARGE = 10**5  # a number from which a run may rightly go on for hours
SECONDS = 30  # until it is asked to stop
BELOW_0 = {"max_epochs", "max_steps", "devices", "num_sanity_val_steps", "version"}  # what may be negative


Whole = tuple[Path, dict[str, Any]]
"""The folder of a run, and all of its settings."""


@pytest.fixture(scope="module")
def whole(forks: Forks, tmp_path_factory) -> Callable[[str], Whole]:
    """Runs a small fit of a config, once."""
    known: dict[str, Whole] = {}

    def get(config: str) -> Whole:
        if config not in known:
            folder = tmp_path_factory.mktemp("whole")
            ended = forks.run(tiny("fit", "--trainer.max_epochs=1", "--trainer.max_time=null", config=config), folder)
            assert ended.status == 0, ended.output
            known[config] = folder, settings_of(folder)
        return known[config]

    return get


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings of the newest run in a folder, without what depends on the place and on the command."""
    run = newest(folder)
    assert run is not None
    settings = yaml.safe_load((run / "config.yaml").read_text())
    for name in ("ckpt_path", "weights_only"):
        settings.pop(name, None)
    if isinstance(settings["trainer"]["logger"], dict):
        settings["trainer"]["logger"]["init_args"]["save_dir"] = "runs"
    return settings


def test_a_mutated_config_is_refused_in_a_sentence_or_meant(seed, forks, whole, count, tmp_path):
    choices = random.Random(seed)
    folder, settings = whole(choices.choice(CONFIGS))
    command, way = choices.choice(COMMANDS), choices.choice(WAYS)
    flags, path, value = mutated_command(settings, way, choices, tmp_path)
    print(f"{command}, {way}: {'.'.join(map(str, path))} is {value!r:.200}")
    if command != "fit":
        shutil.copytree(folder / "runs", tmp_path / "runs")
        flags.append(f"--ckpt_path={newest(tmp_path)}/checkpoints/best.ckpt")
    ended = forks.run([command, *flags], tmp_path, timeout=SECONDS if is_large(value) else 120)
    assert not list(tmp_path.rglob("canary"))
    if ended.status == 143 and (is_large(value) or any(tmp_path.glob("runs/*/*/checkpoints/last.ckpt"))):
        count("going on as asked")  # such as max_epochs: null
        return
    assert ended.fault == ""
    count("refused" if ended.status else "run")
    if command == "fit" and ended.status == 0:
        assert any(tmp_path.rglob("*.ckpt")), ended.output
        assert not_finite(tmp_path) == []
        if newest(tmp_path):
            assert nonsense(tmp_path, folder, settings, path, value) == ""


def mutated_command(
    settings: dict[str, Any], way: str, choices: random.Random, folder: Path
) -> tuple[list[str], mutations.Path, Any]:
    """Flags with a setting changed; which one, and to what."""
    flags = ["--config=config.yaml"]
    changed, path, value = mutated(settings, choices)
    if way == "variant":
        data, (key, *rest), value = mutated(settings["data"]["init_args"], choices)
        name = choices.choice(["v", "", 7, None, "a/b", "$x$", "x" * 300, "v.w"])
        changed = settings | {"variants": {name: {key: data.get(key)}}}
        path = ("variants", name, key, *rest)
    elif way == "flag" and value is not ... and not any(isinstance(key, int) for key in path):
        changed = settings
        flags.append(as_flag(path, value))
    text = yaml.safe_dump(changed, allow_unicode=True)
    if way == "text":
        text, path, value = mutated_text(yaml.safe_dump(settings), choices), (), ...
    (folder / "config.yaml").write_text(text)
    return flags, path, value


def is_large(value: Any) -> bool:
    """Whether a run may rightly go on for hours because of this value."""
    return isinstance(value, int | float) and LARGE <= abs(value) < math.inf


def nonsense(folder: Path, whole: Path, settings: dict[str, Any], path: mutations.Path, value: Any) -> str:
    """What is wrong with a fit that ended well with a changed setting; empty if nothing is."""
    now = settings_of(folder)
    before, after = value_at(settings, path), value_at(now, path)
    if isinstance(value, float) and not math.isfinite(value) and not isinstance(after, str):  # any text is a name
        return f"{value} is accepted"
    if isinstance(value, int | float) and value < 0 < (before or 0) and path[-1] not in BELOW_0:
        return f"{value} is accepted in place of {before}"
    if value is not ... and before == after != value and path[0] != "variants":
        return f"{value} is ignored: it is still {after}"
    return "; ".join(differences(outcome(folder), outcome(whole))) if now == settings else ""
