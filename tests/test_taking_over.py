"""The rule ``everyday`` on trained weights: it must not spoil them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_l2l import LearnedOptimizer

DIGITS = load_digits()
INPUTS, LABELS = torch.from_numpy(DIGITS.data).float() / 16, torch.from_numpy(DIGITS.target)
Data = tuple[Tensor, Tensor]


def run(model: nn.Module, optimizer: torch.optim.Optimizer, data: Data, steps: int, warm_up: int = 1) -> list[float]:
    """Takes steps on minibatches; returns the loss on all inputs before each."""
    (inputs, labels), losses = data, []
    random = torch.Generator().manual_seed(steps)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warm_up, total_iters=warm_up)
    for _ in range(steps):
        with torch.no_grad():
            losses.append(cross_entropy(model(inputs), labels).item())
        rows = torch.randint(len(inputs), (32,), generator=random)
        optimizer.zero_grad()
        cross_entropy(model(inputs[rows]), labels[rows]).backward()
        optimizer.step()
        schedule.step()
    return losses


def largest_rise(
    before: Data, after: Data, pretraining: int, optimizer: Callable, steps: int, warm_up: int = 1
) -> float:
    """The largest loss over the first, in the geometric mean over three networks, to even out minibatches."""
    ratios = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        run(model, torch.optim.Adam(model.parameters()), before, pretraining)
        losses = run(model, optimizer(model.parameters()), after, steps + 1, warm_up)
        ratios.append([loss / losses[0] for loss in losses])
    return float(np.exp(np.log(ratios).mean(0)).max())


@pytest.mark.parametrize("pretraining", [400, 1500])
def test_the_loss_does_not_rise_in_the_first_20_steps_on_other_classes(pretraining):
    parts = ((INPUTS[part], LABELS[part]) for part in (LABELS < 5, LABELS >= 5))
    assert largest_rise(*parts, pretraining, LearnedOptimizer, steps=20) < 1.1


def test_with_a_warm_up_the_loss_does_not_rise_on_the_same_task():
    """Where there is something left to learn; a converged loss rises, as the rule's card says."""
    same = (INPUTS, LABELS), (INPUTS, LABELS)
    assert largest_rise(*same, 400, LearnedOptimizer, steps=150, warm_up=100) < 1.1
