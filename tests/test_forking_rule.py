"""Forks: a new update rule and a new optimizee, in one file with a YAML each; the package is not touched."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from forks import QUADRATICS, checkpoint, train_race_kill_and_resume
from torch import Tensor, nn

from lightning_l2l.optimizees import EpisodeDataModule, Episodes, Quadratics, Split
from lightning_l2l.rules import Layout, State, UpdateRule
from lightning_l2l.unroll import learning_curves


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


class ScaledByTensor(UpdateRule):
    """Sees all that a rule may see: each tensor's step is as large as its θ, until the loss is small."""

    sees = ("theta", "loss")

    def __init__(self, layout: Layout | None = None) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.tensor(-2.0))
        self.layout = layout or {}

    def bind(self, layout: Layout) -> "ScaledByTensor":
        bound = ScaledByTensor(layout)
        bound.log_rate = self.log_rate
        return bound

    def init(self, theta: Tensor) -> State:
        return ()

    def update(self, grad: Tensor, state: State, theta: Tensor, loss: Tensor) -> tuple[Tensor, State]:
        parts = []
        for place in self.layout.values():
            assert len(place.shape) == 1
            size = theta[:, place.coordinates].norm(dim=1, keepdim=True) + 0.1
            direction = grad[:, place.coordinates]
            parts.append(-self.log_rate.exp() * size * direction / (1e-3 + direction.norm(dim=1, keepdim=True)))
        return torch.cat(parts, 1) * loss[:, None].clamp(max=1), state


class LearnedStart(LearnedMomentum):
    """Learns where runs start, too."""

    def __init__(self, coordinates: int = 3) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(coordinates))

    def start(self, theta: Tensor) -> Tensor:
        return theta + self.first


RULE = """
model:
  rule: {class_path: test_forking_rule.LearnedMomentum, init_args: {log_rate: -3.0}}
  unroll: 10
  learning_rate: 0.05
"""
DATA = """
data:
  class_path: test_forking_rule.Rosenbrock
  init_args: {horizon: 20, episodes_per_batch: 8, train_episodes: 128, val_episodes: 8, test_episodes: 16}
trainer:
  max_epochs: 2
  accelerator: cpu
  logger: {class_path: pytorch_lightning.loggers.TensorBoardLogger, init_args: {save_dir: runs, name: fork}}
"""


def test_a_new_rule_and_a_new_optimizee():
    rows = train_race_kill_and_resume(RULE, DATA)
    assert list(rows) == ["LearnedMomentum", "SGD", "NAG", "RMSprop", "Adam"]
    assert float(rows["LearnedMomentum"]["last10"]) < 0.5 * float(rows["LearnedMomentum"]["initial"])
    assert not torch.equal(checkpoint(0)["state_dict"]["rule.phi"], torch.tensor([-3.0, -1.0]))


@pytest.mark.parametrize("meta_gradient", ["FirstOrder", "Exact", "Linearized"])
def test_a_rule_that_sees_theta_the_loss_and_the_shapes(meta_gradient):
    model = f"""
model:
  rule: {{class_path: test_forking_rule.ScaledByTensor}}
  unroll: 10
  learning_rate: 0.05
  stages: [{{meta_gradient: {{class_path: lightning_l2l.meta_gradients.{meta_gradient}}}}}]
"""
    row = train_race_kill_and_resume(model, QUADRATICS)["ScaledByTensor"]
    assert float(row["last10"]) < 0.5 * float(row["initial"])


@pytest.mark.parametrize("meta_gradient", ["FirstOrder", "Exact"])
def test_a_rule_that_learns_where_runs_start(meta_gradient):
    model = f"""
model:
  rule: {{class_path: test_forking_rule.LearnedStart}}
  unroll: 20
  learning_rate: 0.05
  stages: [{{meta_gradient: {{class_path: lightning_l2l.meta_gradients.{meta_gradient}}}}}]
"""
    row = train_race_kill_and_resume(model, QUADRATICS)["LearnedStart"]
    untrained = LearnedMomentum()
    with torch.no_grad():
        untrained.phi.copy_(checkpoint(0)["state_dict"]["rule.phi"])
    episodes = Quadratics(dimension=3).episodes("test", range(16))
    assert float(row["initial"]) < 0.9 * learning_curves(untrained, episodes, 0).mean().item()
