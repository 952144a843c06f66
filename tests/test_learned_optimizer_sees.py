"""What LearnedOptimizer shows to rules that see more than gradients, and what it refuses."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lightning_l2l import LearnedOptimizer
from lightning_l2l.rules import UpdateRule


class SeesAll(UpdateRule):
    """g = -0.1 · f(θ) · ∇ · ‖θ‖ of each tensor, by its shape."""

    sees = ("theta", "loss")

    def __init__(self, layout=None):
        super().__init__()
        self.layout = layout

    def bind(self, layout):
        return SeesAll(layout)

    def init(self, theta):
        return ()

    def update(self, grad, state, theta, loss):
        sizes = torch.ones_like(theta)
        for place in self.layout.values():
            tensor = theta[:, place.coordinates].unflatten(1, place.shape)
            sizes[:, place.coordinates] = torch.linalg.vector_norm(tensor)
        return -0.1 * loss[:, None] * grad * sizes, state


class Coordinatewise(UpdateRule):
    """g = -0.1 · θ · ∇, of each coordinate by itself."""

    coordinatewise = True
    sees = ("theta",)

    def init(self, theta):
        return ()

    def update(self, grad, state, theta):
        return -0.1 * theta * grad, state


class Starts(UpdateRule):
    """Runs start at 2, and take steps of the gradient."""

    def start(self, theta):
        return torch.full_like(theta, 2.0)

    def init(self, theta):
        return (torch.zeros_like(theta),)

    def update(self, grad, state):
        return -0.1 * grad, state


class StateByShape(UpdateRule):
    """Remembers a mean of each tensor's rows, so that its first state needs the shapes."""

    def __init__(self, layout=None):
        super().__init__()
        self.layout = layout

    def bind(self, layout):
        return StateByShape(layout)

    def init(self, theta):
        return tuple(theta[:, place.coordinates].unflatten(1, place.shape).mean(1) for place in self.layout.values())

    def update(self, grad, state):
        return -0.1 * grad, state


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def loss_of(module: nn.Module) -> torch.Tensor:
    return module(torch.ones(4, 3)).square().mean()


def closure(module, optimizer):
    def evaluate():
        optimizer.zero_grad()
        loss = loss_of(module)
        loss.backward()
        return loss

    return evaluate


@pytest.mark.parametrize("named", [True, False])
def test_a_rule_sees_theta_the_loss_and_the_shapes(named):
    module, want = model(), model()
    optimizer = LearnedOptimizer(module.named_parameters() if named else module.parameters(), SeesAll())
    for _ in range(3):
        optimizer.step(closure(module, optimizer))
        loss = loss_of(want)
        grads = torch.autograd.grad(loss, list(want.parameters()))
        with torch.no_grad():
            for p, grad in zip(want.parameters(), grads, strict=True):
                p -= 0.1 * loss * grad * p.norm()
    for got, expected in zip(module.parameters(), want.parameters(), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_coordinatewise_rule_sees_theta_chunk_by_chunk():
    p = torch.randn(10_000, requires_grad=True)
    p.grad = torch.randn_like(p)
    want = (p - 0.1 * p * p.grad).detach()
    LearnedOptimizer([p], Coordinatewise()).step()
    torch.testing.assert_close(p.detach(), want)


def test_a_first_state_may_depend_on_the_shapes():
    module = model()
    optimizer = LearnedOptimizer(module.parameters(), StateByShape())
    loss_of(module).backward()
    want = [(p - 0.1 * p.grad).detach() for p in module.parameters()]
    optimizer.step()
    assert all(torch.allclose(p, q) for p, q in zip(module.parameters(), want, strict=True))


def test_a_state_from_before_the_start_does_not_count_as_started():
    module = model()
    before = LearnedOptimizer(module.parameters(), Starts()).state_dict()
    again = LearnedOptimizer(module.parameters(), Starts())
    again.load_state_dict(before)
    loss_of(module).backward()
    with pytest.raises(RuntimeError, match="call start"):
        again.step()


def test_a_rule_that_sees_the_loss_needs_a_closure():
    module = model()
    optimizer = LearnedOptimizer(module.parameters(), SeesAll())
    loss_of(module).backward()
    before = copy.deepcopy(module.state_dict())
    for nothing in (None, lambda: None):
        with pytest.raises(RuntimeError, match=r"rule SeesAll sees the loss: call step\(closure\)"):
            optimizer.step(nothing)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_a_learned_start_is_taken_once_and_before_the_first_step():
    module = model()
    optimizer = LearnedOptimizer(module.parameters(), Starts())
    loss_of(module).backward()
    with pytest.raises(RuntimeError, match=r"rule Starts has learned where to start: call start\(\)"):
        optimizer.step()
    optimizer = pickle.loads(pickle.dumps(optimizer))
    with pytest.raises(RuntimeError, match="call start"):
        optimizer.step()
    optimizer = LearnedOptimizer(module.parameters(), Starts())
    optimizer.start()
    assert all(torch.equal(p, torch.full_like(p, 2.0)) for p in module.parameters())
    optimizer.step(closure(module, optimizer))
    moved = copy.deepcopy(module.state_dict())
    optimizer.start()
    assert all(torch.equal(moved[key], value) for key, value in module.state_dict().items())
    again = LearnedOptimizer(module.parameters(), Starts())
    again.load_state_dict(optimizer.state_dict())  # a run that goes on has started
    again.step(closure(module, again))
