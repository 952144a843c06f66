"""What meta-gradients share: truncations, and what they refuse."""

import pytest
import torch
from small_problem import (
    STEPS,
    LearnedMomentum,
    plan,
    problem,
    without_gradients,
)

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.meta_gradients import Exact, FirstOrder, Linearized
from lightning_l2l.unroll import start


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
