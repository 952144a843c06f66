"""The exact meta-gradient against finite differences and against another library."""

from importlib.util import find_spec

import pytest
import torch
from conftest import skip
from small_problem import (
    WEIGHTS,
    LearnedMomentum,
    LearnedStart,
    meta_gradient,
    meta_loss,
    plan,
    problem,
)

from lightning_l2l.meta_gradients import Exact, Plan
from lightning_l2l.meta_losses import LogLoss


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


@pytest.mark.parametrize("kind", ["quadratic", "momenta", "mnist"])
def test_a_huge_clip_changes_nothing(kind):
    rule, episodes = problem(kind)
    torch.testing.assert_close(meta_gradient(Exact(1e9), rule, episodes), meta_gradient(Exact(), rule, episodes))


def test_a_huge_clip_changes_nothing_where_the_start_is_learned():
    rule, episodes = LearnedStart().double(), problem()[1]
    for want, got in zip(*(e.truncations(rule, episodes, plan(unroll=3)) for e in (Exact(), Exact(1e9))), strict=True):
        of_start = [torch.autograd.grad(t.objective, rule.first, allow_unused=True)[0] for t in (want, got)]
        torch.testing.assert_close(of_start[1], torch.zeros(4).double() if of_start[0] is None else of_start[0])
        torch.testing.assert_close(got.meta_loss, want.meta_loss)


def test_each_episode_is_clipped_by_itself():
    rule, episodes = problem()
    alone = [
        meta_gradient(
            Exact(), rule, episodes.with_tensors({k: v[n : n + 1] for k, v in episodes.tensor_fields().items()})
        )
        for n in range(3)
    ]
    norms = torch.stack([grad.norm() for grad in alone])
    clip = norms.sort()[0][1].item()  # the largest is scaled down
    want = sum(grad * min(1, clip / norm) for grad, norm in zip(alone, norms, strict=True)) / 3
    torch.testing.assert_close(meta_gradient(Exact(clip), rule, episodes), want)


@pytest.mark.parametrize("meta_loss", [None, LogLoss()], ids=["sum", "log"])
def test_an_episode_that_diverges_does_not_spoil_the_others(meta_loss):
    rule, episodes = LearnedMomentum().double(), problem()[1].first(2)
    theta = episodes.theta.clone()
    theta[1] = torch.inf
    diverges = episodes.with_tensors({"theta": theta})
    cut = plan(unroll=3) if meta_loss is None else Plan(meta_loss, 6, 3)
    for got, want in zip(
        Exact(1.0).truncations(rule, diverges, cut), Exact(1.0).truncations(rule, episodes.first(1), cut), strict=True
    ):
        grads = [torch.autograd.grad(truncation.objective, rule.phi)[0] for truncation in (got, want)]
        assert grads[0].isfinite().all()
        torch.testing.assert_close(*grads)
        assert int(got.dropped) == 1 and got.meta_loss.isfinite()
    (whole,) = Exact().truncations(rule, diverges, cut._replace(unroll=6))
    assert not torch.autograd.grad(whole.objective, rule.phi)[0].isfinite().all()  # what happens without
