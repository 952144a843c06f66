"""Trains one config on several meta-seeds and races the results on the same episodes."""

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules.files import PRETRAINED
from lightning_l2l.terminal import ShortParser
from lightning_l2l.trained.checkpoint import flatten, without_ckpt_path
from lightning_l2l.whole_files import replacing
from lightning_l2l.yaml_files import read_yaml

# what training depends on
TRAINING = ("seed_everything", "model", "data", "trainer", "checkpoint", "early_stopping", "ckpt_path")
BEGUN, FINISHED = "begun.yaml", "finished.yaml"  # the settings above, in the folder of a run

Run = Callable[[list[str]], object]


def train_and_race(seeds: Sequence[int], flags: list[str], run: Run) -> None:
    """Trains a rule on each meta-seed, and races all of them against the tuned baselines on the same test episodes.

    A meta-seed s sets both seed_everything, for the rule's initial weights, and data.seed, for the training episodes.
    Its run is runs/NAME/seed_s: a finished run is not repeated, an interrupted one resumes, and one that began with
    other settings is refused. The test episodes are those of the config's own data.seed.

    Args:
        seeds: the meta-seeds.
        flags: all other flags, as ``fit`` takes them.
        run: runs a command line of this package.

    Raises:
        InvalidInputError: a command refuses its input, or the flags contradict this command.
    """
    if len(set(seeds)) < len(seeds):
        raise InvalidInputError(f"--seeds is {' '.join(map(str, seeds))}, with one twice: give each meta-seed once.")
    begun_from = _ckpt_path(flags)
    if begun_from and not begun_from.startswith(PRETRAINED):
        raise InvalidInputError(
            f"--ckpt_path is {begun_from}, but seeds finds the checkpoints of its runs itself: leave it out."
        )
    bests = [_train(seed, flags, run) for seed in seeds]
    rivals = [f"--comparison.rivals+={json.dumps(list(map(str, bests[1:])))}"] if len(bests) > 1 else []
    run(["test", *without_ckpt_path(flags), "--ckpt_path", str(bests[0]), *rivals])


def main(arguments: list[str], run: Run) -> None:
    """Runs the command.

    Args:
        arguments: its flags.
        run: runs another command line, and raises what is wrong with it.
    """
    parser = ShortParser("seeds", train_and_race.__doc__)
    parser.usage = "%(prog)s --seeds SEED [SEED ...] [all flags of fit]"
    parser.add_argument("--seeds", nargs="+", type=int, required=True, metavar="SEED", help="the meta-seeds")
    own, flags = parser.parse_known_args(arguments)
    train_and_race(own.seeds, flags, run)


def _train(seed: int, flags: list[str], run: Run) -> Path:
    """Runs or resumes fit, unless it has finished, and returns the best checkpoint."""
    version = f"seed_{seed}"
    own = [f"--seed_everything={seed}", f"--data.seed={seed}"]
    settings = settings_of([*flags, *own], run)
    logger = settings["trainer"].get("logger")
    if not isinstance(logger, dict) or "save_dir" not in logger.get("init_args", {}):
        raise InvalidInputError(f"trainer.logger is {logger}, but runs must be kept: give a TensorBoardLogger.")
    own.append(f"--trainer.logger.init_args.version={version}")
    kept = logger["init_args"]
    folder = Path(kept["save_dir"]) / (kept.get("name") or "lightning_logs") / version
    last, best, finished = folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / "best.ckpt", folder / FINISHED
    now = {key: settings.get(key) for key in TRAINING}
    resumes = last.is_file() or finished.is_file()
    try:
        if resumes:
            _refuse_other_settings(folder, now)
        if not finished.is_file():
            print(f"Meta-seed {seed}, in {folder}:", file=sys.stderr)
            folder.mkdir(parents=True, exist_ok=True)
            if not (resumes and (folder / BEGUN).is_file()):
                _write(folder / BEGUN, now)
            resumed = [*without_ckpt_path(flags), "--ckpt_path", str(last)]
            run(["fit", *(resumed if resumes else flags), *own])
            _write(finished, now)
    except InvalidInputError as error:
        if not resumes:
            raise
        raise InvalidInputError(f"{folder} cannot resume; to start anew, move it away: {error}") from None
    if not best.is_file():
        raise InvalidInputError(f"{folder} has no best checkpoint, since no validation was finite: change model.")
    return best


def _write(file: Path, settings: dict[str, Any]) -> None:
    with replacing(file) as part:
        part.write_text(yaml.safe_dump(settings))


def _refuse_other_settings(folder: Path, now: dict[str, Any]) -> None:
    """Refuses settings other than those that a run began with, which its folder keeps."""
    files = [folder / name for name in (FINISHED, BEGUN) if (folder / name).is_file()]
    if not files:
        return  # a run that was not begun by this command
    kept, given = flatten(read_yaml(files[0], f"{files[0]} of the run")), flatten(now)
    for key in sorted(kept.keys() | given.keys()):
        if kept.get(key) != given.get(key):
            raise InvalidInputError(f"{key} is {given.get(key)}, but the run began with {kept.get(key)}: give that.")


def settings_of(flags: list[str], run: Run) -> dict[str, Any]:
    """All settings that fit would have."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            run(["fit", *flags, "--print_config"])
        except SystemExit as ended:
            if ended.code:  # by a signal
                raise
    return yaml.safe_load(printed.getvalue())


def _ckpt_path(flags: Sequence[str]) -> str | None:
    """The value given for --ckpt_path."""
    found = re.search(r"(?:^|\n)--ckpt_path[=\n]([^\n]*)", "\n".join(flags))
    return found[1] if found else None
