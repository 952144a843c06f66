"""Meta-losses: weights by name against known answers, and in runs."""

import pytest
import torch
from command_line import fit, results, tiny
from conftest import same, weights

from lightning_l2l.cli import main
from lightning_l2l.meta_losses import WeightedSum

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


@pytest.mark.parametrize("horizon", [1, 7, 100])
def test_linear_weights_add_up_to_the_horizon(horizon):
    ones = torch.ones(horizon, 1, dtype=torch.float64)
    assert WeightedSum("linear")(ones, 0, horizon).item() == pytest.approx(horizon, rel=1e-6)


def test_a_name_and_its_list_learn_the_same():
    for number, given in enumerate(["null", "uniform", "last", "[0,0,0,0,0,0,0,0,0,1]", "linear"]):
        fit(f"--model.loss_weights={given}", f"--trainer.logger.init_args.version={number}")
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


def test_weights_and_a_meta_loss_are_not_both_given(fails):
    meta_loss = "--model.meta_loss={class_path: lightning_l2l.meta_losses.WeightedSum, init_args: {weights: last}}"
    assert "model.loss_weights is linear" in fails(*tiny("fit", "--model.loss_weights=linear", meta_loss))
