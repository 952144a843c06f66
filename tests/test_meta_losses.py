"""Meta-losses: against known answers, and in runs."""

import math

import pytest
import torch
from command_line import fit, results, tiny
from conftest import same, weights

from lightning_l2l.cli import main
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.meta_losses import BestSoFar, LogLoss, Regret, WeightedSum

LOSSES = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]])  # [T, N]


@pytest.mark.parametrize(
    ("given", "want"),
    [("uniform", 10.0), ("last", 4.0), ("linear", 0.4 * 1 + 0.8 * 2 + 1.2 * 3 + 1.6 * 4), ([1.0, 0.0, 0.0, 2.0], 9.0)],
    ids=str,
)
def test_weights_by_name(given, want):
    meta_loss = WeightedSum(given)
    torch.testing.assert_close(meta_loss(LOSSES, 0, 4), torch.tensor([want, 10 * want]))
    halves = meta_loss(LOSSES[:2], 0, 4) + meta_loss(LOSSES[2:], 2, 4)
    torch.testing.assert_close(halves, torch.tensor([want, 10 * want]))


def test_the_best_loss_so_far_counts_as_often_as_it_is_the_best():
    losses = torch.tensor([[3.0, 1.0], [4.0, 2.0], [2.0, 0.5], [5.0, 4.0]]).requires_grad_()
    meta_losses = BestSoFar()(losses, 0, 4)
    torch.testing.assert_close(meta_losses, torch.tensor([3.0 + 3 + 2 + 2, 1.0 + 1 + 0.5 + 0.5]))
    (grads,) = torch.autograd.grad(meta_losses.sum(), losses)
    assert grads.tolist() == [[2, 2], [0, 0], [2, 2], [0, 0]]
    for bad in (torch.nan, torch.inf):  # a run that diverges later
        assert BestSoFar()(torch.tensor([[3.0], [1.0], [bad], [2.0]]), 0, 4).item() == 6
    best = {"class_path": "lightning_l2l.meta_losses.BestSoFar"}
    fit("--model.unroll=10", f"--model.meta_loss={best}")


@pytest.mark.parametrize("horizon", [1, 7, 100])
def test_linear_weights_add_up_to_the_horizon(horizon):
    ones = torch.ones(horizon, 1, dtype=torch.float64)
    assert WeightedSum("linear")(ones, 0, horizon).item() == pytest.approx(horizon, rel=1e-6)


def test_a_name_and_its_list_learn_the_same():
    for number, given in enumerate(["null", "uniform", "last", "[0,0,0,0,0,0,0,0,0,1]", "linear"]):
        fit("--model.unroll=10", f"--model.loss_weights={given}", f"--trainer.logger.init_args.version={number}")
    default, uniform, last, listed, linear = (
        weights(f"runs/quadratic/version_{number}/checkpoints/last.ckpt") for number in range(5)
    )
    assert same(default, uniform) and same(last, listed)
    assert not same(uniform, last) and not same(uniform, linear) and not same(last, linear)


def test_a_test_may_run_more_steps_than_training(fails):
    fit("--model.loss_weights=linear")
    main(tiny("test", "--model.loss_weights=linear", "--data.horizon=20", "--ckpt_path=best"))
    assert {row["horizon"] for row in results()} == {"20"}
    sentence = fails(*tiny("test", "--model.loss_weights=[1,1]", "--data.horizon=20", "--ckpt_path=best"))
    assert (
        "model.loss_weights has 2 entries, but data.horizon is 20" in sentence and "uniform, last or linear" in sentence
    )


@pytest.mark.parametrize("weights", ["last", "[0,0,0,0,0,0,0,0,0,2]"])
def test_the_last_loss_alone_needs_truncations_that_are_whole_runs(weights, fails):
    given = f"--model.loss_weights={weights}"
    sentence = fails(*tiny("fit", given))
    assert "model.unroll is 5 and data.horizon 10" in sentence and "set model.unroll to 10" in sentence
    stages = "--model.stages=[{unroll: 10}, {horizon: [2, 10], unroll: 2}]"
    sentence = fails(*tiny("fit", given, stages))
    assert "model.stages[1].unroll is 2" in sentence and "set model.stages[1].unroll to 10" in sentence
    whole = given, stages.replace("unroll: 2", "unroll: 10"), "--trainer.fast_dev_run=true"
    if weights == "last":
        fit(*whole)
    else:  # at shorter horizons it would count no loss at all
        assert "model.loss_weights has 10 entries, but model.stages[1].horizon is 2" in fails(*tiny("fit", *whole))


def test_weights_and_a_meta_loss_are_not_both_given(fails):
    meta_loss = "--model.meta_loss={class_path: lightning_l2l.meta_losses.WeightedSum, init_args: {weights: last}}"
    assert "model.loss_weights is linear" in fails(*tiny("fit", "--model.loss_weights=linear", meta_loss))


def curve(horizon, episodes=3):
    return torch.rand(horizon, episodes, dtype=torch.float64)


def test_the_log_loss_is_a_mean_over_the_run_and_a_mean_over_its_end():
    losses, reference = curve(40), curve(40)
    logs = (losses + 0.01).log() - (reference + 0.01).log()
    got = LogLoss(floor=0.01, last=0.5)(losses, 0, 40, reference)
    torch.testing.assert_close(got, logs.mean(0) + 0.5 * logs[-4:].mean(0))
    torch.testing.assert_close(LogLoss(0.01)(losses, 0, 40), (losses + 0.01).log().mean(0))


@pytest.mark.parametrize("meta_loss", [LogLoss(last=2.0), Regret()], ids=["LogLoss", "Regret"])
@pytest.mark.parametrize("horizon", [3, 30, 300])
def test_a_steady_runs_total_depends_on_neither_horizon_nor_truncations(meta_loss, horizon):
    losses, reference = torch.full((horizon, 1), 0.2), torch.full((horizon, 1), 0.1)
    want = math.log(0.201 / 0.101) * 3
    assert meta_loss(losses, 0, horizon, reference).item() == pytest.approx(want, rel=1e-5)
    parts = [meta_loss(losses[t : t + 3], t, horizon, reference[t : t + 3]).item() for t in range(0, horizon, 3)]
    assert sum(parts) == pytest.approx(want, rel=1e-4)


def test_regret_counts_what_the_reference_does_better_more_and_extremes_less():
    reference = torch.full((20, 1), 1.0)
    ratios = torch.tensor([0.1, 0.5, 2.0, 1e6, torch.inf, torch.nan])
    got = Regret(floor=1e-9)(reference * ratios, 0, 20, reference.expand(20, 6))
    torch.testing.assert_close(got, torch.tensor([-1.5, math.log(0.5), 3 * math.log(2), 9, 9, 9]))


def test_half_of_regret_is_of_the_last_of_ten_windows():
    losses, reference = curve(50), curve(50)
    logs = [(curves.unflatten(0, (10, 5)).mean(1) + 0.001).log() for curves in (losses, reference)]
    difference = logs[0] - logs[1]
    want = (difference.mean(0) + difference[-1]) / 2
    torch.testing.assert_close(Regret(penalty=0)(losses, 0, 50, reference), want)


def test_regret_needs_a_reference(fails):
    with pytest.raises(InvalidInputError, match="have no reference losses to compare with"):
        Regret()(LOSSES, 0, 4)
    sentence = fails(*tiny("fit", "--model.meta_loss=lightning_l2l.meta_losses.Regret"))
    assert "model.meta_loss is Regret, but the data's episodes have no reference losses" in sentence


def test_a_diverged_run_counts_as_the_cap_unless_something_differentiates():
    losses = torch.tensor([[torch.nan, torch.inf, 1e30, 1.0]])
    got = LogLoss(cap=100.0)(losses, 0, 1)
    torch.testing.assert_close(got, torch.tensor([100.001] * 3 + [1.001]).log())
    differentiated = losses.clone().requires_grad_()
    got = LogLoss(cap=100.0)(differentiated, 0, 1)
    assert not got[:2].isfinite().any()
    (grad,) = torch.autograd.grad(got[2:].sum(), differentiated)
    assert grad[0, 2] > 0
    assert Regret()(differentiated, 0, 1, torch.ones(1, 4))[2] > 100


@pytest.mark.parametrize(
    ("kind", "settings"), [(LogLoss, {"floor": 0}), (LogLoss, {"cap": 0}), (Regret, {"lowest": 4})]
)
def test_settings_out_of_range_are_refused(kind, settings):
    with pytest.raises(InvalidInputError, match=f"model.meta_loss.init_args.{next(iter(settings))} is"):
        kind(**settings)
