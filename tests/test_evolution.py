"""Evolution strategies against the exact meta-gradient, and their noise."""

import pytest
import torch
from test_forking_rule import LearnedMomentum, LearnedStart

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.meta_gradients import ES, NRES, PES, Exact, Plan
from lightning_l2l.meta_losses import WeightedSum
from lightning_l2l.optimizees import Quadratics

EPISODES = Quadratics(dimension=4).episodes("train", range(2)).to("cpu", torch.float64)
WHOLE, CUT = Plan(WeightedSum(), 6, 6), Plan(WeightedSum(), 6, 2)
MANY = {"sigma": 1e-3, "pairs": 20000}  # so little smoothing that only the noise of the mean is left


def estimate(estimator, rule, plan, episodes=EPISODES):
    """The sum of a run's estimates, flat."""
    total = torch.zeros(())
    for truncation in estimator.truncations(rule, episodes, plan):
        grads = torch.autograd.grad(truncation.objective, list(rule.parameters()))
        total = total + torch.cat([grad.flatten() for grad in grads])
    return total


def distance(got, want):
    return ((got - want).norm() / want.norm()).item()


@pytest.mark.parametrize(("strategy", "plan"), [(ES, WHOLE), (PES, CUT), (NRES, CUT)], ids=["ES", "PES", "NRES"])
def test_the_mean_is_the_gradient_of_the_whole_run(strategy, plan):
    rule = LearnedMomentum().double()
    assert distance(estimate(strategy(**MANY), rule, plan), estimate(Exact(), rule, WHOLE)) < 0.03


def test_es_is_as_blind_to_later_truncations_as_the_exact_gradient_of_each():
    rule = LearnedMomentum().double()
    got, truncated, whole = (
        estimate(estimator, rule, plan) for estimator, plan in [(ES(**MANY), CUT), (Exact(), CUT), (Exact(), WHOLE)]
    )
    assert distance(truncated, whole) > 0.2
    assert distance(got, truncated) < 0.03


@pytest.mark.parametrize("strategy", [ES, PES, NRES])
def test_where_runs_start_is_perturbed_too(strategy):
    rule = LearnedStart(4).double()
    assert distance(estimate(strategy(**MANY), rule, WHOLE), estimate(Exact(), rule, WHOLE)) < 0.03


@pytest.mark.parametrize("strategy", [ES, PES, NRES])
def test_pairs_that_are_not_finite_are_left_out(strategy):
    rule = LearnedMomentum().double()
    theta = EPISODES.theta.clone()
    theta[1] = torch.inf
    one_diverges = EPISODES.with_tensors({"theta": theta})
    got = estimate(strategy(), rule, CUT, one_diverges)
    assert got.isfinite().all()
    torch.testing.assert_close(got, estimate(strategy(), rule, CUT, EPISODES.first(1)))
    truncations = list(strategy().truncations(rule, one_diverges, CUT))
    assert [int(truncation.dropped) for truncation in truncations] == [1, 1, 1]
    assert all(truncation.meta_loss.isfinite() for truncation in truncations)


def test_an_estimate_without_a_finite_pair_is_not_finite():
    """So that the learner skips the meta-step and counts it."""
    rule = LearnedMomentum().double()
    diverged = EPISODES.with_tensors({"theta": torch.full_like(EPISODES.theta, torch.inf)})
    assert not estimate(ES(), rule, WHOLE, diverged).isfinite().any()


def test_noise_depends_on_the_seed_the_process_and_its_number_alone(monkeypatch):
    like, first = torch.zeros(3, dtype=torch.float64), ES()
    drawn = [first.draw(4, like) for _ in range(3)]
    assert not torch.equal(drawn[0], drawn[1])
    again = ES()
    torch.rand(5)
    assert torch.equal(again.draw(4, like), drawn[0])
    resumed = ES()
    torch.manual_seed(1)
    resumed.load_state_dict(again.state_dict())
    assert torch.equal(resumed.draw(4, like), drawn[1])
    assert not torch.equal(ES().draw(4, like), drawn[0])  # of the other seed
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert not torch.equal(resumed.draw(4, like), drawn[2])


class OneByOne(LearnedMomentum):
    """Looks at numbers in Python, which vmap forbids."""

    def update(self, grad, state):
        return (super().update if self.phi[0].item() < 1 else None)(grad, state)


@pytest.mark.parametrize("estimator", [ES(), Exact(episode_clip=1.0)])
def test_a_rule_that_cannot_be_batched_over_phi_is_refused(estimator):
    with pytest.raises(InvalidInputError, match="but OneByOne cannot run with parameters of its own in each episode"):
        estimator.check(OneByOne(), Quadratics(dimension=4).episodes("train", [0]))
