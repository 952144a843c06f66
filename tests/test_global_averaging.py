"""LSTM+GAC: what is averaged, its tape, and a φ that clips."""

import math

import pytest
import torch
from forks import QUADRATICS, train_race_kill_and_resume
from own_loop import assert_steps_and_resumes, network
from small_problem import assert_agrees_with_finite_differences, first_order_by_autograd, meta_gradient, problem

from lightning_l2l import LearnedOptimizer
from lightning_l2l.cli import main
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.meta_gradients import Exact, FirstOrder, Linearized
from lightning_l2l.pretrained import load_rule
from lightning_l2l.rules import CoordinatewiseLSTM, GlobalAveragingLSTM, Grouped, Tape, fastest, layout_of

SETTINGS = {
    "preprocessed": {},
    "raw": {"num_layers": 1, "preprocessing": None},
    "momenta": {"momenta": [0.5], "num_layers": 3},
    "all averaged": {"averaged": 4},
}


def lstm(**settings):
    """A rule whose steps depend on everything."""
    rule = GlobalAveragingLSTM(**{"hidden_size": 4, "averaged": 2, "output_scale": 1.0, **settings}).double()
    for parameter in rule.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return rule


def run(owner, grads):
    """The steps of a rule or tape on gradients [T, N, P]."""
    rule = owner.rule if isinstance(owner, Tape) else owner
    state, steps = rule.init(grads[0]), []
    for grad in grads:
        step, state = owner.update(grad, state)
        steps.append(step)
    return torch.stack(steps)


def test_without_averages_it_is_the_plain_lstm():
    rule, plain = lstm(averaged=0), CoordinatewiseLSTM(hidden_size=4, output_scale=1.0).double()
    plain.load_state_dict(rule.state_dict())
    grads = torch.randn(5, 2, 7, dtype=torch.float64)
    cotangents, results = list(torch.randn_like(grads)), []
    for one in (rule, plain):
        tape = one.tape(grads[0], 5)
        results.append([run(tape, grads), *tape.backward(cotangents), run(one, grads)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_the_first_units_of_each_layer_are_averaged_over_an_episodes_coordinates():
    rule, grads = lstm(), torch.randn(3, 2, 6, dtype=torch.float64)
    state = rule.init(grads[0])
    for grad in grads:
        _, state = rule.update(grad, state)
    for hidden, cell in zip(state.hidden, state.cell, strict=True):
        assert (hidden.std(-1) > 1e-3).tolist() == [[False] * 2] * 2 + [[True] * 2] * 2
        assert (hidden[:2, 0] - hidden[:2, 1]).abs().min() > 1e-6
        assert cell.std(-1).min() > 1e-3


@pytest.mark.parametrize("ways", ["tape", "steps"])
def test_episodes_do_not_mix_but_coordinates_do(ways):
    rule, grads = lstm(), torch.randn(4, 3, 5, dtype=torch.float64)

    def steps(grads):
        return run(rule.tape(grads[0], 4) if ways == "tape" else rule, grads).detach()

    torch.testing.assert_close(steps(grads)[:, 1:2], steps(grads[:, 1:2]))
    assert (steps(grads)[..., :4] - steps(grads[..., :4])).abs().max() > 1e-3
    order = torch.randperm(5)
    torch.testing.assert_close(steps(grads[..., order]), steps(grads)[..., order])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_tapes_way_back_is_autograds(name, dtype, tolerance):
    rule = lstm(**SETTINGS[name]).to(dtype)
    grads = torch.randn(7, 2, 75, dtype=dtype) * torch.logspace(-6, 2, 75)
    cotangents = list(torch.randn(6, 2, 75, dtype=dtype))
    results = []
    for tape in (Tape(rule), rule.tape(grads[0], 6), rule.tape(grads[0], 6)):
        results.append((run(tape, grads[:-1]), tape.backward(cotangents)))
    (want_steps, want), *others = results
    for steps, got in others:  # the second time on buffers used before
        torch.testing.assert_close(steps, want_steps, rtol=tolerance, atol=tolerance)
        for a, b in zip(got, want, strict=True):
            assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("name", SETTINGS)
def test_meta_gradients(name):
    rule, (_, episodes) = lstm(**SETTINGS[name]), problem()
    first = meta_gradient(FirstOrder(), rule, episodes)
    torch.testing.assert_close(first, first_order_by_autograd(rule, episodes), rtol=1e-9, atol=1e-9)
    got = meta_gradient(Exact(), rule, episodes)
    torch.testing.assert_close(meta_gradient(Exact(1e9), rule, episodes), got)  # by a φ for each episode
    assert_agrees_with_finite_differences(got, rule, episodes, atol=1e-6)


def test_linearized_takes_the_same_way_back(monkeypatch):
    rule, (_, episodes) = lstm(), problem()
    got = meta_gradient(Linearized(), rule, episodes)
    monkeypatch.setattr(GlobalAveragingLSTM, "tape", lambda rule, *_: Tape(rule))
    torch.testing.assert_close(got, meta_gradient(Linearized(), rule, episodes), rtol=1e-9, atol=1e-9)


def test_a_group_has_averages_of_its_own():
    rules = {"a": lstm(), "b": lstm()}
    layout = layout_of({"one": (4,), "two": (2,), "three": (3,)})
    rule = Grouped(rules, {"a": ["one", "three"], "b": ["two"]}).bind(layout)
    grads = torch.randn(3, 2, 9, dtype=torch.float64)
    steps = run(fastest(rule, grads[0], 3, memory=1e-6), grads)  # too little memory for all coordinates at once
    for name, places in {"a": [0, 1, 2, 3, 6, 7, 8], "b": [4, 5]}.items():
        torch.testing.assert_close(steps[..., places], run(rules[name], grads[..., places]))


APART = 0.4
NODES = torch.arange(-24.0, 4.0, APART, dtype=torch.float64)
SIGNS = torch.tensor([1.0, -1.0], dtype=torch.float64)
SMALL, OPEN, SHUT = 1e-6, 40.0, -100.0  # σ(OPEN) is 1 and σ(SHUT) 0 to rounding


def clipping_lstm(largest, rate):
    """An LSTM+GAC whose step is −rate · ∇ · min(1, largest / ‖∇‖), with ‖∇‖² from a mean over P = 7 coordinates.

    Products: σ(ηx) tanh(y) − σ(−ηx) tanh(y) tends to ηxy / 2 for small ηx and y. Powers: with v = NODES, h apart,
    s^(−1/2) = ∫ exp(v/2 − s e^v) dv / √π ≈ h Σ_v exp(v/2 − s e^v) / √π, and σ(−x) tends to e^−x for large x.
    Choices: a gate that is open or shut. Each layer forgets, ignores its last hidden state, and passes the gradient on.
    """
    first = len(NODES)  # the unit that holds the gradient, small
    rule = GlobalAveragingLSTM(first + 1, 4, 2, preprocessing=None, output_scale=1.0).double().requires_grad_(False)
    for parameter in rule.parameters():
        parameter.zero_()
    weights = [
        weight.view(4, first + 1, -1) for weight in rule.weights
    ]  # of input, forget and output gate and candidate
    biases = [bias.view(4, first + 1) for bias in rule.biases]
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        bias[1], bias[2], bias[0, first] = SHUT, OPEN, OPEN
        weight[3, first, first if number else 0] = 1 if number else SMALL / largest
    square, power, choice, product = weights
    square[0, :2, 0] = SMALL / largest * SIGNS
    square[3, :2, 0] = SMALL / largest
    power[0, :first, 0] = -7 * 2 / SMALL**2 * NODES.exp()  # s = ‖∇‖² / largest²
    power[0, :first, 1] = -power[0, :first, 0]
    biases[1][0, :first], biases[1][3, :first] = -30, OPEN
    ratio = APART / math.sqrt(math.pi) * torch.exp(NODES / 2 + 30)  # of largest / ‖∇‖ to the sum of the powers
    rest = APART / math.sqrt(math.pi) * math.exp(NODES[0] / 2) / (math.exp(APART / 2) - 1)  # lower nodes: s e^v is 0
    steep = 1e4
    choice[0, 0, :first], biases[2][0, 0] = -steep * ratio, steep * (1 - rest)
    choice[3, 0, :first], biases[2][3, 0] = SMALL * ratio, SMALL * rest
    choice[0, 1, :first], biases[2][0, 1] = steep * ratio, steep * (rest - 1)
    biases[2][3, 1] = SMALL
    product[0, 2:4, :2] = SIGNS[:, None]
    product[3, 2:4, first] = 1
    rule.output.weight[0, 2:4] = -2 * rate * largest / SMALL**2 * SIGNS
    return rule


def test_averages_can_clip_the_gradients_norm():
    """Episodes side by side, each clipped by its own norm as torch.nn.utils.clip_grad_norm_ does.

    The tolerance: the sum over nodes is exact to 2√2 exp(−π² / .4) = 5e-11 relative, and σ and tanh are linear to
    (SMALL · 12)² / 3 = 5e-11 for gradients up to 12 · largest. A σ near 1/2 is rounded by up to 6e-17, and its
    difference from 1/2 in the last product is SMALL / 4 times a factor of 1/12 or more: up to 3e-9 relative.
    """
    largest, rate = 1e6, 0.1  # clip_grad_norm_ adds 1e-6 to norms
    norms = largest * torch.tensor([0.3, 0.01, 0.98, 1.02, 3.0, 12.0]).double()
    grads = torch.nn.functional.normalize(torch.randn(3, 6, 7, dtype=torch.float64), dim=-1) * norms[:, None]
    grads[1] = grads[1].flip(0)  # so that the next step has other norms: nothing is remembered
    steps = run(clipping_lstm(largest, rate).requires_grad_(), grads)  # tanh as such: see lstm_layer
    for step, grad in zip(steps.flatten(0, 1), grads.flatten(0, 1), strict=True):
        clipped = torch.nn.Parameter(torch.zeros_like(grad))
        clipped.grad = grad.clone()
        torch.nn.utils.clip_grad_norm_([clipped], largest)
        assert (step + rate * clipped.grad).norm() <= 3e-9 * rate * clipped.grad.norm()


def test_the_optimizer_steps_a_param_group_as_one_vector():
    assert_steps_and_resumes(lstm(), network(torch.float64), 2, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("averaged", [-1, 5])
def test_averaged_units_must_exist(averaged):
    with pytest.raises(InvalidInputError, match=f"averaged is {averaged}, but a layer has 4 units: give a number from"):
        GlobalAveragingLSTM(4, averaged=averaged)


RULE = """
model:
  rule: {class_path: lightning_l2l.rules.GlobalAveragingLSTM, init_args: {hidden_size: 4, averaged: 2}}
  unroll: 10
  learning_rate: 0.02
"""


def test_a_yaml_file_trains_resumes_and_exports_it():
    row = train_race_kill_and_resume(RULE, QUADRATICS)["LSTM+GAC"]
    assert float(row["last10"]) < 0.9 * float(row["initial"])
    main(["export", "--ckpt_path=runs/fork/version_0/checkpoints/best.ckpt", "--output=mine.safetensors"])
    loaded = load_rule("mine.safetensors")
    assert isinstance(loaded, GlobalAveragingLSTM) and loaded.averaged == 2
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    LearnedOptimizer([p], "mine.safetensors").step()
    assert (p != 1).all()
