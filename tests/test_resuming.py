"""Resuming where a folder has moved, a patience was over, or a network draws random numbers."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command_line import RUN, fit
from conftest import same, weights
from pytorch_lightning import Callback
from test_own_workload import TINY_OWN, own
from torch import nn

from lightning_l2l.learners import MetaLearner
from lightning_l2l.trained.resuming import RandomNumbers


def validated(monkeypatch, *values: float) -> list[int]:
    """Lets validations give these meta-losses, the last of them for ever; returns a list of the epochs trained."""
    left, epochs, step = list(values), [], MetaLearner.training_step

    def evaluate(self, episodes, stage, batch_idx):
        self.log(f"{stage}/meta_loss", left.pop(0) if len(left) > 1 else left[0], batch_size=len(episodes))
        return {}

    def training_step(self, *batch):
        epochs.append(self.current_epoch)
        return step(self, *batch)

    monkeypatch.setattr(MetaLearner, "_evaluate", evaluate)
    monkeypatch.setattr(MetaLearner, "training_step", training_step)
    return epochs


def test_a_run_whose_folder_has_moved_keeps_its_best(monkeypatch):
    validated(monkeypatch, 1.0, 2.0, 3.0, 4.0)
    fit("--trainer.max_epochs=2")
    best = weights(RUN / "checkpoints/best.ckpt")
    Path("elsewhere").mkdir()
    shutil.move("runs", "elsewhere/runs")
    monkeypatch.chdir("elsewhere")
    fit("--trainer.max_epochs=4", "--ckpt_path=last")
    assert same(weights(RUN / "checkpoints/best.ckpt"), best)
    assert not same(weights(RUN / "checkpoints/last.ckpt"), best)


def test_another_runs_best_is_not_taken_for_its_own(monkeypatch):
    for version, value in enumerate((1.0, 5.0)):
        validated(monkeypatch, value)
        fit(f"--seed_everything={version}", f"--trainer.logger.init_args.version={version}")
    others = Path("runs/quadratic/version_1/checkpoints/best.ckpt")
    before = weights(others)
    validated(monkeypatch, 3.0)
    last = f"--ckpt_path={RUN}/checkpoints/last.ckpt"
    fit(last, "--trainer.logger.init_args.version=1", "--trainer.max_epochs=4", "--seed_everything=0")
    assert not same(weights(others), before)


def test_a_validation_that_is_not_finite_is_one_in_vain(monkeypatch, caplog):
    epochs = validated(monkeypatch, 1.0, float("nan"), 1.0)
    fit("--trainer.max_epochs=5")
    assert max(epochs) == 4 and "ended early" not in caplog.text
    ended = "Training has ended early: Monitored metric val/meta_loss did not improve"
    fit("--trainer.max_epochs=9", "--early_stopping.patience=2")
    assert ended in caplog.text
    caplog.clear()
    fit("--trainer.max_epochs=9", "--early_stopping.patience=20", "--ckpt_path=last")
    assert ended not in caplog.text


@pytest.mark.parametrize("flag", ["--model.stages=[{patience: 2}]", "--early_stopping.patience=2"])
def test_a_patience_that_is_over_stays_over(flag, monkeypatch, caplog):
    epochs = validated(monkeypatch, 1.0)
    fit(flag, "--trainer.max_epochs=8")
    assert "Training has ended early" in caplog.text
    assert max(epochs) == 2
    trained = len(epochs)
    fit(flag, "--trainer.max_epochs=8", "--ckpt_path=last")
    assert len(epochs) == trained
    if "early" in flag:  # more of it goes on
        fit("--early_stopping.patience=4", "--trainer.max_epochs=8", "--ckpt_path=last")
        assert max(epochs) == 4


def test_a_stages_patience_watches_what_the_learner_monitors(monkeypatch):
    monkeypatch.setattr(MetaLearner, "monitor", "val/final_loss")
    step, left, epochs = MetaLearner.training_step, [5.0, 4.0, 3.0, 2.0, 1.0], []

    def evaluate(self, episodes, stage, batch_idx):
        self.log_dict({"val/meta_loss": -left[0], "val/final_loss": left.pop(0)}, batch_size=len(episodes))
        return {}

    monkeypatch.setattr(MetaLearner, "_evaluate", evaluate)
    monkeypatch.setattr(
        MetaLearner, "training_step", lambda self, *a: epochs.append(self.current_epoch) or step(self, *a)
    )
    fit("--model.stages=[{patience: 1}]", "--trainer.max_epochs=4")
    assert max(epochs) == 3


class Dropping(nn.Sequential):
    """A network with dropout."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(13, 8), nn.Dropout(0.5), nn.Linear(8, 3))


def test_dropout_is_the_same_in_a_resumed_run():
    network = {"class_path": "test_resuming.Dropping"}
    flags = [*TINY_OWN, "--trainer.max_time=null", "--data.train_episodes=8", "--model.stages=null"]
    own("fit", *flags, network=network)
    with pytest.raises(SystemExit):
        stop = "--trainer.callbacks+=forks.StopAfter", "--trainer.callbacks.batches=3"
        own("fit", *flags, *stop, network=network)
    own("fit", *flags, "--ckpt_path=last", network=network)
    whole, resumed = (weights(f"runs/own_workload/version_{i}/checkpoints/last.ckpt") for i in (0, 1))
    assert same(whole, resumed)


class CountingLearner(MetaLearner):
    """Counts its meta-batches in a hook of its own, as a fork may."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("counted", torch.zeros(()))

    def on_train_batch_end(self, *_) -> None:
        self.counted += 1


def test_an_interrupted_meta_batch_ends_for_the_learner_as_well():
    flags = ["--model=test_resuming.CountingLearner", "--data.train_episodes=16"]
    with pytest.raises(SystemExit):
        fit(*flags, "--trainer.callbacks+=forks.StopAfter", "--trainer.callbacks.batches=3")
    fit(*flags, "--ckpt_path=last")
    assert weights(RUN / "checkpoints/last.ckpt")["counted"] == 8


def test_a_sanity_check_is_no_validation(monkeypatch):
    epochs = validated(monkeypatch, 0.0, 5.0, 4.0, 3.0, 2.0)
    fit("--trainer.num_sanity_val_steps=1", "--model.stages=[{patience: 2}]", "--trainer.max_epochs=4")
    assert max(epochs) == 3
    kept = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    assert kept["callbacks"]["HyperparameterMetrics"] == {"best": 2.0}


class Counting(Callback):
    """Counts meta-batches from a number that it is given."""

    def __init__(self, count: int = 0):
        self.count = count

    def on_train_batch_end(self, *_):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_a_callbacks_state_is_not_replaced_by_its_settings():
    flags = ["--trainer.callbacks+=test_resuming.Counting", "--trainer.callbacks.count=5"]
    fit(*flags)
    fit(*flags, "--ckpt_path=last", "--trainer.max_epochs=3")
    kept = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    assert kept["callbacks"]["Counting"] == {"count": 5 + 6}


@pytest.mark.parametrize("hook", ["on_test_batch_start", "on_predict_batch_start"])
def test_a_batch_draws_the_same_numbers_whatever_was_drawn_before(hook):
    numbers, trainer = RandomNumbers(), SimpleNamespace(global_rank=0)
    drawn = []
    for batch in (0, 0, 1):
        numbers.setup(trainer, None, "test")  # again for each variant
        getattr(numbers, hook)(trainer, None, None, batch, 0)
        drawn.append(torch.rand(9))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
