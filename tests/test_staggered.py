"""Staggered starts: which runs get their truncations when, and what a checkpoint keeps of them."""

import pytest
import torch
from forks import QUADRATICS, checkpoint, train_race_kill_and_resume
from small_problem import LearnedMomentum, LearnedStart

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.meta_gradients import ES, NRES, PES, Exact, FirstOrder, Imitation, Plan, Staggered
from lightning_l2l.meta_losses import WeightedSum
from lightning_l2l.optimizees import Quadratics
from lightning_l2l.rules import SGD


def meta_batch(number):
    """Episodes whose dimension differs from one meta-batch to the next, as in a mixture of tasks."""
    episodes = Quadratics(dimension=3 + number % 2).episodes("train", range(2 * number, 2 * number + 2))
    return episodes.to("cpu", torch.float64)


def plan(horizon=8):
    return Plan(WeightedSum(), horizon, 2)


def train(estimator, rule, numbers):
    """Takes a meta-step for each truncation; returns the steps at which each ended, by meta-batch."""
    ends = []
    for number in numbers:
        ends.append([])
        for truncation in estimator.truncations(rule, meta_batch(number), plan(8 if number % 3 else 4)):
            rule.zero_grad()
            truncation.objective.backward()
            for phi in rule.parameters():
                phi.data -= 1e-5 * (0 if phi.grad is None else phi.grad)
            ends[-1].append(truncation.run.step)
    return ends


@pytest.mark.parametrize("inner", [FirstOrder, Exact, lambda: Exact(1.0), ES, PES, NRES])
def test_one_batch_in_progress_is_the_meta_gradient_alone(inner):
    rules = LearnedMomentum().double(), LearnedMomentum().double()
    ends = [train(e, r, range(4)) for e, r in zip((inner(), Staggered(inner(), batches=1)), rules, strict=True)]
    assert ends[0] == ends[1] == [[2, 4], [2, 4, 6, 8], [2, 4, 6, 8], [2, 4]]
    assert torch.equal(rules[0].phi, rules[1].phi)


def test_runs_start_apart_and_take_turns():
    """With runs of 8 truncations and 4 in progress, one starts whenever the others have taken two more."""
    estimator, rule, ends = Staggered(FirstOrder(), batches=4), LearnedMomentum(), []
    for _ in range(8):
        of_batch = estimator.truncations(rule, Quadratics(dimension=3).episodes("train", [0]), plan(16))
        ends.append([truncation.run.step // 2 for truncation in of_batch])
    assert ends[:3] == [[1, 2], [1, 3, 2, 4], [1, 3, 5, 2, 4, 6]]
    for steady in ends[3:]:
        assert sorted(steady) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert len(estimator.in_progress) == 3


def test_runs_of_other_horizons_and_tasks_end_when_they_should():
    estimator, rule = Staggered(PES(), batches=3), LearnedMomentum().double()
    ends = train(estimator, rule, range(12))
    assert all(ends)  # every meta-batch gives at least one meta-step
    taken = [end for of_batch in ends for end in of_batch]
    in_progress = [batch.run.step for batch in estimator.in_progress]
    assert len(in_progress) == 2
    assert taken.count(2) == 12 and taken.count(4) == 12 - in_progress.count(2)  # no run was lost
    assert taken.count(8) <= 8  # a third of the runs end at 4


@pytest.mark.parametrize("inner", [FirstOrder, Exact, lambda: Exact(1.0), ES, PES, NRES])
@pytest.mark.parametrize("kind", [LearnedMomentum, LearnedStart])
def test_restored_runs_go_on_to_the_bit(inner, kind):
    numbers = range(1, 18, 2) if kind is LearnedStart else range(9)  # a learned start knows one dimension only
    whole, rule = Staggered(inner(), batches=3), kind().double()
    train(whole, rule, numbers[:5])
    torch.save(whole.state_dict(), "state.pt")
    resumed, again = Staggered(inner(), batches=3), kind().double()
    again.load_state_dict(rule.state_dict())
    torch.manual_seed(5)
    resumed.load_state_dict(torch.load("state.pt", weights_only=True))
    resumed.load_state_dict(resumed.state_dict())  # saved again before it has run
    assert train(whole, rule, numbers[5:]) == train(resumed, again, numbers[5:])
    for key, value in rule.state_dict().items():
        assert value.isfinite().all() and torch.equal(value, again.state_dict()[key])


def test_runs_of_another_version_are_refused():
    before, rule = Staggered(FirstOrder(), batches=3), LearnedMomentum().double()
    train(before, rule, range(4))
    state = before.state_dict()
    state["runs"][0]["run"].append(torch.zeros(1))
    after = Staggered(FirstOrder(), batches=3)
    after.load_state_dict(state)
    with pytest.raises(InvalidInputError, match="ckpt_path has runs in progress whose states hold"):
        train(after, rule, range(4))


def test_a_stages_end_releases_its_runs():
    estimator = Staggered(PES(), batches=3)
    train(estimator, LearnedMomentum().double(), range(4))
    assert len(estimator.state_dict()["runs"]) == 2
    estimator.release()
    assert estimator.state_dict()["runs"] == []


STAGES = """
model:
  rule: {class_path: test_forking_rule.LearnedMomentum, init_args: {log_rate: -4.0}}
  learning_rate: 0.03
  unroll: 5
  meta_loss: {class_path: lightning_l2l.meta_losses.LogLoss, init_args: {last: 0.5}}
  stages:
    - meta_gradient:
        class_path: lightning_l2l.meta_gradients.Staggered
        init_args: {meta_gradient: {class_path: lightning_l2l.meta_gradients.Exact, init_args: {episode_clip: 1.0}},
          batches: 6}
    - horizon: [10, 20]
      meta_gradient:
        class_path: lightning_l2l.meta_gradients.Staggered
        init_args: {meta_gradient: {class_path: lightning_l2l.meta_gradients.PES, init_args: {sigma: 0.1}}, batches: 3}
"""


def test_meta_training_resumes_to_the_bit():
    """It is stopped in the second stage, whose runs it keeps; those of the first are gone by then."""
    row = train_race_kill_and_resume(QUADRATICS, STAGES)["LearnedMomentum"]
    assert float(row["last10"]) < 0.5 * float(row["initial"])
    ((first, second),) = checkpoint(0)["meta_gradients"]
    assert first == {}
    assert len(second["runs"]) == 2 and second["meta_gradient"]["drawn"] > 16


def test_an_estimator_that_chooses_truncations_itself_is_refused():
    with pytest.raises(InvalidInputError, match="give Imitation with Staggered as its meta_gradient"):
        Staggered(Imitation(SGD(0.1))).check(LearnedMomentum(), meta_batch(0))
    Imitation(SGD(0.1), meta_gradient=Staggered(FirstOrder())).check(LearnedMomentum(), meta_batch(0))
