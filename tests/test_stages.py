"""The stages of meta-training: which horizon, unroll and meta-gradient each epoch has."""

import math
from types import SimpleNamespace

import pytest
import torch
from command_line import EXACT, HALF_EXACT, LINEARIZED, fit, tiny
from conftest import same, weights

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.learners import MetaLearner, Stage
from lightning_l2l.learners.cosine_schedule import cosine_schedule
from lightning_l2l.learners.stages import Stages
from lightning_l2l.meta_gradients import Exact, Linearized
from lightning_l2l.meta_losses import WeightedSum
from lightning_l2l.optimizees import Quadratics


@pytest.mark.parametrize("meta_gradient", [EXACT, LINEARIZED], ids=["exact", "linearized"])
@pytest.mark.parametrize("config", ["mnist.yaml", "cifar10.yaml", "neural_art.yaml"])
def test_every_optimizee_has_a_meta_gradient_of_second_order(config, meta_gradient, monkeypatch):
    norms, meta_step = [], MetaLearner.meta_step
    monkeypatch.setattr(MetaLearner, "meta_step", lambda *given: norms.append(meta_step(*given)) or norms[-1])
    short = ["--data.horizon=6", "--model.unroll=3", "--data.episodes_per_batch=2", "--data.val_episodes=2"]
    stages = f"--model.stages=[{{meta_gradient: {meta_gradient}}}]"
    fit("--trainer.fast_dev_run=true", stages, *short, config=config)
    assert norms and all(0 < norm < float("inf") for norm in norms)


@pytest.mark.parametrize(("estimator", "given"), [(Exact, EXACT), (Linearized, LINEARIZED)])
def test_a_later_stage_has_a_meta_gradient_of_its_own(estimator, given, monkeypatch):
    calls, truncation, meta_step = [], estimator.truncation, MetaLearner.meta_step
    name = estimator.__name__
    monkeypatch.setattr(estimator, "truncation", lambda *given: calls.append(name) or truncation(*given))
    monkeypatch.setattr(
        MetaLearner, "meta_step", lambda self, given: calls.append(self.current_epoch) or meta_step(self, given)
    )
    stages = f"--model.stages=[{{share: 0.7}}, {{share: 0.3, meta_gradient: {given}}}]"
    fit(stages, "--trainer.max_epochs=3", "--data.train_episodes=4")
    assert calls == [0, 0, 1, 1, name, 2, name, 2]


@pytest.mark.parametrize(("unroll", "steps"), [("null", 4), ("10", 2), ("500", 2)])
def test_a_stages_truncations_are_no_longer_than_a_run(unroll, steps, monkeypatch):
    calls, meta_step = [], MetaLearner.meta_step
    monkeypatch.setattr(MetaLearner, "meta_step", lambda *given: calls.append(1) or meta_step(*given))
    fit(f"--model.stages=[{{unroll: {unroll}, meta_gradient: {LINEARIZED}}}]", "--trainer.max_epochs=1")
    assert len(calls) == steps


@pytest.mark.parametrize(("unroll", "last"), [("null", 4), ("10", 2)])
def test_later_stages_may_have_longer_runs(unroll, last, monkeypatch):
    meta_steps, meta_step = [], MetaLearner.meta_step

    def count(self, objective):
        meta_steps.append(self.current_epoch)
        return meta_step(self, objective)

    monkeypatch.setattr(MetaLearner, "meta_step", count)
    settings = ["--trainer.max_epochs=3", "--data.train_episodes=8", "--data.episodes_per_batch=4"]
    fit(f"--model.stages=[{{share: 2, horizon: 5}}, {{horizon: 10, unroll: {unroll}}}]", *settings)
    assert meta_steps == [0] * 2 + [1] * 2 + [2] * last  # two meta-batches with truncations of 5, or of the whole run


class Once(torch.autograd.Function):
    """Twice its input, with a gradient that cannot be differentiated."""

    @staticmethod
    def forward(ctx, inputs):
        return 2 * inputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * grad


class OnceDifferentiable(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Linear(784, 10)

    def forward(self, images):
        return Once.apply(self.logits(images.flatten(1)))


def test_an_optimizee_that_lacks_second_derivatives_is_refused_at_the_start(fails):
    network = f"--data.network={__name__}.OnceDifferentiable"
    sentence = fails(*tiny("fit", network, HALF_EXACT, config="mnist.yaml"))
    assert "model.stages has the meta-gradient Exact, but the optimizee cannot be differentiated twice" in sentence


def test_stages_and_loss_weights_are_settings():
    last = "--model.loss_weights=[0,0,0,0,0,0,0,0,0,1]"
    for flags in ([last, f"--model.stages=[{{meta_gradient: {EXACT}}}]"], [last], []):
        fit("--model.unroll=10", *flags)
    first, second, third = (weights(f"runs/quadratic/version_{i}/checkpoints/last.ckpt") for i in range(3))
    assert not same(first, second) and not same(second, third)


def horizons_of(monkeypatch) -> list[int]:
    """A list that fills with the horizon of each meta-batch."""
    horizons, plan = [], Stages.plan

    def remember(*given):
        planned = plan(*given)
        horizons.append(planned.horizon)
        return planned

    monkeypatch.setattr(Stages, "plan", remember)
    return horizons


def test_horizons_of_a_range_are_drawn_log_uniformly():
    data = Quadratics(horizon=80)
    stages = Stages([Stage(horizon=(5, 80), unroll=5)], 5, WeightedSum())
    drawn = [stages.plan(0, data, meta_batch).horizon for meta_batch in range(2000)]
    assert set(drawn) == set(range(5, 81, 5))
    for below in (7.5, 20, 40):  # a multiple of 5 is drawn where it is the nearest
        share = sum(horizon < below for horizon in drawn) / 2000
        nearest = below if below == 7.5 else below - 2.5
        assert share == pytest.approx(math.log(nearest / 5) / math.log(16), abs=0.035)  # three standard errors
    assert drawn == [stages.plan(0, data, meta_batch).horizon for meta_batch in range(2000)]


def test_an_unroll_as_long_as_the_longest_run_is_any_whole_run():
    data = Quadratics(horizon=80)
    stages = Stages([Stage(horizon=(7, 80), unroll=80)], 5, WeightedSum())
    stages.check(data)
    plans = [stages.plan(0, data, meta_batch) for meta_batch in range(2000)]
    assert all(plan.unroll == plan.horizon for plan in plans)
    assert {plan.horizon for plan in plans} >= set(range(7, 30))
    assert max(plan.horizon for plan in plans) in (79, 80) and min(plan.horizon for plan in plans) == 7


def test_a_resumed_run_draws_the_same_horizons(monkeypatch):
    horizons = horizons_of(monkeypatch)
    flags = ["--data.train_episodes=16", "--trainer.max_epochs=2", "--model.stages=[{horizon: [5, 10], unroll: 5}]"]
    fit(*flags)
    whole = horizons.copy()
    assert len(whole) == 8 and set(whole) == {5, 10}
    horizons.clear()
    with pytest.raises(SystemExit):
        fit(*flags, "--trainer.callbacks+=forks.StopAfter", "--trainer.callbacks.batches=4")
    assert len(horizons) < 8
    fit(*flags, "--ckpt_path=last")
    assert horizons == whole
    first, resumed = (weights(f"runs/quadratic/version_{i}/checkpoints/last.ckpt") for i in (0, 1))
    assert same(first, resumed)


def table(*patiences):
    return Stages([Stage(patience=one) for one in patiences], 1, WeightedSum())


def test_a_stalled_stage_leaves_its_epochs_to_the_later_ones():
    stages = table(2, None, None)
    assert [stages.at(epoch, 12) for epoch in range(12)] == [0] * 4 + [1] * 4 + [2] * 4
    for epoch, value in enumerate([1.0, 0.9]):
        assert not stages.stalled(epoch, 12, value)
    assert stages.ended_early == {}
    again = table(2, None, None)
    again.load_state_dict(stages.state_dict())
    for each in (stages, again):
        assert not each.stalled(2, 12, 0.9) and each.stalled(3, 12, math.nan) is False
    assert stages.ended_early == {0: 4} == again.ended_early
    earlier = table(1, None, None)
    earlier.stalled(0, 12, 1.0)
    earlier.stalled(1, 12, 1.0)
    assert [earlier.at(epoch, 12) for epoch in range(12)] == [0] * 2 + [1] * 5 + [2] * 5


def test_a_stalled_last_stage_ends_meta_training():
    stages = table(None, 1)
    assert not any(stages.stalled(epoch, 6, 1.0) for epoch in range(3))
    assert not stages.stalled(3, 6, 1.0)  # the first of its own
    assert stages.stalled(4, 6, 1.0)


def test_a_fit_ends_with_its_last_stage(monkeypatch):
    epochs, step = [], MetaLearner.training_step
    monkeypatch.setattr(
        MetaLearner, "training_step", lambda self, *a: epochs.append(self.current_epoch) or step(self, *a)
    )
    monkeypatch.setattr(MetaLearner, "_evaluate", constant)
    fit("--model.stages=[{patience: 2}]", "--trainer.max_epochs=9", "--comparison.baselines=[]")
    assert max(epochs) == 2


def constant(self, episodes, stage, batch_idx):
    self.log(f"{stage}/meta_loss", 1.0, batch_size=len(episodes))
    return {}


def test_stages_that_a_checkpoint_spoils_are_refused():
    for state in ({}, {"ended_early": [], "validated": []}, {"ended_early": {}, "validated": "abc"}):
        with pytest.raises(InvalidInputError, match="does not say how its stages went"):
            table(1).load_state_dict(state)


def test_epochs_without_a_limit_leave_the_length_of_the_decay_to_max_steps():
    trainer = SimpleNamespace(max_epochs=-1, max_steps=1000, global_step=250, limit_train_batches=1.0, world_size=1)
    trainer.datamodule = SimpleNamespace(train_batches=lambda processes: 10)
    trainer.callbacks, trainer.strategy = [], SimpleNamespace(broadcast=lambda progress: progress)
    schedule = cosine_schedule(torch.optim.SGD([torch.zeros(1)], 1.0), trainer, 0.0)
    assert schedule.lr_lambdas[0](250) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
