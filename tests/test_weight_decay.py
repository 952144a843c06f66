"""Decoupled weight decay: a part of θ that each step removes, whatever the rule."""

import copy

import pytest
import torch
from own_loop import lstm, theta
from test_everyday_loops import RULES, batch, network, squared_error
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_l2l import LearnedOptimizer
from lightning_l2l.rules import SGD, Adam, AdamController

ALL_RULES = {**RULES, "LSTM": lstm, "SGD": lambda: SGD(0.01)}


@pytest.fixture(params=ALL_RULES)
def rule(request):
    return ALL_RULES[request.param]()


def with_gradient(value, dtype=torch.float32) -> torch.Tensor:
    p = torch.full((4, 4), value, dtype=dtype, requires_grad=True)
    p.grad = torch.zeros_like(p)
    return p


def test_adamw_with_its_rate_times_its_decay():
    ours, theirs = network(), network()
    optimizers = [
        LearnedOptimizer(ours.parameters(), Adam(0.01), weight_decay=0.01 * 0.5),
        torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.5),
    ]
    schedulers = [CosineAnnealingLR(optimizer, 40) for optimizer in optimizers]
    for number in range(30):
        for model, optimizer, scheduler in zip((ours, theirs), optimizers, schedulers, strict=True):
            optimizer.zero_grad()
            squared_error(model, batch(number)).backward()
            optimizer.step()
            scheduler.step()
    torch.testing.assert_close(theta(ours), theta(theirs), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_it_removes_a_part_of_theta_beside_the_rules_step(rule, dtype):
    """What is zero stays where the rule's step takes it, so the difference is the decay alone."""
    rows = []
    for decay in (0.0, 0.25):
        p = with_gradient(8.0, dtype)
        LearnedOptimizer([p], rule, lr=0.5, scale=3.0, weight_decay=decay).step()
        rows.append(p.detach().double())
    torch.testing.assert_close(rows[0] - rows[1], torch.full((4, 4), 1.0).double(), rtol=2e-2, atol=0)


def test_groups_have_their_own_and_what_does_not_step_does_not_decay(rule):
    p, q, still, frozen = (with_gradient(1.0) for _ in range(4))
    frozen.grad = None
    groups = [{"params": [p, frozen], "weight_decay": 0.5}, {"params": [q], "weight_decay": 0.25}, {"params": [still]}]
    optimizer = LearnedOptimizer(groups, rule, lr=1.0)
    p.grad[0, 0] = torch.nan
    optimizer.step()
    assert all(torch.equal(each, torch.ones(4, 4)) for each in (p, q, still, frozen))
    p.grad[0, 0] = 0
    optimizer.step()
    assert torch.equal(frozen, torch.ones(4, 4))
    torch.testing.assert_close(still - p, torch.full((4, 4), 0.5), rtol=0.02, atol=0)
    torch.testing.assert_close(still - q, torch.full((4, 4), 0.25), rtol=0.02, atol=0)


def test_a_safe_step_of_the_guard_keeps_it():
    p = with_gradient(1.0)
    optimizer = LearnedOptimizer([p], AdamController(), guard=True, weight_decay=0.5)
    optimizer.observe(torch.nan)
    optimizer.step()
    assert torch.equal(p, torch.full((4, 4), 0.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_controller_loses_none_of_it_in_rounding(dtype):
    """A thousandth of it would be lost in bfloat16 at once; θ e⁻¹ is left after 1 / λ steps."""
    p = with_gradient(1.0, dtype)
    optimizer = LearnedOptimizer([p], AdamController(), weight_decay=1e-3)
    for _ in range(1000):
        optimizer.step()
    torch.testing.assert_close(p.float(), torch.full((4, 4), 0.3677), rtol=4e-3, atol=0)


def test_state_dicts_keep_it_and_older_ones_have_none():
    optimizer = LearnedOptimizer([with_gradient(1.0)], SGD(0.1), weight_decay=0.5)
    saved = optimizer.state_dict()
    other = LearnedOptimizer([with_gradient(1.0)], SGD(0.1))
    other.load_state_dict(saved)
    assert other.param_groups[0]["weight_decay"] == 0.5
    older = copy.deepcopy(saved)
    del older["param_groups"][0]["weight_decay"]
    other.load_state_dict(older)
    other.step()
    assert torch.equal(other.param_groups[0]["params"][0], torch.ones(4, 4))


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_parts_are_between_none_and_all(value):
    with pytest.raises(ValueError, match=f"Invalid weight_decay: {value}"):
        LearnedOptimizer([with_gradient(1.0)], SGD(0.1), weight_decay=value)
