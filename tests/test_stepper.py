"""Steps in place: precision, memory layout, chunks and threads."""

import copy

import pytest
import torch
from conftest import skip
from own_loop import lstm, network, theta, train
from torch import nn

from lightning_l2l import LearnedOptimizer
from lightning_l2l.rules import AdamController, LearnedStart, RNNprop, layout_of
from lightning_l2l.rules.fast import stepper as steppers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once(way, dtype):
    """θ + g in float32 of the half-precision θ and gradient, rounded: for the first step, known to the bit."""
    rule = lstm()
    p = torch.randn(5000).to(dtype).requires_grad_()
    p.grad = torch.randn(5000).to(dtype)
    with torch.no_grad():
        update, _ = rule.update(p.grad.float()[None], rule.init(torch.zeros(1, 5000)))
    want = (p.detach().float() + update[0]).to(dtype)
    LearnedOptimizer([p], rule).step()
    assert (p != want).float().mean() < 0.002  # where the two ways differ in the last bit of float32, at a half


@pytest.mark.parametrize(("momenta", "sizes"), [(None, [320, 160]), ([0.9, 0.99], [336, 176])])
def test_bfloat16_states_are_half_as_large_and_steps_nearly_the_same(way, momenta, sizes):
    rule = lstm(hidden_size=20, momenta=momenta)
    states, steps = [], []
    for bfloat16_state in (False, True):
        p = torch.zeros(40, 200, requires_grad=True)
        optimizer = LearnedOptimizer([p], rule, bfloat16_state=bfloat16_state)
        for step in range(10):
            p.grad = torch.randn(40, 200, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        states.append(sum(value.numel() * value.element_size() for value in optimizer.state[p].values()))
        steps.append(p.detach())
    assert states == [size * 8000 for size in sizes]
    assert 0 < (steps[1] - steps[0]).norm() < 0.02 * steps[0].norm()


def test_running_means_do_not_stall_in_bfloat16(way):
    p = torch.zeros(3, requires_grad=True)
    optimizer = LearnedOptimizer([p], lstm(momenta=[0.99]), bfloat16_state=True)
    for _ in range(500):
        p.grad = torch.ones(3)
        optimizer.step()
    mean = next(value for name, value in optimizer.state[p].items() if name.startswith("momenta")).flatten()[0]
    torch.testing.assert_close(mean.item(), 1 - 0.99**500, rtol=1e-4, atol=0)  # where bfloat16 would end at 0.8


def test_parameters_and_gradients_may_lie_in_any_order(way):
    rule, model = lstm(), nn.Conv2d(3, 4, 3)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    inputs = torch.randn(2, 3, 8, 8)
    for m in (model, other):
        optimizer = LearnedOptimizer(m.parameters(), rule)
        for _ in range(3):
            optimizer.zero_grad()
            m(inputs).square().mean().backward()
            optimizer.step()
    assert not other.weight.is_contiguous()
    torch.testing.assert_close(other.weight, model.weight, rtol=1e-4, atol=1e-6)


def test_parameters_and_gradients_may_be_strided(way):
    rule, grad = lstm(), torch.randn(100)
    plain = torch.zeros(50, requires_grad=True)
    parts = [plain, torch.zeros(100)[::2].requires_grad_(), torch.zeros(50, requires_grad=True)]
    for p in parts:
        p.grad = grad[::2] if p is parts[2] else grad[::2].clone()
    LearnedOptimizer(parts, rule).step()
    assert plain.all()
    assert torch.equal(parts[1], plain) and torch.equal(parts[2], plain)


def test_steps_do_not_depend_on_chunks_or_threads(way, monkeypatch):
    rule, results = lstm(), []
    for chunk, threads in ((4096, 1), (64, 1), (4096, 2)):
        monkeypatch.setitem(steppers.CHUNK, "cpu", chunk)
        torch.set_num_threads(threads)
        model = network()
        train(model, LearnedOptimizer(model.parameters(), rule), 3)
        results.append(theta(model))
    torch.set_num_threads(1)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-6, atol=1e-7)


def test_without_kernels_there_are_none(monkeypatch):
    monkeypatch.setenv("LIGHTNING_L2L_COMPILED", "0")
    p = torch.ones(3, requires_grad=True)
    optimizer = LearnedOptimizer([p], lstm())
    p.grad = torch.ones(3)
    optimizer.step()
    assert "blocks" not in optimizer.state[p]


def test_a_state_that_begins_anywhere_is_moved_before_a_kernel_gets_it():
    if lstm().compiled(torch.zeros(1), 1) is None:
        skip("there is no C++ compiler")
    p = torch.ones(50, requires_grad=True)
    p.grad = torch.ones(50)
    optimizer = LearnedOptimizer([p], lstm())
    optimizer.step()
    blocks = optimizer.state[p]["blocks"]
    shifted = torch.empty(blocks.numel() + 1)[1:].view_as(blocks).copy_(blocks)
    optimizer.state[p]["blocks"] = shifted
    optimizer.step()
    assert p.isfinite().all() and optimizer.state[p]["blocks"].data_ptr() % 64 == 0


@pytest.mark.parametrize("rule", [RNNprop(4), LearnedStart(AdamController())], ids=["RNNprop", "controller"])
def test_sums_stay_in_float32(rule, monkeypatch):
    monkeypatch.setenv("LIGHTNING_L2L_COMPILED", "0")
    rule.bind(layout_of({"p": (3,)})).start(torch.zeros(1, 3))
    state = steppers.Stepper(rule.bind(layout_of({"p": (3,)})), torch.device("cpu"), torch.float32, True, 3).init(
        torch.zeros(3)
    )
    sums = [name for name in state if name.split(".")[-1] in ("weight", "mean", "square", "m9", "m99", "v99", "v999")]
    assert sums and all(state[name].dtype == torch.float32 for name in sums)
