"""Which run best and last belong to, and where results go."""

import os
import shutil
from pathlib import Path

import pytest
from command_line import RUN, results, tiny

from lightning_l2l.cli import main
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.evaluation.contestants import run_of
from lightning_l2l.trained.runs import find_checkpoint, on_command_line


def touch(runs: Path, version: str, age: int = 0) -> Path:
    path = runs / version / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True)
    path.touch()
    os.utime(path, (10_000 - age, 10_000 - age))
    return path


def test_the_newest_run_is_that_with_the_highest_number(tmp_path):
    runs = tmp_path / "runs"
    touch(runs, "version_2")
    newest = touch(runs, "version_10", age=100)
    touch(runs, "version_9")
    touch(runs, "seed_1")
    (runs / "version_11").mkdir()
    assert find_checkpoint("best", runs) == newest
    assert find_checkpoint("best", runs, 9).parents[1].name == "version_9"
    assert find_checkpoint("best", runs, "seed_1").parents[1].name == "seed_1"
    with pytest.raises(InvalidInputError, match="version_11 has one"):
        find_checkpoint("best", runs, 11)


def test_runs_without_a_number_are_named(tmp_path):
    only = touch(tmp_path, "seed_1")
    assert find_checkpoint("best", tmp_path) == only
    touch(tmp_path, "seed_2")
    with pytest.raises(InvalidInputError, match=r"seed_1 and seed_2 in .* both have one: give a path"):
        find_checkpoint("best", tmp_path)


def test_a_folder_that_happens_to_be_called_checkpoints_is_no_run(fitted, fails):
    kept = Path("mine/old/checkpoints")
    kept.mkdir(parents=True)
    shutil.copy(RUN / "checkpoints" / "best.ckpt", kept)
    assert run_of(kept / "best.ckpt") == ""
    assert run_of(RUN / "checkpoints" / "best.ckpt") == "version 0"
    assert run_of(Path("/checkpoints/best.ckpt")) == ""
    main(tiny("test", f"--ckpt_path={kept}/best.ckpt"))
    assert results(Path("runs/quadratic/version_1"))
    assert sorted(Path("mine").rglob("*")) == [Path("mine/old"), kept, kept / "best.ckpt"]
    (kept / "broken.ckpt").write_bytes(b"broken")
    assert "give another." in fails(*tiny("test", f"--ckpt_path={kept}/broken.ckpt"))


def test_a_folder_given_on_the_command_line_counts(fitted):
    best = f"--ckpt_path={RUN}/checkpoints/best.ckpt"
    main(tiny("test", best, "--trainer.logger.init_args.save_dir=elsewhere"))
    assert results(Path("elsewhere/quadratic/version_0"))
    assert not (RUN / "results.csv").exists()
    main(tiny("test", best, "--trainer.logger.init_args.save_dir=runs"))
    assert results(RUN)


def test_a_version_given_on_the_command_line_is_the_run_that_resumes(fitted):
    shutil.copytree(RUN, RUN.with_name("version_1"))
    main(tiny("test", "--ckpt_path=best", "--trainer.logger.init_args.version=0"))
    assert results(RUN)
    assert not (RUN.with_name("version_1") / "results.csv").exists()


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("flag", ["--trainer.logger", "--trainer.logger.init_args", "--trainer.logger.init_args.name"])
def test_a_name_given_in_any_form_is_on_the_command_line(flag, apart):
    value = "branch" if flag.endswith("name") else "{init_args: {save_dir: runs, name: branch}}"
    arguments = [flag, value] if apart else [f"{flag}={value}"]
    assert on_command_line("name", ["fit", *arguments, "--trainer.max_epochs", "3"])
    assert not on_command_line("version", ["fit", *arguments, "--trainer.max_epochs", "3"])
    assert not on_command_line("version", ["fit", *arguments, "--comparison.results=version"])
