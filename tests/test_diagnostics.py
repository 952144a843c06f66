"""Diagnostics of a step against known answers."""

import copy
import math
import pickle

import pytest
import torch
from own_loop import lstm, network, theta, train
from torch import nn

from lightning_l2l import LearnedOptimizer
from lightning_l2l.rules import NAG, SGD, AdamController, PerCoordinateMLP
from lightning_l2l.rules.adam_controller.statistics import at_bounds


def test_a_steps_size_and_direction():
    model = nn.Linear(3, 2)
    optimizer = LearnedOptimizer(model.named_parameters(), SGD(0.1), diagnose_every=1)
    assert optimizer.diagnostics() == {}
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    numbers = optimizer.diagnostics()
    assert list(numbers) == ["effective_step/weight", "cosine/weight", "effective_step/bias", "cosine/bias"]
    for old, (name, p) in zip(before, model.named_parameters(), strict=True):
        assert numbers[f"effective_step/{name}"] == pytest.approx((0.1 * p.grad.norm() / old.norm()).item(), rel=1e-4)
        assert numbers[f"cosine/{name}"] == pytest.approx(1, abs=1e-5)


def test_a_step_of_momentum_has_another_direction():
    p = torch.ones(2, requires_grad=True)
    optimizer = LearnedOptimizer([p], NAG(0.1, momentum=1.0), diagnose_every=1)
    for grad in ([3.0, 0.0], [0.0, 1.0]):
        p.grad = torch.tensor(grad)
        optimizer.step()
    assert optimizer.diagnostics()["cosine/0"] == pytest.approx(
        2 / math.hypot(3, 2), abs=1e-6
    )  # the step is -.1 (3, 2)


def test_parameters_and_gradients_of_zero_have_numbers_too():
    zero, still, none = (torch.zeros(2, requires_grad=True) for _ in range(3))
    zero.grad, still.grad = torch.ones(2), torch.zeros(2)
    optimizer = LearnedOptimizer([zero, still, none], SGD(0.1), diagnose_every=1)
    optimizer.step()
    assert optimizer.diagnostics() == {
        "effective_step/0": math.inf,
        "cosine/0": pytest.approx(1),
        "effective_step/1": 0.0,
        "cosine/1": 0.0,
    }


def test_saturated_features_are_those_of_each_parameter():
    model = nn.Linear(100, 1)
    optimizer = LearnedOptimizer(model.named_parameters(), PerCoordinateMLP(), diagnose_every=1)
    model.weight.grad, model.bias.grad = torch.full((1, 100), 1e-3), torch.ones(1)
    model.weight.grad[0, 7] = 1.0
    optimizer.step()
    numbers = optimizer.diagnostics()
    assert 0 < numbers["saturated/weight"] < 0.01 and numbers["saturated/bias"] == 0


def test_the_controller_tells_which_of_its_features_are_at_a_bound():
    """Zeros are below the smallest size of θ; after gradients have vanished, their fast mean is below its bound."""
    zero, random = torch.zeros(50, requires_grad=True), torch.ones(50, requires_grad=True)
    optimizer = LearnedOptimizer([zero, random], AdamController(), lr=0.0, diagnose_every=1)
    for step in range(40):
        zero.grad = torch.ones(50)
        random.grad = torch.randn(50, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    numbers = optimizer.diagnostics()
    assert (numbers["saturated/0"], numbers["saturated/1"]) == (0.25, 0)
    for p in (zero, random):
        p.grad = torch.full((50,), 1e-4)
    for _ in range(40):
        optimizer.step()
    assert optimizer.diagnostics()["saturated/1"] == 0.25


@pytest.mark.parametrize(("place", "bound"), [(0, -4), (0, 1), (1, -4), (1, 1), (4, -2), (4, 2), (5, -1.75)])
def test_each_of_four_features_counts_at_its_bound(place, bound):
    shared = torch.zeros(6)
    assert at_bounds(shared) == 0
    shared[place] = bound
    assert at_bounds(shared) == 0.25
    shared[place] = 0.9 * bound
    assert at_bounds(shared) == 0


def test_every_nth_step_is_diagnosed():
    model = network()
    optimizer = LearnedOptimizer(model.parameters(), lstm(), diagnose_every=3)
    seen = []
    for seed in range(7):
        train(model, optimizer, 1, seed=seed)
        seen.append(optimizer.diagnostics().get("effective_step/0"))
    assert seen[:2] == [None, None] and seen[2] == seen[4] != seen[5] == seen[6]


def test_diagnostics_change_no_step_and_copies_keep_them():
    one, two, rule = network(), network(), lstm()
    optimizer = LearnedOptimizer(two.parameters(), rule, diagnose_every=2)
    train(one, LearnedOptimizer(one.parameters(), rule), 5)
    train(two, optimizer, 5)
    assert torch.equal(theta(one), theta(two))
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert other.diagnostics() == optimizer.diagnostics() != {}


def test_names_that_are_alike_are_told_apart():
    a, b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    groups = [{"params": list(model.named_parameters())} for model in (a, b)]
    optimizer = LearnedOptimizer(groups, SGD(0.1), diagnose_every=1)
    (a(torch.ones(1)) + b(torch.ones(1))).backward()
    optimizer.step()
    assert {name for name in optimizer.diagnostics() if "cosine" in name} == {"cosine/weight", "cosine/1.weight"}


def test_diagnostics_must_be_asked_for():
    p = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="no step is diagnosed: give diagnose_every"):
        LearnedOptimizer([p], SGD(0.1)).diagnostics()
    with pytest.raises(ValueError, match="Invalid diagnose_every: -1"):
        LearnedOptimizer([p], SGD(0.1), diagnose_every=-1)
