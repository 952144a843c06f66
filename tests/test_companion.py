"""Convex companions, and random scaling of each coordinate."""

import pytest
import torch
from command_line import fit, results

from lightning_l2l.cli import main
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees import Quadratics
from lightning_l2l.optimizees.companion import LARGEST, CompanionEpisodes

FLAGS = ["--data.companion=3", "--data.random_scaling=1", "--data.scaled=coordinates"]


def batch(split="train", **settings):
    data = Quadratics(**{"dimension": 4, "horizon": 3, "companion": 3, "episodes_per_batch": 2} | settings)
    return next(iter(getattr(data, f"{split}_dataloader")()))


def test_the_loss_is_the_sum_of_both():
    episodes = batch().to("cpu", torch.float64)
    assert episodes.theta.shape == (2, 7) and not episodes.theta[:, 4:].any()
    theta = episodes.theta + torch.randn(2, 7, dtype=torch.float64)
    distance = episodes.scale * theta[:, 4:] - episodes.target
    want = episodes.episodes.loss(theta[:, :4], 1) + distance.square().sum(1) / 3
    torch.testing.assert_close(episodes.loss(theta, 1), want)
    assert episodes.layout["companion"].coordinates == slice(4, 7)
    assert bool((episodes.target.abs() <= 1).all() and (episodes.scale.log().abs() <= 1).all())


def test_far_away_it_is_flat():
    episodes = batch()
    theta = episodes.theta + 100
    losses, grad = episodes.value_and_grad(theta, 0)
    torch.testing.assert_close(losses, episodes.episodes.loss(theta[:, :4], 0) + LARGEST)
    assert not grad[:, 4:].any()


def test_its_derivatives_are_those_of_the_loss():
    episodes = batch(random_scaling=1.0, scaled="coordinates").to("cpu", torch.float64)
    theta = (episodes.theta + 0.3).requires_grad_()
    (grad,) = torch.autograd.grad(episodes.loss(theta, 2).sum(), theta, create_graph=True)
    torch.testing.assert_close(episodes.value_and_grad(theta.detach(), 2)[1], grad.detach())
    vector = torch.randn_like(theta)
    (product,) = torch.autograd.grad(grad, theta, vector)
    torch.testing.assert_close(episodes.hessian_product(theta.detach(), 2, vector), product)


def test_an_episode_is_a_number_and_only_meta_training_and_validation_have_companions():
    pair, alone = batch(), batch(episodes_per_batch=1)
    assert torch.equal(pair.target[:1], alone.target) and torch.equal(pair.scale[:1], alone.scale)
    assert not torch.equal(pair.target[0], pair.target[1])
    assert isinstance(batch("val"), CompanionEpisodes) and not isinstance(batch("test"), CompanionEpisodes)


def test_each_coordinate_has_a_scale_of_its_own():
    scale = batch(random_scaling=2.0, scaled="coordinates", companion=0).scale
    assert len(scale.unique()) == 8 and bool((scale.log().abs() <= 2).all())
    assert len(batch(random_scaling=2.0, companion=0).scale.unique()) == 2


def test_a_rule_is_trained_with_both_and_raced_without():
    rule = ["--model.rule=lightning_l2l.rules.RNNprop", "--model.rule.init_args.hidden_size=4"]
    fit(*rule, *FLAGS, config="quadratic.yaml")
    flags = ["--config=quadratic.yaml", *rule, *FLAGS, "--data.dimension=3", "--data.horizon=10", "--model.unroll=5"]
    few = ["--data.test_episodes=4", "--data.tuning_episodes=1", "--comparison.rates_per_decade=1"]
    main(["test", *flags, *few, "--ckpt_path=best"])
    assert results()[0]["rule"] == "RNNprop"


@pytest.mark.parametrize("count", [-1, float("nan")])
def test_a_companion_of_no_size_is_refused(count):
    with pytest.raises(InvalidInputError, match=r"data\.companion is .* give 0 or more"):
        Quadratics(companion=count)
