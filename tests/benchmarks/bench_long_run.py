"""50,000 steps of a small network by a rule, which must stay finite and must not rise.

    LONG_RUN_RULE=mine.safetensors uv run pytest -n 0 -s tests/benchmarks/bench_long_run.py

Two CPU minutes. Losses are of minibatches of 16, so a tenth of the run may be a fifth above the best one before it.
"""

import os

import torch
from torch import nn

from lightning_l2l import LearnedOptimizer

RULE = os.environ.get("LONG_RUN_RULE", "everyday")  # a shipped rule, or a file's path
STEPS = int(os.environ.get("LONG_RUN_STEPS", 50_000))


def test_long_run():
    """Prints the mean and the largest loss of each tenth of the run."""
    torch.manual_seed(1)
    inputs = torch.randn(512, 6)
    targets = inputs.prod(1, keepdim=True).tanh() + inputs[:, :1] + 0.1 * torch.randn(512, 1)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer, losses = LearnedOptimizer(model.parameters(), RULE), []
    for _ in range(STEPS):
        rows = torch.randint(512, (16,))
        optimizer.zero_grad()
        loss = (model(inputs[rows]) - targets[rows]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    tenths = torch.stack(losses).chunk(10)
    for number, part in enumerate(tenths):
        print(f"{number * STEPS // 10:8,}: mean {part.mean():.4g}, largest {part.max():.4g}")
    assert all(part.isfinite().all() for part in tenths)
    means = [part.mean() for part in tenths]
    assert all(after < 1.2 * min(means[:number]) for number, after in enumerate(means) if number)
