"""The meta-gradient of first order against autograd."""

import pytest
import torch
from small_problem import (
    WEIGHTS,
    LearnedStart,
    first_order_by_autograd,
    meta_gradient,
    plan,
    problem,
)

from lightning_l2l.meta_gradients import Exact, FirstOrder
from lightning_l2l.rules.fast.sliced import Sliced
from lightning_l2l.unroll import start


@pytest.mark.parametrize("kind", ["quadratic", "momenta", "mnist"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("slices", [None, 2])
def test_first_order_agrees_with_autograd_on_detached_gradients(kind, dtype, tolerance, slices):
    rule, episodes = problem(kind, dtype)
    want = first_order_by_autograd(rule, episodes, WEIGHTS.to(dtype))
    owner = Sliced(rule, slices, threads=2) if slices else rule
    got = meta_gradient(FirstOrder(), owner, episodes, WEIGHTS.to(dtype))
    assert (got - want).norm() <= tolerance * want.norm()


def test_the_orders_differ():
    rule, episodes = problem()
    first, second = (meta_gradient(function, rule, episodes) for function in (FirstOrder(), Exact()))
    assert (first - second).norm() > 1e-3 * second.norm()


def test_first_order_of_a_learned_start_agrees_with_autograd_on_detached_gradients():
    _, episodes = problem()
    rule = LearnedStart().double()
    want = first_order_by_autograd(rule, episodes)
    assert want.abs().min() > 0
    torch.testing.assert_close(meta_gradient(FirstOrder(), rule, episodes), want)


def test_a_start_matters_in_the_first_truncation_only():
    _, episodes = problem()
    rule = LearnedStart().double()
    estimator, halves = FirstOrder(), plan(unroll=3)
    run, of_start = estimator.start(rule, episodes), []
    for _ in range(2):
        truncation = estimator.truncation(rule, episodes, run, halves)
        run = truncation.run
        of_start.append(torch.autograd.grad(truncation.objective, rule.first)[0])
    assert of_start[0].abs().min() > 0
    assert not of_start[1].any()


def test_the_last_truncations_meta_gradient_stops_at_its_start():
    rule, episodes = problem()
    estimator, halves = FirstOrder(), plan(unroll=3)
    run = estimator.truncation(rule, episodes, start(rule, episodes), halves).run
    again = start(rule, episodes)._replace(theta=run.theta, state=run.state, loss=run.loss, grad=run.grad, step=3)
    got, want = (estimator.truncation(rule, episodes, r, halves).objective for r in (run, again))
    for a, b in zip(*(torch.autograd.grad(o, list(rule.parameters())) for o in (got, want)), strict=True):
        torch.testing.assert_close(a, b)
