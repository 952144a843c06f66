"""Settings of the baselines: every choice is tried, and the best one found."""

import pytest
import torch

from lightning_l2l.evaluation.contestants import papers_baselines
from lightning_l2l.evaluation.tuning import grid_of, learning_rates, tune, with_settings
from lightning_l2l.optimizees import Quadratics
from lightning_l2l.rules import NAG, SGD, AdamW, CoordinatewiseLSTM, CosineAdam, UpdateRule
from lightning_l2l.unroll import learning_curves


class Plain(UpdateRule):
    """A fork's gradient descent: its rate is a plain number, and it may be run in slices."""

    coordinatewise = True

    def __init__(self, learning_rate=0.5):
        super().__init__()
        self.learning_rate = learning_rate

    def init(self, theta):
        return ()

    def update(self, grad, state):
        return -self.learning_rate * grad, state


class ByParameter(Plain):
    """Its rate is a parameter."""

    def __init__(self):
        super().__init__()
        del self.learning_rate
        self.learning_rate = torch.nn.Parameter(torch.tensor(0.5))


def final(rule, episodes, steps):
    return learning_curves(rule, episodes, steps)[:, -10:].mean().nan_to_num(torch.inf).item()


@pytest.mark.parametrize("prune", [False, True])
def test_a_last_loss_may_count_alone(prune):
    """Where it is of other examples, as in few-shot learning: here it is how far a run has gone."""

    class Turned(type(Quadratics(dimension=2).episodes("tune", [0]))):
        def value_and_grad(self, theta, step):
            losses, grad = super().value_and_grad(theta, step)
            return ((theta - self.theta).square().sum(-1) if step == 8 else losses), grad

    plain = Quadratics(dimension=2).episodes("tune", range(4))
    episodes = Turned(**plain.tensor_fields(), **plain.shared_fields())
    grid = grid_of(SGD(), learning_rates(1))
    found = {last: tune(SGD(), [episodes], 8, grid, prune, last=last)["learning_rate"] for last in (1, 10)}
    curves = {rate: learning_curves(SGD(rate), episodes, 8).mean(0) for rate in grid["learning_rate"]}
    assert found[1] == min(curves, key=lambda rate: curves[rate][-1].item()) == grid["learning_rate"][0]
    assert found[10] > found[1]


def test_the_grid_is_fine_and_wide_enough():
    rates = learning_rates(4)
    assert rates[0].item() == pytest.approx(1e-4)
    assert rates[-1].item() == pytest.approx(10)
    assert len(rates) == 21


@pytest.mark.parametrize("baseline", papers_baselines(), ids=lambda rule: rule.label)
def test_tuning_finds_the_best_rate_of_the_grid(baseline):
    episodes, rates = Quadratics().episodes("tune", range(8)), learning_rates(4)
    finals = [final(type(baseline)(rate), episodes, 30) for rate in rates.tolist()]
    best = tune(baseline, [episodes], 30, grid_of(baseline, rates))
    assert best == {"learning_rate": rates[finals.index(min(finals))].item()}


@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("rule", [Plain(), ByParameter(), SGD()], ids=["number", "parameter", "buffer"])
def test_any_rule_with_a_learning_rate_is_tuned(rule, prune, monkeypatch):
    """In slices, were it not for the rates, which differ from episode to episode."""
    monkeypatch.setattr("lightning_l2l.rules.fast.fastest.SLICE", 4)
    episodes, rates = Quadratics().episodes("tune", range(8)), learning_rates(4)
    best = tune(rule, [episodes], 80, grid_of(rule, rates), prune)
    assert best == tune(SGD(), [episodes], 80, grid_of(SGD(), rates))
    assert torch.as_tensor(rule.learning_rate).item() == (
        0.01 if isinstance(rule, SGD) else 0.5
    )  # which was left alone


def test_a_rule_without_a_learning_rate_has_nothing_to_tune():
    assert grid_of(CoordinatewiseLSTM(), learning_rates(4)) == {}


@pytest.mark.parametrize(
    ("rule", "name"), [(AdamW(), "weight_decay"), (CosineAdam(horizon=30), "beta1")], ids=["AdamW", "CosineAdam"]
)
def test_pairs_are_tuned_together(rule, name):
    episodes, rates = Quadratics().episodes("tune", range(4)), learning_rates(2)
    grid = grid_of(rule, rates)
    assert len(grid[name]) == len(grid["learning_rate"]) == 4 * len(rates)
    choices = [dict(zip(grid, values, strict=True)) for values in zip(*grid.values(), strict=True)]
    finals = [final(with_settings(rule, choice), episodes, 30) for choice in choices]
    assert tune(rule, [episodes], 30, grid) == choices[finals.index(min(finals))]


@pytest.mark.parametrize("prune", [False, True])
def test_episodes_of_different_sizes_are_tuned_together(prune):
    """By the mean over all episodes: one of two small ones, of which each counts as much as the one large."""
    small, large = Quadratics(dimension=3).episodes("tune", range(6)), Quadratics(dimension=12).episodes("tune", [0])
    rates = learning_rates(4)

    def finals(episodes):
        return torch.tensor([final(SGD(rate), episodes, 100) for rate in rates.tolist()])

    alone = [tune(SGD(), [episodes], 100, grid_of(SGD(), rates), prune) for episodes in (small, large)]
    both = tune(SGD(), [small, large], 100, grid_of(SGD(), rates), prune)
    assert alone[0] != alone[1]
    assert both["learning_rate"] == rates[((6 * finals(small) + finals(large)) / 7).argmin()].item()


@pytest.mark.parametrize(("prune", "last"), [(False, 0), (True, 1)])
def test_tuning_tells_how_far_it_is(prune, last):
    tried: list[int] = []
    batches = [Quadratics().episodes("tune", range(4)), Quadratics(dimension=3).episodes("tune", range(2))]
    tune(SGD(), batches, 80, grid_of(SGD(), learning_rates(2)), prune, tried.append)
    assert len(tried) == (4 if prune else 2)
    assert sum(tried) == 2 * (11 - last)  # what is left of the rates at the end of pruning


@pytest.mark.parametrize("prune", [False, True])
def test_diverging_rates_are_never_chosen(prune):
    episodes = Quadratics().episodes("tune", range(4))
    assert tune(SGD(), [episodes], 100, {"learning_rate": [10.0, 1e-3]}, prune) == {"learning_rate": 1e-3}


def test_pruning_finds_the_best_rate_among_those_that_start_well():
    episodes, grid = Quadratics().episodes("tune", range(8)), grid_of(NAG(), learning_rates(4))
    assert tune(NAG(), [episodes], 100, grid, prune=True) == tune(NAG(), [episodes], 100, grid)
