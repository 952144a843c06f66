"""Losses in units of a task's first loss."""

from dataclasses import dataclass

import pytest
import torch

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees import Quadratics
from lightning_l2l.optimizees.relative import RelativeEpisodes, mean_first_loss


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_losses_are_relative_in_meta_training_and_validation(split):
    plain, relative = (Quadratics(horizon=2, relative_loss=given) for given in (False, True))
    runs = plain.episodes("tune", range(8))
    unit = 1.0 if split == "test" else runs.loss(runs.theta, 0).mean().item()
    first, same = (next(iter(getattr(data, f"{split}_dataloader")())) for data in (plain, relative))
    for step in (0, 1):
        losses, grads = first.value_and_grad(first.theta, step)
        torch.testing.assert_close(same.value_and_grad(same.theta, step), (losses / unit, grads / unit))


def test_relative_losses_have_relative_second_derivatives():
    episodes = Quadratics(horizon=2).episodes("train", range(3))
    vector = torch.randn_like(episodes.theta)
    product = RelativeEpisodes(episodes.theta, episodes, 4.0).hessian_product(episodes.theta, 0, vector)
    torch.testing.assert_close(4 * product, episodes.hessian_product(episodes.theta, 0, vector))


@dataclass(eq=False)
class Constant(Episodes):
    value: float

    def loss(self, theta, step):
        return theta.sum(1) * 0 + self.value


@pytest.mark.parametrize("value", [0.0, -1.0, torch.nan, torch.inf])
def test_a_loss_that_does_not_start_positive_is_no_unit(value):
    with pytest.raises(InvalidInputError, match=r"the task, whose mean first loss is .*: give a task that starts at"):
        mean_first_loss(Constant(torch.zeros(2, 3), value), "data has the task")
