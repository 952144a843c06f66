"""The controller where gradients are rare, vanish and return, or go on for very long."""

import pytest
import torch
from test_everyday_loops import adam_controller
from torch import nn

from lightning_l2l import LearnedOptimizer


class Table(nn.Module):
    """A number for each of 20 words, of which the last two are rare."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rows, self.head = nn.Embedding(20, 4), nn.Linear(4, 1)
        self.targets = torch.randn(20)

    def errors(self, words) -> torch.Tensor:
        return (self.head(self.rows(words))[:, 0] - self.targets[words]).square()


def train(model, optimizer) -> torch.Tensor:
    """Shows a rare word at every 200th step, and the other from step 200 on; returns their largest changes."""
    random, changes = torch.Generator().manual_seed(1), []
    for step in range(1000):
        words = torch.randint(0, 18, (16,), generator=random)
        if step % 200 == 0:
            words[:2] = torch.tensor([18, 19 if step else 18])
        before = model.rows.weight[18:].detach().clone()
        optimizer.zero_grad()
        model.errors(words).mean().backward()
        optimizer.step()
        changes.append((model.rows.weight[18:].detach() - before).abs().max())
    return torch.stack(changes)


def test_rows_that_are_rarely_seen_learn_without_a_jump():
    rare, errors = torch.tensor([18, 19]), []
    for optimizer in (lambda p: LearnedOptimizer(p, adam_controller()), lambda p: torch.optim.Adam(p, 0.003)):
        model = Table()
        before = model.errors(rare).detach()
        changes = train(model, optimizer(model.parameters()))
        assert changes.isfinite().all() and changes.max() < 0.1
        errors.append(model.errors(rare).detach())
    assert (errors[0] < errors[1]).all() and (errors[1] < before).all()


INPUTS = torch.randn(512, 6, generator=torch.Generator().manual_seed(2))
TARGETS = INPUTS.prod(1, keepdim=True).tanh() + INPUTS[:, :1]
DECAYS = {"m9": 0.9, "m99": 0.99, "v99": 0.99, "v999": 0.999}


class Network(nn.Module):
    """Perceptrons that are all inactive while ``dead``."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 1, bias=False)
        self.dead = False

    def forward(self, inputs):
        return self.last((self.first(inputs) - 100 * self.dead).relu())


def fit(model, optimizer, steps) -> torch.Tensor:
    """Returns the minibatches' losses."""
    random, losses = torch.Generator().manual_seed(3), []
    for _ in range(steps):
        rows = torch.randint(0, 512, (16,), generator=random)
        loss = (model(INPUTS[rows]) - TARGETS[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("more", [0, 5000, 20_000])
def test_a_dead_network_comes_to_rest_and_may_come_back(more):
    model = Network()
    optimizer = LearnedOptimizer(model.parameters(), adam_controller())
    before = fit(model, optimizer, 50)
    model.dead = True
    fit(model, optimizer, 200)
    assert all(not p.grad.any() for p in model.parameters())
    rested = [p.detach().clone() for p in model.parameters()]
    for state in optimizer.state.values():  # as so many more steps without a gradient leave it
        state["step"] += more
        for name, decay in DECAYS.items():
            state[name] *= decay**more
    fit(model, optimizer, 20)
    for p, last in zip(model.parameters(), rested, strict=True) if more else ():
        torch.testing.assert_close(p, last, rtol=1e-3, atol=1e-4)
    model.dead = False
    after = fit(model, optimizer, 200)
    assert after.isfinite().all() and after[-50:].mean() < before[:20].mean()


def test_a_long_run_does_not_rise():
    """``benchmarks/bench_long_run.py`` goes on for 50,000 steps."""
    model = Network()
    losses = fit(model, LearnedOptimizer(model.parameters(), adam_controller()), 2000)
    assert losses.isfinite().all()
    parts = [part.mean() for part in losses.chunk(4)]
    assert parts == sorted(parts, reverse=True)


@pytest.mark.parametrize("t", [10**6, 10**9])
def test_very_late_steps_are_as_good_as_those_before(t):
    model = Network()
    optimizer = LearnedOptimizer(model.parameters(), adam_controller())
    before = fit(model, optimizer, 400)
    for state in optimizer.state.values():
        state["step"] = t
    after = fit(model, optimizer, 200)
    assert all(p.isfinite().all() for p in model.parameters())
    assert after.mean() < before[-200:].mean()
