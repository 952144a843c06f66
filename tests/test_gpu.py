"""Everyday rules on a GPU compute what they compute on a CPU."""

from copy import deepcopy

import pytest
import torch
from command_line import TINY_SUITE
from test_adam_controller import controller
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from lightning_l2l import LearnedOptimizer
from lightning_l2l.cli import main
from lightning_l2l.meta_gradients import Exact, Plan
from lightning_l2l.meta_losses import LogLoss
from lightning_l2l.optimizees import families
from lightning_l2l.rules import PerCoordinateMLP

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
WITHIN = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 5e-2}


def network() -> nn.Module:
    """Every parameter of it has a gradient: a rule makes steps of noise of what only rounding gives one."""
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 40),
        nn.Tanh(),
    )
    return nn.Sequential(*layers, nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 5))


def train(model: nn.Module, optimizer: LearnedOptimizer, steps: int) -> torch.Tensor:
    """Takes steps on batches of noise and returns all parameters."""
    place, random = next(model.parameters()), torch.Generator().manual_seed(1)
    for _ in range(steps):
        inputs, labels = torch.randn(16, 3, 8, 8, generator=random), torch.randint(5, (16,), generator=random)
        optimizer.zero_grad()
        outputs = model(inputs.to(place))
        exact = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        loss = nn.functional.cross_entropy(exact, labels.to(place.device))
        loss.backward()
        optimizer.observe(loss.detach())
        optimizer.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach().cpu()


@pytest.mark.parametrize("dtype", WITHIN, ids=str)
@pytest.mark.parametrize("settings", [{"block": None}, {"block": 16, "warm_up": 8, "fade_orthogonal": True}], ids=str)
def test_a_controller_takes_the_same_steps(dtype, settings):
    rule = controller(0.1, **settings)
    ends = []
    for device in ("cpu", "cuda"):
        model = network().to(device, dtype)
        ends.append(train(model, LearnedOptimizer(model.parameters(), rule, weight_decay=1e-3), 21).double())
    start = nn.utils.parameters_to_vector(network().to(dtype).parameters()).double()
    assert (ends[0] - ends[1]).norm() < WITHIN[dtype] * (ends[0] - start).norm()


def test_a_run_goes_on_where_the_other_device_left_it():
    rule, ends = controller(0.1), []
    for then in ("cuda", "cpu"):
        model = network().double().to("cuda" if then == "cpu" else "cpu")
        optimizer = LearnedOptimizer(model.parameters(), rule, guard=True)
        train(model, optimizer, 6)
        moved = deepcopy(model).to(then)
        other = LearnedOptimizer(moved.parameters(), rule, guard=True)
        other.load_state_dict(optimizer.state_dict())
        torch.testing.assert_close(train(moved, other, 6), train(model, optimizer, 6), rtol=1e-8, atol=1e-10)
        ends.append(optimizer.state_dict()["guard"]["losses"])
    assert len(ends[0]) == len(ends[1]) == 12


def test_a_saved_state_lies_on_its_parameters_device():
    """As PyTorch's full state dicts want it."""
    model = network().cuda()
    optimizer = LearnedOptimizer(model.parameters(), controller(0.1))
    train(model, optimizer, 3)
    states = [value for own in optimizer.state_dict()["state"].values() for value in own.values()]
    assert {value.device.type for value in states if isinstance(value, torch.Tensor)} == {"cuda"}
    full = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(model, optimizer, get_optimizer_state_dict(model, optimizer, options=full), options=full)


def test_a_gradient_that_is_not_finite_is_skipped():
    model = network().cuda()
    optimizer = LearnedOptimizer(model.parameters(), controller(0.1))
    before = train(model, optimizer, 3)
    next(model.parameters()).grad[0, 0] = torch.inf
    optimizer.step()
    after = nn.utils.parameters_to_vector(model.parameters()).detach().cpu()
    assert optimizer.skipped_steps == 1 and torch.equal(before, after)


@pytest.mark.parametrize("rule", [controller(0.1), PerCoordinateMLP()], ids=["AdamController", "PerCoordinateMLP"])
@pytest.mark.parametrize("family", ["ImageMLPs", "ImageCNNs", "CharRNNs"])
def test_meta_gradients_are_the_same(rule, family):
    task = next(iter(getattr(families, family)().tasks(horizon=12, seed=0).values()))
    found = []
    for device in ("cpu", "cuda"):
        own = deepcopy(rule).to(device, torch.float64)
        episodes = task.episodes("train", [3, 4]).to(device, torch.float64)
        for truncation in Exact().truncations(own, episodes, Plan(LogLoss(), 12, 6)):
            truncation.objective.backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in own.parameters()]).cpu())
    assert found[0].norm() > 0
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-7 * found[0].abs().max().item())


def test_a_rule_is_trained_on_a_gpu_and_used_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [flag for flag in TINY_SUITE if "accelerator" not in flag]
    main(["fit", "--config", "everyday.yaml", *small, "--trainer.accelerator=gpu", "--trainer.devices=1"])
    trained = "runs/everyday/version_0/checkpoints/last.ckpt"
    main(["export", "--ckpt_path", trained, "--output", "mine.safetensors"])
    model = network()
    assert train(model, LearnedOptimizer(model.parameters(), "mine.safetensors"), 2).isfinite().all()
