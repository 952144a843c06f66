"""PerCoordinateMLP against known answers."""

import math
from pathlib import Path

import pytest
import torch
from command_line import fit, results, tiny
from own_loop import theta
from small_problem import meta_gradient
from torch import nn

from lightning_l2l import LearnedOptimizer
from lightning_l2l.cli import main
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.meta_gradients import Exact, Plan
from lightning_l2l.meta_losses import WeightedSum
from lightning_l2l.optimizees import Quadratics
from lightning_l2l.pretrained import load_rule
from lightning_l2l.rules import PerCoordinateMLP, layout_of
from lightning_l2l.rules.coordinate_features import FLOOR, SecondMoments, coordinate_inputs
from lightning_l2l.rules.per_episode import PerEpisode
from lightning_l2l.unroll import learning_curves

LAYOUT = layout_of({"weight": (2, 3), "bias": (2,)})


def trained(scale=0.3, **settings):
    """A rule whose MLP matters."""
    rule = PerCoordinateMLP(**{"hidden_size": 5, **settings}).double()
    nn.init.normal_(rule.weights[-1], std=scale)
    for bias in rule.biases:
        nn.init.normal_(bias, std=scale)
    return rule


@torch.no_grad()
def run(rule, grads, start=None):
    """The steps on gradients [T, N, P], and the last state."""
    now = torch.ones_like(grads[0]) if start is None else start
    state, steps = rule.init(now), []
    for grad in grads:
        step, state = rule.update(grad, state, theta=now)
        now = now + step
        steps.append(step)
    return torch.stack(steps), state


def rms(values):
    return values.square().mean().sqrt()


def test_features_have_their_values():
    grad = torch.tensor([[1.0, -2.0, 3.0, 0.5, 0.0, -1.0, 2.0, -1.0]], dtype=torch.float64)
    start = torch.linspace(-1, 1, 8, dtype=torch.float64)[None]
    decays = torch.tensor([[0.9], [0.99], [0.999]], dtype=torch.float64)
    square = SecondMoments.zeros(start, LAYOUT).after(0.5 * grad, decays, LAYOUT).after(grad, decays, LAYOUT)
    means = torch.stack([-0.1 * grad, 0.2 * grad, 0.3 * grad.flip(1)], 1)
    inputs = coordinate_inputs(grad, start, means, square, LAYOUT, largest=100.0)
    weight, bias = grad[0, :6].view(2, 3), grad[0, 6:]
    torch.testing.assert_close(inputs.root[0, 4:6], (0.001 * (1 + 0.999 / 4)) ** 0.5 * torch.tensor([0, 1.0]).double())
    for number, decay in enumerate((0.9, 0.99, 0.999)):
        shares = (1 - decay) * (1 + decay / 4)
        rows, columns = (shares * weight.square().mean(side) for side in (1, 0))
        torch.testing.assert_close(square.rows[0][0, number], rows)
        torch.testing.assert_close(square.columns[0][0, number], columns)
        torch.testing.assert_close(square.rows[1][0, number], shares * bias.square())
        factored = (rows[:, None] * columns / rows.mean()).sqrt()
        want = {
            2 + number: means[0, number, :6].view(2, 3),
            6 + number: rows[:, None].sqrt().expand(2, 3),
            9 + number: columns.sqrt().expand(2, 3),
            15 + number: weight / factored,
            18 + number: means[0, number, :6].view(2, 3) / factored,
        }
        for feature, values in want.items():
            torch.testing.assert_close(inputs.features[0, feature, :6].view(2, 3), values / rms(values))
    for feature, values in {0: weight, 1: start[0, :6].view(2, 3), 5: weight.abs()}.items():
        torch.testing.assert_close(inputs.features[0, feature, :6].view(2, 3), values / rms(values))
    assert not inputs.features[0, 12:15, 4].isnan().any()


def test_an_untrained_rule_is_adam():
    grads = torch.randn(30, 1, 8, dtype=torch.float64)
    steps, _ = run(PerCoordinateMLP(learning_rate=0.01).double().bind(LAYOUT), grads)
    p = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([p], lr=0.01, eps=1e-12)
    for grad in grads:
        p.grad = grad[0]
        adam.step()
    torch.testing.assert_close(steps.sum(0)[0], p.detach(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_steps_do_not_depend_on_the_losss_scale(factor):
    grads = torch.randn(40, 2, 8, dtype=torch.float32)
    rule = trained().float().bind(LAYOUT)
    steps, _ = run(rule, grads)
    torch.testing.assert_close(run(rule, factor * grads)[0], steps, rtol=1e-3, atol=1e-6)
    assert steps.std(0).min() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_that_vanish_give_finite_steps(dtype):
    rule = trained().to(dtype).bind(LAYOUT)
    none = torch.zeros(20, 1, 8, dtype=dtype)
    steps, state = run(rule, none, start=none[0])
    assert steps.isfinite().all() and state.mean.eq(0).all()
    vanishing = torch.randn(300, 1, 8, dtype=dtype) * torch.logspace(0, -60, 300, dtype=dtype)[:, None, None]
    assert run(rule, vanishing)[0].isfinite().all()  # their squares underflow
    one = none.clone()
    one[5, 0, 2] = 1e-15
    assert run(rule, one)[0].isfinite().all()


def test_a_tensors_step_is_bounded():
    rule = trained(scale=50.0, learning_rate=1.0).bind(LAYOUT)
    start = torch.cat([torch.full((1, 6), 2.0), torch.zeros(1, 2)], 1).double()
    steps, _ = run(rule, torch.randn(1, 1, 8, dtype=torch.float64), start)
    torch.testing.assert_close(rms(steps[0, 0, :6]).item(), 0.3 * 2.02)
    torch.testing.assert_close(rms(steps[0, 0, 6:]).item(), 0.3 * 0.02)


def test_tensors_and_episodes_do_not_mix():
    rule, grads = trained(), torch.randn(5, 3, 8, dtype=torch.float64)
    steps, _ = run(rule.bind(LAYOUT), grads)
    torch.testing.assert_close(run(rule.bind(LAYOUT), grads[:, 1:2])[0], steps[:, 1:2])
    alone = rule.bind(layout_of({"weight": (2, 3)}))
    torch.testing.assert_close(run(alone, grads[..., :6])[0], steps[..., :6])
    assert not torch.allclose(run(rule, grads)[0], steps)  # as one vector


def test_saturated_features_are_counted():
    grads = torch.full((1, 1, 102), 1e-3)
    grads[..., 7] = 1.0  # ten times the root mean square over a hundred coordinates
    _, state = run(PerCoordinateMLP().bind(layout_of({"a": (100,), "b": (2,)})), grads)
    share = PerCoordinateMLP().saturated(state)
    assert share.shape == (1, 2) and 0 < share[0, 0] < 0.01 and share[0, 1] == 0


def test_a_phi_for_each_episode_runs_as_each_alone():
    rule, grads = trained(), torch.randn(4, 3, 8, dtype=torch.float64)
    phi = {name: torch.stack([p.detach() + 0.1 * n for n in range(3)]) for name, p in rule.named_parameters()}
    together = [
        torch.func.functional_call(Runs(rule.bind(LAYOUT)), {f"rule.{name}": p for name, p in phi.items()}, grads),
        run(PerEpisode(rule.bind(LAYOUT), phi), grads)[0],
    ]
    for number in range(3):
        own = {name: p[number] for name, p in phi.items()}
        rule.load_state_dict(own)
        alone, _ = run(rule.bind(LAYOUT), grads[:, number : number + 1])
        for steps in together:
            torch.testing.assert_close(steps[:, number : number + 1], alone)
    assert (together[0][:, 0] - run(rule.bind(LAYOUT), grads)[0][:, 0]).abs().max() > 1e-4


class Runs(nn.Module):
    """Gives ``functional_call`` something to call."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, grads):
        return run(self.rule, grads)[0]


def test_exact_agrees_with_finite_differences_where_nothing_is_detached():
    """In the first step gradients do not depend on φ yet, so all of the meta-gradient is there."""
    rule, episodes = trained(), Quadratics(dimension=4).episodes("train", range(3)).to("cpu", torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    got = meta_gradient(Exact(), rule, episodes, one)
    phi = nn.utils.parameters_to_vector(rule.parameters()).detach()
    direction, losses = torch.randn_like(phi), []
    for sign in (1, -1):
        nn.utils.vector_to_parameters(phi + sign * 1e-6 * direction, rule.parameters())
        losses.append(learning_curves(rule, episodes, 1)[:, 1].mean())
    torch.testing.assert_close(got @ direction, (losses[0] - losses[1]) / 2e-6, rtol=1e-5, atol=1e-8)


def test_second_order_goes_through_adams_direction():
    """Only the means are differentiated, so the derivative with respect to an earlier gradient is known."""
    rule = PerCoordinateMLP(learning_rate=0.01).double()
    start = torch.ones(1, 3, dtype=torch.float64)
    first = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    _, state = rule.update(first, rule.init(start), theta=start)
    step, state = rule.update(torch.randn(1, 3, dtype=torch.float64), state, theta=start)
    (got,) = torch.autograd.grad(step.sum(), first)
    root = state.square.coordinates.sqrt()
    root = root + FLOOR * rms(root)
    torch.testing.assert_close(got, -0.01 * 0.09 / 0.19 * math.sqrt(1 - 0.999**2) / root)


def test_it_learns_to_be_better_on_quadratics():
    rule = PerCoordinateMLP()
    before = learning_curves(rule, Quadratics().episodes("val", range(64)), 100)[:, 1:].mean()
    data, plan = Quadratics(), Plan(WeightedSum("uniform"), 100, 20)
    optimizer, meta = torch.optim.Adam(rule.parameters(), lr=0.01), Exact()
    for batch in range(8):
        episodes = data.episodes("train", range(64 * batch, 64 * batch + 64))
        for truncation in meta.truncations(rule, episodes, plan):
            optimizer.zero_grad()
            truncation.objective.backward()
            nn.utils.clip_grad_norm_(rule.parameters(), 1.0)
            optimizer.step()
    after = learning_curves(rule, data.episodes("val", range(64)), 100)[:, 1:].mean()
    assert after < 0.5 * before


def test_the_optimizer_steps_as_the_rule_does():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1))
    rule = trained().float()
    optimizer = LearnedOptimizer(model.named_parameters(), rule)
    bound = rule.bind(layout_of({name: p.shape for name, p in model.named_parameters()}))
    now, inputs = theta(model)[None], torch.randn(8, 6)
    state = bound.init(now)
    for _ in range(5):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        grad = nn.utils.parameters_to_vector([p.grad for p in model.parameters()])[None]
        optimizer.step()
        with torch.no_grad():
            step, state = bound.update(grad, state, theta=now)
        now = now + step
        torch.testing.assert_close(theta(model)[None], now)


def test_its_running_means_stay_in_float32():
    p = torch.ones(4, requires_grad=True)
    p.grad = torch.ones(4)
    optimizer = LearnedOptimizer([p], PerCoordinateMLP(), bfloat16_state=True)
    optimizer.step()
    assert {value.dtype for name, value in optimizer.state[p].items() if name != "step"} == {torch.float32}


RULE = """
model:
  rule:
    class_path: lightning_l2l.rules.PerCoordinateMLP
    init_args: {hidden_size: 4, learning_rate: 0.01}
"""


@pytest.mark.parametrize("config", ["quadratic.yaml", "mnist.yaml"])
def test_a_yaml_file_trains_it_and_export_takes_it(config):
    Path("rule.yaml").write_text(RULE)
    fit("--config=rule.yaml", config=config)
    run = Path("runs") / config[:-5] / "version_0"
    main(["export", f"--ckpt_path={run}/checkpoints/best.ckpt", "--output=mine.safetensors"])
    loaded = load_rule("mine.safetensors")
    assert isinstance(loaded, PerCoordinateMLP) and loaded.learning_rate == 0.01 and loaded.weights[-1].any()
    p = torch.ones(2, 2, requires_grad=True)
    p.square().sum().backward()
    LearnedOptimizer([p], "mine.safetensors").step()
    assert (p < 1).all()
    main(tiny("test", f"--ckpt_path={Path.cwd()}/{run}/checkpoints/best.ckpt", "--config=rule.yaml", config=config))
    assert results(run)[0]["rule"] == "PerCoordinateMLP"


@pytest.mark.parametrize("name", ["hidden_size", "num_layers", "learning_rate"])
def test_settings_must_be_positive(name):
    with pytest.raises(InvalidInputError, match=f"{name} is 0, but it must be positive"):
        PerCoordinateMLP(**{name: 0})
