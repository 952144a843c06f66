"""The shipped rule on trained weights: it must not spoil them."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_l2l import LearnedOptimizer
from lightning_l2l.pretrained import names

RULE = "everyday"
pytestmark = pytest.mark.skipif(RULE not in names(), reason="the rule everyday is not shipped yet")


def run(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor, steps: int) -> list[float]:
    """Takes steps on minibatches; returns the loss on all inputs before each."""
    random, losses = torch.Generator().manual_seed(steps), []
    for _ in range(steps):
        with torch.no_grad():
            losses.append(cross_entropy(model(inputs), labels).item())
        rows = torch.randint(len(inputs), (32,), generator=random)
        optimizer.zero_grad()
        cross_entropy(model(inputs[rows]), labels[rows]).backward()
        optimizer.step()
    return losses


@pytest.mark.parametrize("pretraining", [400, 1500])
@pytest.mark.parametrize("task", ["the same", "other classes"])
def test_the_loss_on_fixed_batches_does_not_rise_in_the_first_20_steps(task, pretraining):
    """Up to a tenth, for the noise of minibatches, in the geometric mean over three networks."""
    digits = load_digits()
    inputs, labels = torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target)
    before, after = (inputs, labels), (inputs, labels)
    if task == "other classes":
        before, after = ((inputs[part], labels[part]) for part in (labels < 5, labels >= 5))
    ratios = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        run(model, torch.optim.Adam(model.parameters()), *before, pretraining)
        losses = run(model, LearnedOptimizer(model.parameters(), RULE), *after, 21)
        ratios.append([loss / losses[0] for loss in losses])
    assert np.exp(np.log(ratios).mean(0)).max() < 1.1
