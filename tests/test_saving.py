"""What training leaves behind when it ends, is stopped or is killed."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import HALF_EXACT, RUN, fit, tiny
from conftest import same, weights
from pytorch_lightning import Callback
from reliability.outcomes import content
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lightning_l2l.trained.saving
from lightning_l2l.callbacks import Interrupt
from lightning_l2l.cli import main
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.learners import MetaLearner
from lightning_l2l.trained.saving import LastCheckpoint, WholeCheckpoints, meta_batches

CHECKPOINTS = RUN / "checkpoints"
FLAGS = ["--data.train_episodes=16", "--trainer.max_epochs=4", "--data.val_episodes=12", HALF_EXACT]  # 4 × 4 batches


class Killed(BaseException):
    """Stands in for what no program can catch."""


class StopAt(Callback):
    """Stops training at the n-th call of a hook, in one way or another."""

    hook, count, how = "", 0, KeyboardInterrupt

    def reached(self, hook):
        if hook == StopAt.hook:
            StopAt.count -= 1
            if StopAt.count == 0:
                raise StopAt.how

    def on_train_batch_start(self, *_):
        self.reached("batch_start")

    def on_validation_batch_end(self, *_):
        self.reached("val_batch_end")

    def on_validation_end(self, *_):
        self.reached("val_end")

    def on_train_epoch_start(self, *_):
        self.reached("epoch_start")

    def on_train_epoch_end(self, *_):
        self.reached("epoch_end")


def contents() -> list[Any]:
    """The newest run's last and best checkpoints."""
    return [content(CHECKPOINTS / name) for name in ("last.ckpt", "best.ckpt")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run that nothing stops leaves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        fit(*FLAGS, "--trainer.callbacks+=test_saving.StopAt")
        return contents()


def resumed(monkeypatch, hook: str, count: int, how: type[BaseException]) -> tuple[object, object]:
    """What a run leaves that was stopped and resumed."""
    flags = [*FLAGS, "--trainer.callbacks+=test_saving.StopAt"]
    monkeypatch.setattr(StopAt, "hook", hook)
    monkeypatch.setattr(StopAt, "count", count)
    monkeypatch.setattr(StopAt, "how", how)
    step = MetaLearner.meta_step

    def meta_step(self, objective):
        norm = step(self, objective)
        StopAt.reached(None, "meta_step")  # between two truncations: φ has moved, and the batch is not done
        return norm

    monkeypatch.setattr(MetaLearner, "meta_step", meta_step)
    with pytest.raises((SystemExit, Killed)):
        fit(*flags)
    fit(*flags, "--ckpt_path=last")
    return contents()


@pytest.mark.parametrize(
    ("hook", "count", "how"),
    [
        ("meta_step", 9, KeyboardInterrupt),
        ("meta_step", 17, Killed),
        ("batch_start", 7, KeyboardInterrupt),
        ("val_batch_end", 5, KeyboardInterrupt),
        ("val_batch_end", 12, Killed),
        ("val_end", 1, KeyboardInterrupt),
        ("epoch_end", 2, Killed),
        ("epoch_start", 2, Killed),
    ],
)
def test_a_run_stopped_at_any_moment_resumes_to_the_bit(hook, count, how, whole, monkeypatch):
    assert resumed(monkeypatch, hook, count, how) == whole


def test_a_run_killed_again_and_again_resumes_to_the_bit(whole, monkeypatch):
    monkeypatch.setattr(StopAt, "how", Killed)
    flags = [*FLAGS, "--trainer.callbacks+=test_saving.StopAt"]
    for hook, count in (("val_batch_end", 2), ("val_batch_end", 2), ("batch_start", 2), ("val_end", 1)):
        monkeypatch.setattr(StopAt, "hook", hook)
        monkeypatch.setattr(StopAt, "count", count)
        with pytest.raises(Killed):
            fit(*flags, *(["--ckpt_path=last"] if RUN.exists() else []))
    for batches in (9, 11):  # and interrupted
        with pytest.raises(SystemExit):
            stop = ["--trainer.callbacks+=forks.StopAfter", f"--trainer.callbacks.batches={batches}"]
            fit(*flags, *stop, "--ckpt_path=last")
    fit(*flags, "--ckpt_path=last")
    assert contents() == whole


def test_what_a_checkpoint_has_seen_is_logged(monkeypatch):
    """Else a run that is killed after it was saved, or interrupted, would lose the numbers of a meta-batch."""
    save, counts = LastCheckpoint._save, []

    def counting(self, trainer):
        save(self, trainer)
        logged = EventAccumulator(str(RUN)).Reload().Scalars("train/meta_loss")
        counts.append((len(logged), meta_batches(trainer)))

    monkeypatch.setattr(LastCheckpoint, "_save", counting)
    with pytest.raises(SystemExit):
        fit(*FLAGS, "--trainer.callbacks+=forks.StopAfter", "--trainer.callbacks.batches=7")
    assert counts == [(4, 4), (4, 4), (7, 7)]


def test_a_run_that_hardly_validates_is_saved_after_each_epoch(monkeypatch):
    """And a kill loses no more than an epoch."""
    monkeypatch.setitem(globals(), "FLAGS", [*FLAGS, "--trainer.check_val_every_n_epoch=3"])
    fit(*FLAGS, "--trainer.callbacks+=test_saving.StopAt")
    uninterrupted = contents()
    for hook, count in (("batch_start", 6), ("epoch_end", 2), ("val_batch_end", 2)):
        shutil.rmtree("runs")
        assert resumed(monkeypatch, hook, count, Killed) == uninterrupted, hook


@pytest.mark.parametrize(
    "flags",
    [["--trainer.limit_val_batches=0"], ["--trainer.check_val_every_n_epoch=9"], ["--trainer.max_steps=1"]],
    ids=lambda flags: flags[0],
)
def test_the_end_of_training_is_always_saved(flags, capsys):
    fit(*flags)
    said = capsys.readouterr().out
    assert "There is no best checkpoint" in said
    assert f"--ckpt_path {CHECKPOINTS}/last.ckpt" in said
    steps = 2 if "max_steps" in flags[0] else 8
    assert torch.load(CHECKPOINTS / "last.ckpt", weights_only=True)["global_step"] == steps


def test_a_run_whose_meta_steps_are_all_skipped_is_saved_and_says_so(monkeypatch, capsys):
    step = MetaLearner.meta_step
    monkeypatch.setattr(MetaLearner, "meta_step", lambda self, objective: step(self, objective * torch.nan))
    fit()
    captured = capsys.readouterr()
    assert captured.err.count("8 of 8 meta-steps were skipped") == 1
    assert "There is no best checkpoint" in captured.out
    assert torch.load(CHECKPOINTS / "last.ckpt", weights_only=True)["skipped_steps"] == 8


def test_a_fit_that_trains_nothing_is_an_error(fails):
    assert "no meta-batch was run" in fails(*tiny("fit", "--trainer.limit_train_batches=0"))


@pytest.mark.parametrize("averaged", [[], ["--trainer.callbacks+=lightning_l2l.callbacks.AveragedWeights"]])
def test_a_refused_resume_changes_nothing(averaged, fails):
    fit(*averaged)
    files = [path for path in RUN.rglob("*") if path.suffix in (".ckpt", ".yaml")]
    before = {path: path.read_bytes() for path in files}
    sentence = fails(*tiny("fit", *averaged, "--trainer.max_epochs=1", "--ckpt_path=last"))
    assert "trainer.max_epochs is 1, but the checkpoint is of epoch 2" in sentence
    assert {path: path.read_bytes() for path in files} == before


def test_a_second_signal_does_not_save_inside_a_meta_batch(monkeypatch):
    """The first asks for a stop at the end of the meta-batch, which the second does not wait for."""
    fit(*FLAGS[2:])
    before = (CHECKPOINTS / "last.ckpt").read_bytes()
    monkeypatch.setattr(MetaLearner, "lr_schedulers", lambda self: os.kill(os.getpid(), 2) or os.kill(os.getpid(), 2))
    with pytest.raises(SystemExit):
        fit(*FLAGS[2:], "--ckpt_path=last", "--trainer.max_epochs=3")
    assert (CHECKPOINTS / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize("times", [1, 2])
def test_sigterm_ends_with_143_and_a_checkpoint_to_resume(times, monkeypatch):
    schedulers = MetaLearner.lr_schedulers

    def killed(self):
        for _ in range(times if self.trainer.fit_loop.total_batch_idx == 5 else 0):
            os.kill(os.getpid(), 15)
        return schedulers(self)

    with monkeypatch.context() as patch:
        patch.setattr(MetaLearner, "lr_schedulers", killed)
        with pytest.raises(SystemExit) as ended:
            fit(*FLAGS)
    assert ended.value.code == 143
    progress = torch.load(CHECKPOINTS / "last.ckpt", weights_only=True)["loops"]["fit_loop"]
    assert progress["epoch_loop.batch_progress"]["total"]["processed"] == (6 if times == 1 else 4)
    fit(*FLAGS, "--ckpt_path=last")
    fit(*FLAGS)
    one, other = (weights(f"runs/quadratic/version_{i}/checkpoints/last.ckpt") for i in (0, 1))
    assert same(one, other)


@pytest.mark.parametrize("where", ["tune", "evaluate"])
def test_sigterm_ends_a_test_with_143(where, monkeypatch, fitted):
    monkeypatch.setattr(f"lightning_l2l.evaluation.comparison.{where}", lambda *_: os.kill(os.getpid(), 15))
    shutil.rmtree("runs/baselines")
    with pytest.raises(SystemExit) as ended:
        main(tiny("test", "--ckpt_path=best"))
    assert ended.value.code == 143


def test_a_kill_inside_a_write_leaves_the_checkpoint_before(monkeypatch):
    fit()
    before = (CHECKPOINTS / "last.ckpt").read_bytes()

    def half(checkpoint, file):
        Path(file).write_bytes(b"half")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(lightning_l2l.trained.saving.torch, "save", half)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a killed process cleans nothing
        with pytest.raises(Killed):
            fit("--ckpt_path=last", "--trainer.max_epochs=3")
    assert (CHECKPOINTS / "last.ckpt").read_bytes() == before
    assert [path.read_bytes() for path in CHECKPOINTS.glob(".*")] == [b"half"]
    fit("--ckpt_path=last", "--trainer.max_epochs=3")
    assert not list(CHECKPOINTS.glob(".*"))


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_broken_checkpoint_is_answered_with_the_one_before(name, fails):
    fit()
    broken = CHECKPOINTS / f"{name}.ckpt"
    broken.write_bytes(broken.read_bytes()[:1000])
    sentence = fails(*tiny("fit", f"--ckpt_path={name}", "--trainer.max_epochs=3"))
    assert f"{name}.ckpt, which is truncated" in sentence
    instead = {"last": ("previous", "best"), "best": ("last",)}[name]
    assert any(f"give {other}.ckpt beside it" in sentence for other in instead)
    fit(f"--ckpt_path={CHECKPOINTS}/previous.ckpt", "--trainer.max_epochs=3")


def test_signals_are_given_back():
    import signal

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    fit()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert not Interrupt().requested


def test_numpys_numbers_are_kept_as_pythons_and_other_objects_are_refused():
    torch.save({}, "last.ckpt")
    for value, named in ((Path("a"), "PosixPath"), (np.ones(2), "numpy")):
        with pytest.raises(InvalidInputError, match=rf"would hold \S*{named}\S*, which is not loaded"):
            WholeCheckpoints().save_checkpoint({"hyper_parameters": {"of": value}}, "last.ckpt")
        assert torch.load("last.ckpt", weights_only=True) == {}
        assert [path.name for path in Path().iterdir()] == ["last.ckpt"]
    schedule = {"_last_lr": [np.float64(0.5)], "last_epoch": np.int64(3), "betas": (np.float32(0.5), 1)}
    rates = {"lr_schedulers": [schedule]}
    WholeCheckpoints().save_checkpoint(rates, "last.ckpt")
    assert torch.load("last.ckpt", weights_only=True) == rates


@pytest.mark.parametrize("limit", ["2", "3", "0.75"])
def test_a_run_of_shortened_epochs_resumes_to_the_bit(limit):
    flags = ["--data.train_episodes=16", f"--trainer.limit_train_batches={limit}", "--model.final_learning_rate=0.003"]
    fit(*flags, "--trainer.max_epochs=3")
    fit(*flags, "--trainer.max_epochs=1")
    fit(*flags, "--trainer.max_epochs=3", "--ckpt_path=last")
    runs = (Path(f"runs/quadratic/version_{number}/checkpoints/last.ckpt") for number in (0, 1))
    whole, resumed = (torch.load(run, weights_only=True) for run in runs)
    assert whole["global_step"] == resumed["global_step"] > 5 and same(whole["state_dict"], resumed["state_dict"])
