"""Rivals by class path, and those with code of our own."""

import sys
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from conftest import skip
from torch import nn

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.evaluation.suite.rivals import AveragedLDoG, MuonAdamW, Rival, find_optimizer


def test_any_optimizer_is_found_by_its_class_path():
    assert find_optimizer("torch.optim.NAdam") is torch.optim.NAdam
    assert Rival("torch.optim.NAdam").name == "NAdam"
    with pytest.raises(InvalidInputError, match=r"torch\.nn\.Linear, which is no torch\.optim\.Optimizer"):
        find_optimizer("torch.nn.Linear")
    with pytest.raises(InvalidInputError, match=r"torch\.optim\.Nope, which cannot be imported"):
        find_optimizer("torch.optim.Nope")


def test_a_missing_extra_is_said_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(InvalidInputError, match=r"prodigyopt\.Prodigy.*pip install 'lightning-l2l\[rivals\]'\."):
        find_optimizer("prodigyopt.Prodigy")


def test_wrong_rates_are_refused():
    with pytest.raises(InvalidInputError, match="rates"):
        Rival("torch.optim.Adam", rates=[0.0])
    with pytest.raises(InvalidInputError, match="give it rates"):
        Rival("torch.optim.Adam", choose="per_problem")


def test_muon_steps_matrices_and_flat_kernels_and_adamw_the_rest():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4, 3))
    kernel, offset, matrix, _ = network.parameters()
    starts = [p.detach().clone() for p in network.parameters()]
    optimizer = MuonAdamW(network.parameters(), lr=0.1)
    network(torch.randn(5, 2, 3, 3)).square().mean().backward()
    flat = [nn.Parameter(starts[0].flatten(1)), nn.Parameter(starts[2].clone())]
    flat[0].grad, flat[1].grad = kernel.grad.flatten(1), matrix.grad
    torch.optim.Muon(flat, 0.1).step()
    alone = nn.Parameter(starts[1].clone())
    alone.grad = offset.grad.clone()
    torch.optim.AdamW([alone], 0.1, weight_decay=0.1).step()
    optimizer.step()
    for p, expected in ((kernel, flat[0]), (matrix, flat[1]), (offset, alone)):
        assert torch.allclose(p.flatten(), expected.flatten(), atol=1e-6)
    optimizer.zero_grad()
    assert all(p.grad is None for p in network.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    schedule.step()
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [0.0, 0.0]


def test_ldog_is_evaluated_at_its_average(monkeypatch):
    """With stand-ins for the package dog-optimizer."""

    class Averager:
        def __init__(self, model):
            self.model, self.averaged_model = model, nn.ParameterList([p.detach().clone() for p in model])

        def step(self):
            for own, p in zip(self.averaged_model, self.model, strict=True):
                own.data.lerp_(p.data, 0.5)

    dog = ModuleType("dog")
    dog.LDoG, dog.PolynomialDecayAverager = (lambda params: torch.optim.SGD(params, 1.0)), Averager
    monkeypatch.setitem(sys.modules, "dog", dog)
    p = nn.Parameter(torch.tensor([4.0]))
    optimizer = AveragedLDoG([p])
    p.grad = torch.tensor([2.0])
    optimizer.step()
    optimizer.eval()
    assert p.item() == 3.0
    optimizer.train()
    assert p.item() == 2.0
    optimizer.zero_grad()
    assert p.grad is None


@pytest.mark.parametrize(
    "class_path",
    [
        "prodigyopt.Prodigy",
        "schedulefree.AdamWScheduleFree",
        "pytorch_optimizer.SOAP",
        f"{AveragedLDoG.__module__}.AveragedLDoG",
    ],
)
def test_the_extra_rivals_train(class_path):
    from lightning_l2l.evaluation.suite.candidates import candidate
    from lightning_l2l.evaluation.suite.training import evaluating

    if find_spec("dog" if class_path.endswith("LDoG") else class_path.partition(".")[0]) is None:
        skip("the rivals are an extra: uv sync --extra rivals")
    network = nn.Linear(3, 2)
    optimizer = candidate(Rival(class_path)).make(network)
    inputs = torch.randn(8, 3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (network(inputs) - 1).square().mean()
        loss.backward()
        optimizer.step()
        with evaluating(optimizer, True), torch.no_grad():
            losses.append((network(inputs) - 1).square().mean().item())
    assert losses[-1] < losses[0]
