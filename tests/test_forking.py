"""A fork's new update rule and new optimizee live in one file, with a YAML each; the package is not touched."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from conftest import same, weights
from torch import Tensor, nn

from lightning_l2l.cli import main
from lightning_l2l.optimizees import EpisodeDataModule, Episodes, Split
from lightning_l2l.rules import State, UpdateRule


class LearnedMomentum(UpdateRule):
    """g = −e^a (∇ + e^b m): two numbers to learn. Mixes coordinates, too: the step is scaled by the gradient's norm."""

    def __init__(self, log_rate: float = -4.0) -> None:
        super().__init__()
        self.phi = nn.Parameter(torch.tensor([log_rate, -1.0]))

    def init(self, theta: Tensor) -> State:
        return (torch.zeros_like(theta),)

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, State]:
        (momentum,) = state
        momentum = 0.9 * momentum + grad
        rate, share = self.phi.exp()
        return -rate * (grad + share * momentum) / (1 + 0.01 * grad.norm(dim=1, keepdim=True)), (momentum,)


@dataclass(eq=False)
class RosenbrockEpisodes(Episodes):
    """f(x, y) = (a − x)² + (y − x²)²."""

    a: Tensor  # [N]

    def loss(self, theta: Tensor, step: int) -> Tensor:
        x, y = theta.unbind(1)
        return (self.a - x) ** 2 + (y - x**2) ** 2


class Rosenbrock(EpisodeDataModule):
    """Banana valleys with random ends."""

    def episodes(self, split: Split, numbers: Sequence[int]) -> RosenbrockEpisodes:
        drawn = np.stack([self.random(split, n).standard_normal(3, dtype=np.float32) for n in numbers])
        return RosenbrockEpisodes(torch.from_numpy(0.1 * drawn[:, :2]), torch.from_numpy(1 + 0.1 * drawn[:, 2]))


RULE = """
model:
  rule: {class_path: test_forking.LearnedMomentum, init_args: {log_rate: -3.0}}
  unroll: 10
  learning_rate: 0.05
"""
DATA = """
data:
  class_path: test_forking.Rosenbrock
  init_args: {horizon: 20, episodes_per_batch: 8, train_episodes: 64, val_episodes: 8, test_episodes: 16}
trainer:
  max_epochs: 4
  accelerator: cpu
  logger: {class_path: pytorch_lightning.loggers.TensorBoardLogger, init_args: {save_dir: runs, name: banana}}
"""


def test_a_new_rule_and_a_new_optimizee_train_race_and_resume():
    Path("rule.yaml").write_text(RULE)
    Path("data.yaml").write_text(DATA)
    configs = ["--config", "rule.yaml", "--config", "data.yaml"]
    main(["fit", *configs])
    main(["fit", *configs, "--trainer.max_epochs=5", "--ckpt_path=last"])
    main(["test", *configs, "--ckpt_path=best"])
    with Path("runs/banana/version_0/results.csv").open() as file:
        rows = {row["rule"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["LearnedMomentum", "SGD", "NAG", "RMSprop", "Adam"]
    learned = rows["LearnedMomentum"]
    assert float(learned["last10"]) < 0.5 * float(learned["initial"])
    assert torch.load("runs/banana/version_0/checkpoints/last.ckpt", weights_only=True)["epoch"] == 4
    assert not same(weights("runs/banana/version_0/checkpoints/last.ckpt"), {"rule.phi": torch.tensor([-3.0, -1.0])})
