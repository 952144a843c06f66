"""Kernels are given no address of a tensor that they would misread."""

import copy

import pytest
import torch
from conftest import skip
from own_loop import lstm

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules import AdamController
from lightning_l2l.rules.adam_controller.flat_kernel import KernelState
from lightning_l2l.rules.adam_controller.kernel import kernel_for
from lightning_l2l.rules.adam_controller.orthogonal import orthogonalize_
from lightning_l2l.rules.base import layout_of
from lightning_l2l.rules.fast.addresses import address, lie_alike
from lightning_l2l.rules.lstm.kernel import BlockState, CompiledLSTM

WRONG = {
    "length": torch.zeros(1, 41),
    "type": torch.zeros(1, 40, dtype=torch.float64),
    "device": torch.zeros(1, 40, device="meta"),
    "layout": torch.zeros(1, 40).to_sparse(),
    "gaps": torch.zeros(1, 80)[:, ::2],
    "overlap": torch.zeros(1, 1).expand(1, 40),
}


@pytest.fixture(autouse=True)
def compiler():
    if kernel_for(torch.device("cpu"), torch.float32) is None:
        skip("there is no C++ compiler")


def test_an_address_is_that_of_the_numbers():
    numbers = torch.arange(6.0)
    assert address(numbers, 6) == numbers.data_ptr()
    assert address(numbers[2:], 4) == numbers.data_ptr() + 8
    assert address(numbers.view(2, 3), 6) == numbers.data_ptr()
    address(numbers[:0], 0)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_other_tensors_have_none(wrong):
    with pytest.raises(InvalidInputError, match=r"^a kernel was given \[1, 4[01]\] of float"):
        address(wrong, 40)


def test_tensors_that_lie_alike():
    like = torch.zeros(2, 3, 4, 4)
    last = like.to(memory_format=torch.channels_last)
    assert lie_alike([like, like.clone()], like, torch.float32)
    assert lie_alike([last, last.clone()], like, torch.float32)
    for other in (last, like.double(), like[:1], like.mT.contiguous().mT, like[:1].expand(2, 3, 4, 4)):
        assert not lie_alike([like, other], like, torch.float32)
    gaps = torch.zeros(2, 3, 4, 8)[..., ::2]
    assert not lie_alike([gaps, gaps], like, torch.float32)


def lstm_kernel() -> CompiledLSTM:
    return CompiledLSTM.of(lstm(momenta=[0.9]), 1)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_the_lstms_kernel_is_given_nothing_else(wrong):
    kernel, good = lstm_kernel(), torch.zeros(1, 40)
    state, phi = kernel.init(good), kernel.parameter_vector()
    after = copy.deepcopy(state)
    calls = [
        lambda: kernel.step(phi, good, BlockState(state.blocks, wrong), after),
        lambda: kernel.step(phi, good, BlockState(wrong, state.momenta), after),
        lambda: kernel.step(phi, good, state, BlockState(after.blocks[:0], after.momenta)),
        lambda: kernel.step(wrong, good, state, after),
        lambda: kernel.meta_gradient(phi, [good, wrong], [good, good], state),
        lambda: kernel.meta_gradient(phi, [good, good], [good, wrong], state),
        lambda: kernel.meta_gradient(phi, [good, good], [good], state),
        lambda: kernel.meta_gradient(phi, [good], [good], BlockState(state.blocks, wrong)),
        lambda: kernel.optimize(phi, [(good, wrong, state)], 1.0),
        lambda: kernel.optimize(phi, [(good, good, BlockState(wrong, state.momenta))], 1.0),
        lambda: kernel.optimize(phi, [(good, good, BlockState(state.blocks.half(), state.momenta))], 1.0),
        lambda: kernel.optimize(phi, [(good, good, state), (good, good, kernel.init(good.bfloat16()))], 1.0),
    ]
    for call in calls:
        with pytest.raises(InvalidInputError):
            call()
    assert not good.any()


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_the_controllers_kernel_is_given_nothing_else(wrong):
    rule = AdamController().bind(layout_of({"weight": (5, 6), "bias": (10,)}))
    good = torch.ones(1, 40)
    state = rule.init(good)
    for _ in range(9):  # after which controls are not renewed
        _, state = rule.update(good, state, theta=good)
    assert isinstance(state, KernelState)
    changed = [state._replace(**{name: wrong}) for name in ("means", "orthogonal", "controls", "memory")]
    calls = [lambda each=each: rule.update(good, each, theta=good) for each in changed]
    for call in calls:
        with pytest.raises((InvalidInputError, RuntimeError, IndexError)):
            call()
    for other in (torch.ones(1, 41), torch.ones(2, 40), torch.ones(1, 39)):
        with pytest.raises((InvalidInputError, RuntimeError)):
            rule.update(other, state, theta=other)


def test_matrices_with_gaps_are_not_orthogonalised_in_place():
    with pytest.raises(InvalidInputError, match="a kernel was given"):
        orthogonalize_(torch.randn(2, 6, 8)[..., ::2])
    with pytest.raises(InvalidInputError, match="a kernel was given"):
        orthogonalize_(torch.randn(2, 6, 8).mT)


def test_the_statistics_kernel_compares_counts():
    kernel = kernel_for(torch.device("cpu"), torch.float32)
    t, sums, products = (torch.ones(shape, dtype=torch.double) for shape in ((1, 2), (2, 10), (2, 2)))
    for wrong in ((sums[:1], products, t, torch.ones(2, 5)), (sums, products[:1], t, torch.ones(2, 5))):
        with pytest.raises(InvalidInputError):
            kernel.describe(None, *wrong, 4)
    with pytest.raises(InvalidInputError):
        kernel.describe(None, sums, products, t, torch.ones(1, 5), 4)
