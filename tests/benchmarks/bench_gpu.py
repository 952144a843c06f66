"""A GPU meta-trains and takes steps of learned rules; wall."""

import time
from collections.abc import Callable
from functools import partial

import pytest
import torch

from benchmarks.bench_learned_optimizer import PERIOD, period, training_step
from benchmarks.workloads import HORIZON, Bare, Plain, classification, lstm, lstm_operations
from lightning_l2l import LearnedOptimizer
from lightning_l2l.rules import AdamController
from lightning_l2l.rules.lstm.cell import AutogradLSTM

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
EPISODES, COORDINATES = 64, 15_910
STATE = 80  # floats a coordinate, of two layers of 20 units


@pytest.fixture(scope="module")
def gpu_rates() -> tuple[float, float]:
    """Operations a second in torch's own float32 product of large matrices, and bytes a second in copying."""
    a, b = torch.randn(8192, 8192, device="cuda"), torch.empty(2**28, device="cuda")
    return 2 * 8192**3 / _seconds(lambda: a @ a), 2 * 4 * 2**28 / _seconds(lambda: b.clone())


def waiting(work: Callable[[], object]) -> Callable[[], None]:
    """Work on the GPU, and waiting until it is done."""

    def run() -> None:
        work()
        torch.cuda.synchronize()

    return run


def _seconds(work) -> float:
    best = float("inf")
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


def test_gpu_episode(against, gpu_rates):
    """64 episodes of meta-training side by side, beside one at a time the plain way."""
    ours = Bare(classification(EPISODES), lstm().cuda(), device="cuda")
    plain = Plain(classification(1), preprocessing=True, device="cuda")
    operations, traffic = gpu_rates
    optimizee = 2.0 * 128 * (784 * 20 + 20 * 10) * 2 * HORIZON
    computing = (lstm_operations(COORDINATES, HORIZON) + optimizee) / operations
    moving = 2 * (2 * STATE + 2) * 4 * COORDINATES * HORIZON / traffic  # state, gradient and step, there and back

    def plain_episodes() -> None:
        for _ in range(EPISODES):
            plain.train()

    floor, targets = max(computing, moving), {"must": 1 / 20, "stretch": 1 / 100}
    against(waiting(ours.train), waiting(plain_episodes), time.perf_counter, EPISODES, 2, floor, **targets)


@pytest.mark.parametrize("episodes", [1, EPISODES])
def test_gpu_tape(against, episodes):
    """Meta-training by the hand-written backward pass of the LSTM, beside autograd's."""
    ours = Bare(classification(episodes), lstm().cuda(), device="cuda")
    plain = Bare(classification(episodes), AutogradLSTM(preprocessing=10.0).cuda(), device="cuda")
    against(waiting(ours.train), waiting(plain.train), time.perf_counter, episodes, 5)


@pytest.mark.parametrize("network", ["3x512", "resnet18"])
def test_gpu_whole_training_step(against, network):
    """Forward, backward and AdamController's step, batch size 32, beside those with fused Adam's."""
    model, take = training_step(network, "cuda")
    learned = LearnedOptimizer(model.parameters(), AdamController())
    adam = torch.optim.Adam(model.parameters(), fused=True)
    ours, reference = (waiting(period(partial(take, optimizer))) for optimizer in (learned, adam))
    against(ours, reference, time.perf_counter, PERIOD, 25, must=1.3, stretch=1.1)
