"""A GPU meta-training on 64 episodes side by side, beside one at a time the plain way; wall."""

import time

import pytest
import torch

from benchmarks.workloads import HORIZON, Bare, Plain, classification, lstm, lstm_operations

EPISODES, COORDINATES = 64, 15_910
STATE = 80  # floats a coordinate, of two layers of 20 units


@pytest.fixture(scope="module")
def gpu_rates() -> tuple[float, float]:
    """Operations a second in torch's own float32 product of large matrices, and bytes a second in copying."""
    a, b = torch.randn(8192, 8192, device="cuda"), torch.empty(2**28, device="cuda")
    return 2 * 8192**3 / _seconds(lambda: a @ a), 2 * 4 * 2**28 / _seconds(lambda: b.clone())


def _seconds(work) -> float:
    best = float("inf")
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_gpu_episode(against, gpu_rates):
    ours = Bare(classification(EPISODES), lstm().cuda(), device="cuda")
    plain = Plain(classification(1), preprocessing=True, device="cuda")
    operations, traffic = gpu_rates
    optimizee = 2.0 * 128 * (784 * 20 + 20 * 10) * 2 * HORIZON
    computing = (lstm_operations(COORDINATES, HORIZON) + optimizee) / operations
    moving = 2 * (2 * STATE + 2) * 4 * COORDINATES * HORIZON / traffic  # state, gradient and step, there and back

    def train() -> None:
        ours.train()
        torch.cuda.synchronize()

    def plain_episodes() -> None:
        for _ in range(EPISODES):
            plain.train()
        torch.cuda.synchronize()

    against(train, plain_episodes, time.perf_counter, EPISODES, 3, max(computing, moving), must=1 / 20, stretch=1 / 100)
