"""A fork's new meta-loss lives in one file, with a YAML; the package is not touched."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from forks import QUADRATICS, train_race_kill_and_resume
from test_forking_rule import LearnedMomentum
from torch import Tensor

from lightning_l2l.meta_gradients import Exact, FirstOrder, Linearized, Plan
from lightning_l2l.meta_losses import MetaLoss, WeightedSum
from lightning_l2l.optimizees import Quadratics
from lightning_l2l.optimizees.quadratic import QuadraticEpisodes
from lightning_l2l.rules import State


class LogAboveReference(MetaLoss):
    """The mean of log(f(θ_t) + ε), less that of a reference where the optimizee has one; the second half counts."""

    def __init__(self, floor: float = 0.01) -> None:
        self.floor = floor

    def __call__(self, losses: Tensor, step: int, horizon: int, reference: Tensor | None = None) -> Tensor:
        values = (losses + self.floor).log()
        if reference is not None:
            values = values - (reference + self.floor).log()
        late = torch.arange(step + 1, step + len(losses) + 1) > horizon // 2
        return late.to(values) @ values / horizon


@dataclass(eq=False)
class WithReference(QuadraticEpisodes):
    """Quadratics that know what a step of theirs should reach: 1."""

    def reference(self, step: int, count: int) -> Tensor:
        return torch.ones(count, len(self.theta))


class ReferredQuadratics(Quadratics):
    """Random quadratic functions with a reference."""

    def episodes(self, split, numbers):
        plain = super().episodes(split, numbers)
        return WithReference(plain.theta, plain.matrix, plain.target)


MODEL = """
model:
  rule: {class_path: test_forking_rule.LearnedMomentum, init_args: {log_rate: -4.0}}
  unroll: 10
  learning_rate: 0.05
  meta_loss: {class_path: test_forking_meta_loss.LogAboveReference, init_args: {floor: 0.02}}
data: {class_path: test_forking_meta_loss.ReferredQuadratics}
"""


PLAN = Plan(LogAboveReference(), 6, 6)


def problem() -> tuple[LearnedMomentum, WithReference]:
    """A small rule, and episodes that have a reference, in float64."""
    episodes = ReferredQuadratics(dimension=3).episodes("train", range(4))
    return LearnedMomentum(-3.0).double(), episodes.to("cpu", torch.float64)


def test_a_new_meta_loss():
    row = train_race_kill_and_resume(QUADRATICS, MODEL)["LearnedMomentum"]
    assert float(row["last10"]) < 0.5 * float(row["initial"])


def test_it_and_weights_cannot_both_be_given(fails):
    Path("0.yaml").write_text(QUADRATICS)
    Path("1.yaml").write_text(MODEL)
    sentence = fails("fit", "--config", "0.yaml", "--config", "1.yaml", "--model.loss_weights=last")
    assert "model.loss_weights is last, but model.meta_loss is given, too" in sentence


class OnlyTheLast(MetaLoss):
    """Ignores all truncations but the last, without a graph."""

    def __call__(self, losses: Tensor, step: int, horizon: int, reference: Tensor | None = None) -> Tensor:
        return losses[-1] if step + len(losses) == horizon else losses.new_zeros(losses.shape[1])


@pytest.mark.parametrize("estimator", [FirstOrder(), Exact(), Linearized()])
def test_truncations_that_do_not_count_have_no_meta_gradient(estimator):
    rule, episodes = problem()
    first, last = (
        torch.autograd.grad(truncation.objective, rule.phi)[0]
        for truncation in estimator.truncations(rule, episodes, Plan(OnlyTheLast(), 6, 3))
    )
    assert torch.equal(first, torch.zeros_like(first)) and last.abs().min() > 0


class FixedRate(LearnedMomentum):
    """Learns nothing but where runs start: MAML."""

    def __init__(self) -> None:
        super().__init__()
        del self.phi
        self.first = torch.nn.Parameter(torch.zeros(3))

    def start(self, theta: Tensor) -> Tensor:
        return theta + self.first

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, State]:
        return -0.05 * grad, state


def test_a_start_alone_can_be_learned_by_first_order():
    """FOMAML: the gradient of the last loss at the end of the run is that of the start."""
    rule, episodes = FixedRate(), Quadratics(dimension=3).episodes("train", range(4))
    (truncation,) = FirstOrder().truncations(rule, episodes, Plan(WeightedSum("last"), 5, 5))
    (got,) = torch.autograd.grad(truncation.objective, rule.first)
    torch.testing.assert_close(got, truncation.run.grad.mean(0))


def test_the_exact_meta_gradient_is_that_of_the_meta_loss():
    """Against finite differences, by a truncation that is the whole run."""
    rule, episodes = problem()
    (truncation,) = Exact().truncations(rule, episodes, PLAN)
    (got,) = torch.autograd.grad(truncation.objective, rule.phi)
    losses = []
    for nudge in (1e-6, -1e-6):
        with torch.no_grad():
            rule.phi[0] += nudge
            losses.append(next(Exact().truncations(rule, episodes, PLAN)).meta_loss)
            rule.phi[0] -= nudge
    torch.testing.assert_close(got[0], (losses[0] - losses[1]) / 2e-6, rtol=1e-6, atol=1e-9)


def test_the_first_order_is_that_of_the_meta_loss():
    """Against autograd with gradients taken as constants."""
    rule, episodes = problem()
    (truncation,) = FirstOrder().truncations(rule, episodes, PLAN)
    (got,) = torch.autograd.grad(truncation.objective, rule.phi)
    theta, state, losses = episodes.theta, rule.init(episodes.theta), []
    for step in range(PLAN.horizon):
        update, state = rule.update(episodes.value_and_grad(theta.detach(), step)[1].detach(), state)
        theta = theta + update
        losses.append(episodes.loss(theta, step + 1))
    meta_loss = PLAN.loss(torch.stack(losses), 0, episodes).mean()
    (want,) = torch.autograd.grad(meta_loss, rule.phi)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)
    torch.testing.assert_close(truncation.meta_loss, meta_loss.detach())
