"""The LSTM of Ravi and Larochelle."""

import math

import pytest
import torch
from small_problem import assert_agrees_with_finite_differences, meta_gradient, problem

from lightning_l2l import LearnedOptimizer
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.meta_gradients import Exact, FirstOrder
from lightning_l2l.rules import LearnedStart, MetaLearnerLSTM
from lightning_l2l.rules.per_episode import PerEpisode
from lightning_l2l.unroll import optimize


def rule_far_from_its_start(hidden_size):
    rule = MetaLearnerLSTM(hidden_size).double()
    for parameter in rule.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return rule


def split(value):
    """Appendix A of arXiv:1606.04474, of one number."""
    large = abs(value) >= math.exp(-10)
    return [math.log(abs(value)) / 10, math.copysign(1, value)] if large else [-1.0, math.exp(10) * value]


def by_hand(rule, grads, thetas, losses):
    """The thetas of one coordinate, from the equations, with torch.nn.LSTMCell as the first layer."""
    layer, hidden = None, None
    if rule.hidden_size is not None:
        layer = torch.nn.LSTMCell(4, rule.hidden_size).double()
        i, f, o, g = rule.layer_weight.detach().chunk(4)
        bias_i, bias_f, bias_o, bias_g = rule.layer_bias.detach().chunk(4)
        weight = torch.cat([i, f, g, o])  # torch's order
        layer.weight_ih.data, layer.weight_hh.data = weight[:, :4], weight[:, 4:]
        layer.bias_ih.data, layer.bias_hh.data = torch.cat([bias_i, bias_f, bias_g, bias_o]), 0 * layer.bias_hh.data
    forget = input_gate = 0.0
    steps = []
    for grad, theta, loss in zip(grads, thetas, losses, strict=True):
        x = torch.tensor([*split(grad), *split(loss)], dtype=torch.float64)
        if layer is not None:
            hidden = layer(x[None], hidden)
            x = hidden[0][0]
        z = [
            (weight[0] @ torch.cat([x, torch.tensor([theta, last], dtype=torch.float64)]) + bias[0]).item()
            for weight, bias, last in (
                (rule.forget_weight, rule.forget_bias, forget),
                (rule.input_weight, rule.input_bias, input_gate),
            )
        ]
        forget, input_gate = (1 / (1 + math.exp(-value)) for value in z)
        steps.append(forget * theta - input_gate * grad - theta)
    return steps


@pytest.mark.parametrize("hidden_size", [None, 3])
def test_steps_are_those_of_the_equations(hidden_size):
    rule = rule_far_from_its_start(hidden_size)
    shape = 5, 2, 3  # steps, episodes, coordinates
    grads, thetas = torch.randn(shape).double(), torch.randn(shape).double()
    grads[1, 0, 0], grads[2, 1, 1] = 1e-6, 0.0
    losses = torch.rand(shape[:2]).double()
    state, got = rule.init(thetas[0]), []
    for grad, theta, loss in zip(grads, thetas, losses, strict=True):
        step, state = rule.update(grad, state, theta=theta, loss=loss)
        got.append(step)
    got = torch.stack(got)
    for n in range(2):
        for p in range(3):
            want = by_hand(rule, grads[:, n, p].tolist(), thetas[:, n, p].tolist(), losses[:, n].tolist())
            torch.testing.assert_close(got[:, n, p], torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_it_starts_near_gradient_descent():
    rule = MetaLearnerLSTM(learning_rate=0.1, weight_decay=1e-4)
    theta, grad = torch.randn(2, 50), torch.randn(2, 50)
    step, _ = rule.update(grad, rule.init(theta), theta=theta, loss=torch.ones(2))
    torch.testing.assert_close(step, -0.1 * grad - 1e-4 * theta, rtol=0.1, atol=1e-5)


@pytest.mark.parametrize("hidden_size", [None, 3])
def test_exact_agrees_with_finite_differences(hidden_size):
    _, episodes = problem()
    rule = rule_far_from_its_start(hidden_size)
    got = meta_gradient(Exact(), rule, episodes)
    assert_agrees_with_finite_differences(got, rule, episodes, atol=1e-7)


def test_first_order_and_exact_agree_on_the_last_step():
    """There no gradient depends on φ."""
    _, episodes = problem()
    rule, weights = rule_far_from_its_start(3), torch.ones(1, dtype=torch.float64)
    got, want = (meta_gradient(estimator, rule, episodes, weights) for estimator in (FirstOrder(), Exact()))
    torch.testing.assert_close(got, want)


def test_every_episode_may_have_its_own_phi():
    _, episodes = problem()
    rule = LearnedStart(rule_far_from_its_start(3)).double()
    rule.start(episodes.theta)
    phi = {name: p.detach()[None].repeat(3, *[1] * p.ndim) for name, p in rule.named_parameters()}
    own = optimize(PerEpisode(rule, phi), episodes, 4)
    torch.testing.assert_close(own[0], optimize(rule, episodes, 4)[0])


def test_in_a_loop_it_takes_the_same_steps():
    _, episodes = problem()
    rule, one = rule_far_from_its_start(3), episodes.first(1)
    theta = one.theta[0].clone().requires_grad_()
    optimizer = LearnedOptimizer([theta], rule)

    def closure():
        optimizer.zero_grad()
        loss = one.loss(theta[None], 0).sum()
        loss.backward()
        return loss

    for _ in range(4):
        optimizer.step(closure)
    torch.testing.assert_close(theta.detach(), optimize(rule, one, 4)[0][0])


@pytest.mark.parametrize("settings", [{"learning_rate": 1.0}, {"weight_decay": 0.0}, {"hidden_size": 0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(InvalidInputError, match=next(iter(settings))):
        MetaLearnerLSTM(**settings)
