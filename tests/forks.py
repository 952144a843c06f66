"""What the tests of forks share: small runs that are trained, raced, killed and resumed."""

import csv
from pathlib import Path

import pytest
import torch
from conftest import same
from pytorch_lightning import Callback

from lightning_l2l.callbacks import Interrupt
from lightning_l2l.cli import main

QUADRATICS = """
data:
  class_path: lightning_l2l.optimizees.Quadratics
  init_args: {dimension: 3, horizon: 20, episodes_per_batch: 8, train_episodes: 128, val_episodes: 16,
    tuning_episodes: 8, test_episodes: 16}
trainer:
  max_epochs: 2
  accelerator: cpu
  logger: {class_path: pytorch_lightning.loggers.TensorBoardLogger, init_args: {save_dir: runs, name: fork}}
comparison: {rates_per_decade: 1}
"""


class StopAfter(Callback):
    """Presses Ctrl-C during a meta-batch."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_start(self, trainer, *_):
        if trainer.fit_loop.total_batch_idx + 1 == self.batches:
            next(c for c in trainer.callbacks if isinstance(c, Interrupt)).requested = True


def checkpoint(version: int, name: str = "last") -> dict:
    return torch.load(f"runs/fork/version_{version}/checkpoints/{name}.ckpt", weights_only=True)


def train_race_kill_and_resume(*yamls: str) -> dict[str, dict[str, str]]:
    """Runs a fork's configs; returns the rows of its race by rule."""
    flags = []
    for number, text in enumerate(yamls):
        Path(f"{number}.yaml").write_text(text)
        flags += ["--config", f"{number}.yaml"]
    main(["fit", *flags])
    main(["test", *flags, "--ckpt_path=best"])
    with pytest.raises(SystemExit):
        main(["fit", *flags, "--trainer.callbacks+=forks.StopAfter", "--trainer.callbacks.batches=19"])
    assert checkpoint(1)["epoch"] == 1  # in the middle of the second
    main(["fit", *flags, "--ckpt_path=last"])
    assert not Path("runs/fork/version_2").exists()
    assert same(checkpoint(0)["state_dict"], checkpoint(1)["state_dict"])
    assert same(checkpoint(0, "best")["state_dict"], checkpoint(1, "best")["state_dict"])
    with Path("runs/fork/version_0/results.csv").open() as file:
        return {row["rule"]: row for row in csv.DictReader(file)}
