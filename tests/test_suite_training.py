"""The benchmark's plain loop takes the steps that a user's loop takes, and records them."""

import copy

import numpy as np
import pytest
import torch
from small_benchmark import problem, write

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.evaluation.suite.benchmark import Benchmark
from lightning_l2l.evaluation.suite.candidates import Candidate, adam, candidate, learned
from lightning_l2l.evaluation.suite.problems import read_problems
from lightning_l2l.evaluation.suite.rivals import Rival
from lightning_l2l.evaluation.suite.training import Training, marks, train, training
from lightning_l2l.rules import Adam, Grouped, UpdateRule
from lightning_l2l.unroll import learning_curves


@pytest.fixture
def data():
    data = read_problems({"one": problem()})[0].data
    data.setup()
    return data


def run(data, steps: int = 12, seed: int = 0) -> Training:
    return training(data, "test", seed, steps)


def sgd(rate: float, **settings) -> Candidate:
    return Candidate("SGD", "torch.optim.SGD", {"lr": rate}, **settings)


def test_marks_are_in_equal_ratios():
    found = marks([500, 2000])
    assert found[:3] == [0, 1, 2] and found[-1] == 2000 and 500 in found and 18 <= len(found) <= 23


def test_the_steps_are_those_of_an_episode(data):
    begin = run(data)
    curves = learning_curves(Adam(learning_rate=1e-3), begin.episodes, 12)
    train(begin, adam(), [12], 12)
    losses = torch.stack([begin.loss(rows) for rows in begin.episodes.indices[0, -1:]])
    assert torch.allclose(losses, curves[0, -1:], rtol=1e-4)


def test_a_record_has_the_losses_of_each_part_and_the_time(data):
    begin = run(data, 40)
    start = [begin.mean_loss(batches) for batches in begin.fixed.values()]
    record = train(begin, sgd(0.1), [40], 40)
    assert record[0, :4].tolist() == [0, *start] and len(set(start)) == 3
    assert record[-1, 1].item() == begin.mean_loss(begin.fixed["train"]) < 0.8 * start[0]
    assert (record[1:, 5] > 0).all() and (record[:, 5].diff() > 0).all() and record[:, 4].isnan().all()
    parts = [set(begin.episodes.examples.part(name).tolist()) for name in begin.fixed]
    assert all(set(rows.flatten().tolist()) <= own for rows, own in zip(begin.fixed.values(), parts, strict=True))


def test_a_run_is_the_same_again_and_another_seed_another(data):
    one, same, other = (train(run(data, seed=seed), adam(), [12], 12)[:, 1] for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_short_run_is_the_beginning_of_a_long_one(data):
    long, short = (train(run(data, steps), adam(), [12], 12) for steps in (50, 12))
    assert torch.equal(long[:, :4], short[:, :4])


def test_a_cosine_ends_at_zero(data):
    at_last = train(run(data, 12), sgd(0.1, cosine=True), [12], 11), train(run(data), sgd(0.1, cosine=True), [12], 12)
    constant = train(run(data), sgd(0.1), [12], 12)
    change = [abs(record[-1, 1] - at_last[0][-1, 1]) for record in (at_last[1], constant)]
    assert 0 < change[0] < 0.1 * change[1]
    assert torch.equal(at_last[1][1, 1], constant[1, 1])  # the first step is a whole one


def test_divergence_ends_in_nan(data):
    record = train(run(data, 200), sgd(1e30), [200], 200)
    assert record[0, 1].isfinite() and record[-1, 1:4].isnan().all() and record[-1, 0] == 200
    first = record[:, 1].isnan().nonzero()[0].item()
    assert record[: first + 1, 5].isfinite().all() and record[first + 1 :, 5].isnan().all()


def test_curves_as_published_ones_are_moving_averages(data):
    begin = run(data, 20)
    first = begin.mean_loss(begin.evaluation[0])
    record = train(begin, sgd(0.1), [10, 20], 20, published=True)
    smoothed = {int(row[0]): row[4].item() for row in record}
    middle = train(run(data, 20), sgd(0.1), [10], 10)  # to have the network after ten steps
    assert middle[-1, 0] == 10 and smoothed[0] == first
    last = begin.mean_loss(begin.evaluation[2])
    assert smoothed[20] == pytest.approx(0.95 * smoothed[10] + 0.05 * last)


def test_averaged_weights_are_for_evaluation_alone(data):
    class Averaging(torch.optim.SGD):
        """Evaluates at zero."""

        def eval(self):
            self.kept = [p.detach().clone() for p in self.param_groups[0]["params"]]
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p.zero_()

        def train(self):
            for p, own in zip(self.param_groups[0]["params"], getattr(self, "kept", []), strict=False):
                p.data.copy_(own)

    class Made(Candidate):
        def make(self, network):
            return Averaging(network.parameters(), 0.1)

    plain, begins = train(run(data), sgd(0.1), [12], 12), [run(data) for _ in range(2)]
    own, averaged = (
        train(one, Made("", "", averaged=kind), [12], 12) for one, kind in zip(begins, (0, 1), strict=True)
    )
    assert torch.equal(own[:, 1], plain[:, 1])
    assert averaged[-1, 1].item() == pytest.approx(np.log(3))
    assert begins[1].mean_loss(begins[1].fixed["train"]) == plain[-1, 1]


class SeesTheLoss(UpdateRule):
    """Steps by the loss itself."""

    coordinatewise = True
    sees = frozenset({"loss"})

    def init(self, theta):
        return (torch.zeros_like(theta),)

    def update(self, grad, state, loss):
        return -0.1 * loss[:, None] * grad, state


def test_a_learned_rule_runs_as_an_optimizer(data):
    own, cosine = learned(Adam(learning_rate=1e-3), "ours")
    assert (own.name, cosine.name) == ("ours", "ours × cosine")
    reference = train(run(data), adam(), [12], 12)
    assert torch.allclose(train(run(data), own, [12], 12)[:, 1], reference[:, 1], rtol=1e-4)
    decayed = train(run(data), Candidate("", "torch.optim.Adam", {"lr": 1e-3}, cosine=True), [12], 12)
    assert torch.allclose(train(run(data), cosine, [12], 12)[:, 1], decayed[:, 1], rtol=1e-4)


@pytest.mark.parametrize("alone", [True, False])
def test_a_rule_that_sees_the_loss_is_told_it(data, alone):
    begin = run(data)
    before = copy.deepcopy(begin.network)
    inputs, targets = (tensor[0] for tensor in begin.episodes.minibatch(begin.episodes.theta, 0))
    loss = begin.criterion(before(inputs), targets)
    grads = torch.autograd.grad(loss, list(before.parameters()))
    own = SeesTheLoss() if alone else Grouped({"all": SeesTheLoss()}, {"all": ["*"]})
    train(begin, learned(own, "loss")[0], [1], 1)
    for p, old, grad in zip(begin.network.parameters(), before.parameters(), grads, strict=True):
        assert torch.allclose(p, old - 0.1 * loss * grad, atol=1e-6)


def test_settings_that_an_optimizer_does_not_take_are_named(data):
    with pytest.raises(InvalidInputError, match=r"benchmark has Adam, .*moment"):
        candidate(Rival("torch.optim.Adam", {"moment": 1})).make(data.network)


@pytest.mark.parametrize("name", ["LBFGS", "SparseAdam"])
def test_an_optimizer_that_needs_more_than_dense_gradients_is_refused_at_once(name):
    candidate(Rival("torch.optim.Adam")).check()
    with pytest.raises(InvalidInputError, match=f"benchmark.rivals has {name}, whose step fails"):
        Benchmark(write("p", {"one": problem()}), rivals=[Rival(f"torch.optim.{name}")]).setup(None, None, "test")
