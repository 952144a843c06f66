"""Speed of LSTM+GAC, in ratios to the plain LSTM on the same gradients, alternating in one run."""

import time

import pytest
import torch
from torch import Tensor

from benchmarks.workloads import UNROLL, lstm
from lightning_l2l.rules import GlobalAveragingLSTM, UpdateRule, fastest

SIZES = pytest.mark.parametrize(
    ("episodes", "coordinates"), [(1, 15_910), (8, 15_910), (128, 10)], ids=["MNIST N=1", "MNIST N=8", "quadratics"]
)


@torch.no_grad()
def meta_gradient(rule: UpdateRule, grads: Tensor) -> None:
    """A truncation's steps on gradients [K, N, P], and the way back through them."""
    tape, state = rule.tape(grads[0], len(grads)), rule.init(grads[0])
    for grad in grads:
        _, state = tape.update(grad, state)
    tape.backward(list(grads))


@torch.no_grad()
def steps(rule: UpdateRule, grads: Tensor) -> None:
    """Steps without a meta-gradient."""
    stepper, state = rule.in_place(), rule.init(grads[0])
    for grad in grads:
        _, state = stepper.update(grad, state)


@SIZES
@pytest.mark.parametrize("function", [meta_gradient, steps])
def test_beside_the_plain_lstm(against, function, episodes, coordinates):
    """Both without a kernel, CPU seconds of one thread."""
    _compare(against, function, episodes, coordinates, compiled=False, must=1.5, stretch=1.2)


@SIZES
@pytest.mark.parametrize("function", [meta_gradient, steps])
def test_beside_the_plain_lstms_kernel(against, function, episodes, coordinates):
    """The plain LSTM by its kernel, where there is a C++ compiler; CPU seconds of one thread."""
    _compare(against, function, episodes, coordinates, compiled=True)


def _compare(against, function, episodes: int, coordinates: int, compiled: bool, **targets: float) -> None:
    torch.set_num_threads(1)
    grads = torch.randn(UNROLL, episodes, coordinates)
    plain = fastest(lstm(), grads[0], UNROLL, compiled=compiled)
    rule = fastest(GlobalAveragingLSTM(), grads[0], UNROLL)
    rounds = 21 if episodes * coordinates < 10_000 else 5
    against(lambda: function(rule, grads), lambda: function(plain, grads), time.process_time, UNROLL, rounds, **targets)
