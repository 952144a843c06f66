"""The shipped rule on trained weights: it must not spoil them."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_l2l import LearnedOptimizer
from lightning_l2l.pretrained import names

RULE = "everyday"


@pytest.mark.skipif(RULE not in names(), reason="the rule everyday is not shipped yet")
@pytest.mark.parametrize("pretraining", [400, 1500])
def test_the_loss_on_fixed_batches_does_not_rise_in_the_first_20_steps(pretraining):
    """Up to a tenth, for the noise of minibatches, in the geometric mean over three networks."""
    digits = load_digits()
    inputs, labels = torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target)
    ratios = []
    for seed in range(3):
        random = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

        def run(optimizer, steps, model=model, random=random):
            losses = []
            for _ in range(steps):
                with torch.no_grad():
                    losses.append(cross_entropy(model(inputs), labels).item())
                rows = torch.randint(len(inputs), (32,), generator=random)
                optimizer.zero_grad()
                cross_entropy(model(inputs[rows]), labels[rows]).backward()
                optimizer.step()
            return losses

        run(torch.optim.Adam(model.parameters()), pretraining)
        losses = run(LearnedOptimizer(model.parameters(), RULE), 21)
        ratios.append([loss / losses[0] for loss in losses])
    assert np.exp(np.log(ratios).mean(0)).max() < 1.1
