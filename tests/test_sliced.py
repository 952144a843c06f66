"""Rules that see θ and the loss: in slices, replayed and in groups they do what they do plainly."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lightning_l2l.episodes import Episodes
from lightning_l2l.meta_gradients import Plan
from lightning_l2l.meta_gradients.first_order import first_order_steps
from lightning_l2l.meta_losses import WeightedSum
from lightning_l2l.rules import SGD, Adam, Grouped, UpdateRule, fastest, layout_of
from lightning_l2l.rules.fast.sliced import Sliced
from lightning_l2l.unroll import learning_curves, start

LAYOUT = layout_of({"weight": (4, 5), "bias": (7,)})


@dataclass(eq=False)
class Bowls(Episodes):
    """f(θ) = Σ_i c_i θ_i² / 2, of a weight and a bias."""

    curvature: torch.Tensor  # [N, P]

    @property
    def layout(self):
        return LAYOUT

    def loss(self, theta, step):
        return 0.5 * (self.curvature * theta.square()).sum(1)


class Decay(UpdateRule):
    """Gradient descent with momentum that shrinks θ, too."""

    coordinatewise = True
    sees = ("theta",)

    def __init__(self):
        super().__init__()
        self.phi = nn.Parameter(torch.tensor([0.1, 0.6, 0.05], dtype=torch.float64))

    def init(self, theta):
        return (torch.zeros_like(theta),)

    def update(self, grad, state, theta):
        velocity = self.phi[1] * state[0] + grad
        return -self.phi[0] * velocity - self.phi[2] * theta, (velocity,)


class Polyak(UpdateRule):
    """Steps that shrink with the loss, and with θ."""

    coordinatewise = True
    sees = ("loss", "theta")

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))

    def init(self, theta):
        return ()

    def update(self, grad, state, loss, theta):
        return -self.rate * grad * loss[:, None] / (1 + loss[:, None]) / (1 + theta.square()), state


class ByHand(UpdateRule):
    """One rule on the weight, another on the bias, written out."""

    sees = ("theta", "loss")

    def __init__(self, of_weight, of_bias):
        super().__init__()
        self.rules = nn.ModuleList([of_weight, of_bias])
        self.places = [place.coordinates for place in LAYOUT.values()]

    def init(self, theta):
        return tuple(rule.init(theta[:, place]) for rule, place in zip(self.rules, self.places, strict=True))

    def update(self, grad, state, theta, loss):
        steps = []
        for rule, place, own in zip(self.rules, self.places, state, strict=True):
            seen = {"theta": theta[:, place], "loss": loss}
            steps.append(rule.update(grad[:, place], own, **{name: seen[name] for name in rule.sees}))
        updates, states = zip(*steps, strict=True)
        return torch.cat(updates, 1), states


def bowls():
    return Bowls(torch.randn(3, 27, dtype=torch.float64), torch.rand(3, 27, dtype=torch.float64))


def assert_alike(rule, plain, episodes):
    """The same losses and meta-gradients, by way of two truncations."""
    plan = Plan(WeightedSum("linear"), 10, 5)
    runs = [start(each, episodes) for each in (rule, plain)]
    for _ in range(2):
        got, want = (
            first_order_steps(each, episodes, run, plan) for each, run in zip((rule, plain), runs, strict=True)
        )
        torch.testing.assert_close(got.losses, want.losses)
        assert all(grad.abs().max() > 0 for grad in want.meta_grads)
        torch.testing.assert_close(got.meta_grads, want.meta_grads)
        runs = [got.run.detach(), want.run.detach()]


@pytest.mark.parametrize("replay", [False, True])
def test_a_rule_that_sees_theta_runs_in_slices(replay):
    episodes, rule = bowls(), Decay()
    sliced = Sliced(rule, 4, threads=2, replay=replay)
    assert_alike(sliced, rule, episodes)
    torch.testing.assert_close(learning_curves(sliced, episodes, 10), learning_curves(rule, episodes, 10))


def test_what_a_rule_sees_changes_its_steps():
    episodes, rule = bowls(), Decay()
    curves = [learning_curves(rule, episodes, 5)]
    with torch.no_grad():
        rule.phi[2] = 0.0
    curves.append(learning_curves(rule, episodes, 5))
    assert (curves[0][:, 1:] < curves[1][:, 1:]).all()  # in a bowl, a smaller θ has the smaller loss


def test_little_memory_replays_what_sees_theta_and_leaves_alone_what_sees_the_loss():
    """Slices mix the episodes, each of which has a loss of its own."""
    theta = torch.zeros(3, 5000, dtype=torch.float64)
    assert fastest(Decay(), theta, steps=5, memory=0).replay
    assert fastest(rule := Polyak(), theta, steps=5, memory=0) is rule


@pytest.mark.parametrize("memory", [None, 0.0])
def test_groups_hand_each_rule_what_it_sees(memory):
    episodes = bowls()
    rule = Grouped({"a": Decay(), "b": Polyak()}, {"a": ["weight"], "b": ["bias"]})
    grouped = fastest(rule.bind(LAYOUT), episodes.theta, 5, memory=memory)
    assert set(grouped.sees) == {"theta", "loss"}
    assert_alike(grouped, ByHand(rule.rules["a"], rule.rules["b"]), episodes)


def test_groups_say_what_their_rules_hold_constant():
    first, second = Adam(), SGD()
    first.constants, second.constants = ("its gate",), ("its gate", "its clock")
    bound = Grouped({"a": first, "b": second}, {"a": ["w"], "b": ["v"]}).bind(layout_of({"w": (2,), "v": (1,)}))
    assert bound.constants == ("its gate", "its clock")
    assert bound.label == "Adam + SGD"
