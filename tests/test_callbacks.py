"""What runs beside training: interrupts, averaged weights, best and last checkpoints, TensorBoard."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from command_line import HALF_EXACT, RUN, fit, tiny
from conftest import same, weights
from pytorch_lightning import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lightning_l2l.evaluation.comparison
import lightning_l2l.learners.meta_learner


class StopInValidation(Callback):
    """Presses Ctrl-C twice during the first validation."""

    def on_validation_batch_end(self, trainer, *_):
        raise KeyboardInterrupt


AVERAGED = "--trainer.callbacks+=lightning_l2l.callbacks.AveragedWeights"
EIGHT = ["--data.train_episodes=16", "--trainer.max_epochs=2", HALF_EXACT]  # meta-batches


@pytest.fixture(scope="module", params=[False, True])
def whole_run(request, tmp_path_factory):
    """Whether weights are averaged, and the folder of a run of eight meta-batches that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit(*EIGHT, *([AVERAGED] if request.param else []))
    return request.param, folder / "runs"


@pytest.mark.parametrize("batches", [1, 3, 4, 5], ids=lambda n: f"after {n + 1} of 8 meta-batches")
def test_an_interrupted_run_resumes_as_if_nothing_had_happened(batches, whole_run):
    averaged, runs = whole_run
    shutil.copytree(runs, "runs")
    flags = [*EIGHT, *([AVERAGED] if averaged else [])]
    callback = ["--trainer.callbacks+=forks.StopAfter", f"--trainer.callbacks.batches={batches}"]
    with pytest.raises(SystemExit):
        fit(*flags, *callback)
    fit(*flags, "--ckpt_path=last")
    whole, resumed = (
        torch.load(f"runs/quadratic/version_{i}/checkpoints/last.ckpt", weights_only=True) for i in (0, 1)
    )
    assert same(whole["state_dict"], resumed["state_dict"])
    assert ("current_model_state" in whole) == averaged
    if averaged:  # beside the mean
        assert same(whole["current_model_state"], resumed["current_model_state"])
        assert not same(whole["state_dict"], whole["current_model_state"])
    assert whole["global_step"] == resumed["global_step"]
    assert whole["lr_schedulers"] == resumed["lr_schedulers"]
    best = [weights(f"runs/quadratic/version_{i}/checkpoints/best.ckpt") for i in (0, 1)]
    assert same(*best)
    assert not Path("runs/quadratic/version_2").exists()


def test_a_validation_that_is_stopped_leaves_what_is_trained_and_its_mean_in_their_places():
    fit(AVERAGED, "--trainer.max_epochs=1")
    with pytest.raises(SystemExit):
        fit(AVERAGED, "--trainer.max_epochs=1", "--trainer.callbacks+=test_callbacks.StopInValidation")
    whole, stopped = (
        torch.load(f"runs/quadratic/version_{i}/checkpoints/last.ckpt", weights_only=True) for i in (0, 1)
    )
    for part in ("state_dict", "current_model_state"):
        assert same(whole[part], stopped[part])
    assert not same(whole["state_dict"], whole["current_model_state"])


def test_weights_that_take_the_optimizees_shape_are_averaged():
    rule = "--model.rule={class_path: lightning_l2l.rules.LearnedStart, init_args: {rule: lightning_l2l.rules.SGD}}"
    fit(AVERAGED, rule)
    kept = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    assert kept["state_dict"]["rule.theta"].shape == kept["current_model_state"]["rule.theta"].shape == (3,)


@pytest.mark.parametrize("limit", ["--trainer.limit_train_batches=2", "--trainer.limit_train_batches=0.5"])
def test_the_learning_rate_reaches_its_end_where_epochs_are_cut(limit):
    fit("--model.final_learning_rate=0.00003", "--data.train_episodes=16", limit)
    last = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    assert last["lr_schedulers"][0]["_last_lr"] == [pytest.approx(0.00003)]


@pytest.mark.usefixtures("many_processes")
def test_ctrl_c_leaves_a_checkpoint_to_resume():
    command = [sys.executable, "-m", "lightning_l2l", *tiny("fit", "--trainer.max_epochs=10000")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 240
        while not (RUN / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert "--ckpt_path last" in said
    assert "Traceback" not in said
    epoch = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)["epoch"]
    fit("--ckpt_path=last", f"--trainer.max_epochs={epoch + 2}")
    assert torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == epoch + 1


def test_a_diverging_run_keeps_the_last_good_checkpoint(monkeypatch):
    fit()
    good = weights(RUN / "checkpoints" / "best.ckpt")
    evaluate = lightning_l2l.learners.meta_learner.evaluate
    monkeypatch.setattr(
        lightning_l2l.learners.meta_learner, "evaluate", lambda *args: (evaluate(*args)[0] * torch.nan, None)
    )
    fit("--ckpt_path=last", "--trainer.max_epochs=4")
    assert same(weights(RUN / "checkpoints" / "best.ckpt"), good)


def test_a_run_that_never_was_finite_has_no_best():
    flags = ("--model.learning_rate=1e30", "--model.gradient_clip=1e30")
    fit(*flags)
    assert not (RUN / "checkpoints" / "best.ckpt").exists()
    assert all(tensor.isfinite().all() for tensor in weights(RUN / "checkpoints" / "last.ckpt").values())
    skipped = EventAccumulator(str(RUN)).Reload().Scalars("train/skipped_steps")
    assert skipped[-1].value > 0
    fit(*flags, "--ckpt_path=last", "--trainer.max_epochs=4")
    later = EventAccumulator(str(RUN)).Reload().Scalars("train/skipped_steps")
    assert later[len(skipped)].value > skipped[-1].value


def test_tensorboard_shows_the_training(fitted):
    events = EventAccumulator(str(RUN)).Reload()
    scalars = {"train/meta_loss", "val/meta_loss", "val/final_loss", "train/meta_gradient_norm", "train/update_size"}
    scalars |= {"train/meta_learning_rate", "train/episodes_per_second", "hp/best_val_meta_loss"}
    assert scalars <= set(events.Tags()["scalars"])
    assert "val/curves" in events.Tags()["images"]
    assert len(events.Scalars("train/meta_loss")) == 4
    hparams = yaml.safe_load((RUN / "hparams.yaml").read_text())
    assert hparams["rule"]["init_args"]["hidden_size"] == 4
    assert any("hparams" in str(name) for name in events.summary_metadata)
