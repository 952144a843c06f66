"""The exact meta-gradient against finite differences and against another library."""

from importlib.util import find_spec

import pytest
import torch
from conftest import skip
from small_problem import (
    WEIGHTS,
    LearnedStart,
    meta_gradient,
    meta_loss,
    problem,
)

from lightning_l2l.meta_gradients import Exact


@pytest.mark.parametrize("kind", ["quadratic", "momenta"])
def test_exact_agrees_with_finite_differences(kind):
    rule, episodes = problem(kind)
    got = meta_gradient(Exact(), rule, episodes)
    phi = torch.nn.utils.parameters_to_vector(rule.parameters()).detach()
    want = torch.empty_like(phi)
    for index in range(len(phi)):
        losses = []
        for sign in (1, -1):
            nudged = phi.clone()
            nudged[index] += sign * 1e-5
            torch.nn.utils.vector_to_parameters(nudged, rule.parameters())
            losses.append(meta_loss(rule, episodes))
        want[index] = (losses[0] - losses[1]) / 2e-5
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["mnist", "cifar"])
def test_exact_goes_through_networks(kind):
    """Along random directions, since a difference for each number of φ would take minutes."""
    rule, episodes = problem(kind)
    got = meta_gradient(Exact(), rule, episodes)
    phi = torch.nn.utils.parameters_to_vector(rule.parameters()).detach()
    for _ in range(3):
        direction, losses = torch.randn_like(phi), []
        for step in (1e-8, -1e-8):  # so small that hardly ever a ReLU switches
            torch.nn.utils.vector_to_parameters(phi + step * direction, rule.parameters())
            losses.append(meta_loss(rule, episodes))
        torch.testing.assert_close(got @ direction, (losses[0] - losses[1]) / 2e-8, rtol=1e-4, atol=1e-5)


def test_exact_of_a_learned_start_agrees_with_finite_differences():
    _, episodes = problem()
    rule = LearnedStart().double()
    got = meta_gradient(Exact(), rule, episodes)
    phi = torch.nn.utils.parameters_to_vector(rule.parameters()).detach()
    for index in range(len(phi)):
        losses = []
        for step in (1e-5, -1e-5):
            nudged = phi.clone()
            nudged[index] += step
            torch.nn.utils.vector_to_parameters(nudged, rule.parameters())
            losses.append(meta_loss(rule, episodes))
        torch.testing.assert_close(got[index], (losses[0] - losses[1]) / 2e-5, rtol=1e-6, atol=1e-7)


def test_exact_agrees_with_learn2learn():
    if not find_spec("learn2learn"):
        skip("learn2learn is an extra: uv sync --extra learn2learn")
    import learn2learn

    rule, episodes = problem()
    model = torch.nn.Module()
    model.theta = torch.nn.Parameter(episodes.theta.clone())
    state, loss = rule.init(episodes.theta), torch.zeros((), dtype=torch.float64)
    for step, weight in enumerate(WEIGHTS):
        value = episodes.loss(model.theta, step).sum()
        (grad,) = torch.autograd.grad(value, model.theta, create_graph=True)
        update, state = rule.update(grad, state)
        model = learn2learn.update_module(model, updates=[update])
        loss = loss + weight * episodes.loss(model.theta, step + 1).mean()
    want = torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(rule.parameters()))])
    torch.testing.assert_close(meta_gradient(Exact(), rule, episodes), want)
