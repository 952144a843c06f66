"""LearnedOptimizer's step alone, on parameters of ResNet-18's shapes and on many small ones, beside its arithmetic."""

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from benchmarks.workloads import lstm, lstm_operations
from lightning_l2l import LearnedOptimizer
from lightning_l2l.rules import AdamController

PERIOD = 8  # steps after which what AdamController does at some steps alone comes again, after the first ones


def period(step: Callable[[], object]) -> Callable[[], None]:
    """A period of steps, to be timed as a whole."""

    def steps() -> None:
        for _ in range(PERIOD):
            step()

    return steps


def with_gradients(shapes) -> list[torch.Tensor]:
    """Parameters of these shapes, with gradients of noise."""
    parameters = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    for p in parameters:
        p.grad = 0.01 * torch.randn(p.shape)
    return parameters


@pytest.mark.parametrize("bfloat16_state", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("network", ["resnet18", "1000-of-100"])
def test_step(benchmark, against, operations_per_second, network, bfloat16_state):
    """CPU seconds of a step on one thread, beside Adam's; the floor is the LSTM's matrix products, no more."""
    torch.set_num_threads(1)
    shapes = [p.shape for p in resnet18().parameters()] if network == "resnet18" else [(100,)] * 1000
    parameters = with_gradients(shapes)
    optimizer = LearnedOptimizer(parameters, lstm(), bfloat16_state=bfloat16_state)
    adam = torch.optim.Adam([p.detach().clone().requires_grad_() for p in parameters])
    for p, q in zip(adam.param_groups[0]["params"], parameters, strict=True):
        p.grad = q.grad
    coordinates = sum(p.numel() for p in parameters)
    floor = lstm_operations(coordinates, 1, backward=False) / operations_per_second
    rounds = 5 if network == "resnet18" else 15
    against(optimizer.step, adam.step, time.process_time, 1, rounds, floor, must=2.0, stretch=1.4)
    kept = [value for state in optimizer.state.values() for value in state.values()]
    size = sum(value.numel() * value.element_size() for value in kept)
    benchmark.extra_info["bytes a coordinate"] = size / coordinates


@pytest.mark.parametrize("units", [128, 512])
@pytest.mark.parametrize("directions", [None, ["gradient", "slow_mean"]], ids=["all", "without-orthogonal"])
def test_controller_step(benchmark, against, operations_per_second, units, directions):
    """CPU seconds of AdamController's step on a perceptron, beside those of Adam's fastest form."""
    torch.set_num_threads(1)
    sizes = (784, units, units, units, 10)
    shapes = [shape for fed, out in pairwise(sizes) for shape in ((out, fed), (out,))]
    parameters, others = with_gradients(shapes), with_gradients(shapes)
    optimizer = LearnedOptimizer(parameters, AdamController(directions=directions))
    adam = torch.optim.Adam(others, fused=True)
    smaller = [sorted(shape) for shape in shapes if len(shape) == 2]
    # Newton and Schulz's five iterations, each of two products with the matrix and one of its Gram matrix's, every 4th
    products = sum(5 * (4 * few * few * many + 2 * few**3) for few, many in smaller) / 4
    floor = 0 if directions else products / operations_per_second
    ours, reference = period(optimizer.step), period(adam.step)
    against(ours, reference, time.process_time, PERIOD, 9, floor, must=3.0, stretch=1.5)


def training_step(network: str, device: str = "cpu") -> tuple[nn.Module, Callable[[torch.optim.Optimizer], None]]:
    """A network, and what takes a training step of it on a batch of 32: forward, backward and the optimizer's step."""
    if network == "3x512":
        layers = [module for fed, out in pairwise((784, 512, 512, 512)) for module in (nn.Linear(fed, out), nn.ReLU())]
        model, inputs = nn.Sequential(*layers, nn.Linear(512, 10)), torch.randn(32, 784, device=device)
    else:
        model, inputs = resnet18(num_classes=10), torch.randn(32, 3, 64, 64, device=device)
    labels = torch.randint(10, (32,), device=device)
    model.to(device)

    def take(optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    return model, take


@pytest.mark.parametrize("network", ["3x512", "resnet18"])
def test_whole_training_step(benchmark, against, network):
    """CPU seconds of forward, backward and AdamController's step, batch size 32, beside those with Adam's."""
    torch.set_num_threads(1)
    model, take = training_step(network)
    learned = LearnedOptimizer(model.parameters(), AdamController())
    adam = torch.optim.Adam(model.parameters(), fused=True)
    ours, reference = (period(partial(take, optimizer)) for optimizer in (learned, adam))
    against(ours, reference, time.process_time, PERIOD, 3 if network == "resnet18" else 9, must=1.3, stretch=1.1)


PROGRAM = r"""
import re, sys
sys.path.insert(0, {folder!r})
import torch
from torch import nn
from torchvision.models import resnet18
from benchmarks.bench_learned_optimizer import with_gradients
from benchmarks.workloads import lstm
from lightning_l2l import LearnedOptimizer
torch.set_num_threads(1)
def peak():
    return int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) * 1024 / 1e9
parameters = with_gradients([p.shape for p in resnet18().parameters()])
optimizer = LearnedOptimizer(parameters, lstm(), bfloat16_state={bfloat16})
optimizer.step()
open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
before = peak()
optimizer.step()
print(peak() - before)
"""


@pytest.mark.parametrize("bfloat16_state", [False, True], ids=["float32", "bfloat16"])
def test_peak_memory_of_a_step(benchmark, request, bfloat16_state):
    """Gigabytes above parameters, gradients and state, on ResNet-18's shapes; on Linux."""
    program = PROGRAM.format(folder=str(request.path.parents[1]), bfloat16=bfloat16_state)

    def run() -> float:
        result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        return float(result.stdout.split()[-1])

    gigabytes = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info.update(gigabytes=gigabytes, must=0.2, stretch=0.1)
