"""Estimators of the meta-gradient on a rule that sees θ and holds its statistics constant."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lightning_l2l.episodes import Episodes
from lightning_l2l.meta_gradients import Exact, FirstOrder, Linearized, Plan
from lightning_l2l.meta_losses import LogLoss
from lightning_l2l.rules import AdamController, layout_of
from lightning_l2l.rules.adam_controller import flat
from lightning_l2l.unroll import learning_curves

SHAPES = {"matrix": (3, 4), "bias": (3,)}
PLAN = Plan(LogLoss(), 12, 12)


@dataclass(eq=False)
class Slopes(Episodes):
    """Losses of a constant slope and curvature: 10 + ⟨c_t, θ⟩ + ½ curvature ‖θ‖².

    Attributes:
        slopes: c_t, [N, T + 1, P].
        curvature: of all coordinates.
    """

    slopes: Tensor
    curvature: float

    @property
    def layout(self):
        return layout_of(SHAPES)

    def loss(self, theta, step):
        return 10 + (self.slopes[:, step] * theta).sum(1) + self.curvature / 2 * theta.square().sum(1)


def episodes(curvature):
    torch.manual_seed(0)
    theta = torch.randn(2, 15, dtype=torch.double)
    return Slopes(theta, torch.randn(2, 1, 15).double() + torch.randn(2, 13, 15).double(), curvature)


def controller():
    torch.manual_seed(1)
    rule = AdamController().double()
    for parameter in rule.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return rule


def meta_gradient(estimator, rule, data):
    (truncation,) = estimator.truncations(rule, data, PLAN)
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(truncation.objective, list(rule.parameters()))])


@pytest.mark.parametrize("estimator", [FirstOrder(), Linearized(), Exact(episode_clip=100.0)])
def test_without_curvature_all_agree_with_the_exact_gradient(estimator):
    rule, data = controller(), episodes(0.0)
    want = meta_gradient(Exact(), rule, data)
    torch.testing.assert_close(meta_gradient(estimator, rule, data), want, rtol=1e-7, atol=1e-9)


def test_exact_is_the_derivative_at_fixed_statistics(monkeypatch):
    """Central differences, in runs that replay the statistics and O of one run."""
    rule, data = controller(), episodes(3.0)
    replays = {name: Replay(getattr(flat, name)) for name in ("remember", "features", "orthogonalize_")}
    for name, replay in replays.items():
        monkeypatch.setattr(flat, name, replay)
    want = meta_gradient(Exact(), rule, data)
    phi = parameters_to_vector(rule.parameters()).detach()

    def meta_loss(at):
        for replay in replays.values():
            replay.turn = 0
        vector_to_parameters(at, rule.parameters())
        return PLAN.meta_loss(learning_curves(rule, data, 12)[:, 1:].T, 0, 12).mean()

    random = torch.randn(3, len(phi), dtype=torch.double)
    for direction in random / random.norm(dim=1, keepdim=True):
        difference = (meta_loss(phi + 1e-4 * direction) - meta_loss(phi - 1e-4 * direction)) / 2e-4
        torch.testing.assert_close(difference, want @ direction, rtol=1e-4, atol=1e-9)


class Replay:
    """Records what a function returns in the first run, and returns the same in the next ones."""

    def __init__(self, function):
        self.function = function
        self.recorded = []
        self.turn = None

    def __call__(self, *args):
        if self.turn is None:
            self.recorded.append(self.function(*args))
            return self.recorded[-1]
        self.turn += 1
        return self.recorded[self.turn - 1]
