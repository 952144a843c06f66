"""The guard against divergence: what triggers it, what it does, and what it remembers."""

import copy
import io
import math
import pickle

import pytest
import torch
from own_loop import lstm, network, theta, train

from lightning_l2l import LearnedOptimizer
from lightning_l2l.guard import HOLD, RETURN, SAFE_SIZE, SMALLEST_SIZE, Guard, safe_step
from lightning_l2l.rules import SGD, AdamController
from lightning_l2l.rules.adam_controller.remainder import exact


def triggered_at(losses, guard=None):
    """The number of the loss at which a guard triggers, or None."""
    guard = guard or Guard()
    for number, loss in enumerate(losses):
        guard.observe(float(loss))
        if guard.since is not None:
            return number
        assert guard.share() == 1
    return None


def falling(steps, level=0.5):
    """A loss that falls from 2.5 to a plateau at 0.5."""
    return level + 2 * torch.exp(-torch.arange(steps) / 50)


NOISES = {
    "none": lambda n: torch.zeros(n),
    "normal": lambda n: 0.2 * torch.randn(n),
    "skewed": lambda n: 0.1 * torch.randn(n).exp(),
    "growing later": lambda n: 0.05 * torch.randn(n) * torch.where(torch.arange(n) > n // 2, 3.0, 1.0),
    "outliers": lambda n: 0.05 * torch.randn(n) + 30.0 * (torch.rand(n) < 0.002),
    "rounding": lambda n: 1e-7 * torch.randn(n),
}


@pytest.mark.parametrize("factor", [1.0, 1e-4, 1e4])
@pytest.mark.parametrize("noise", NOISES)
def test_a_plateau_never_triggers(noise, factor):
    steps = 6000
    assert triggered_at(factor * (falling(steps) + NOISES[noise](steps))) is None
    assert triggered_at(factor * (1 + NOISES[noise](steps))) is None  # from the start, as in fine-tuning


@pytest.mark.parametrize("factor", [1.0, 1e-4, 1e4])
@pytest.mark.parametrize("start", [60, 400])
def test_a_spike_triggers_at_once(start, factor):
    losses = falling(500) + 0.05 * torch.randn(500)
    losses[start:] += 4.0
    assert triggered_at(factor * losses) == start + 2
    losses[start + 2 :] -= 4.0  # two bad minibatches are none
    assert triggered_at(factor * losses) is None


@pytest.mark.parametrize("growth", [1.5, 1.05, 1.01])
def test_exponential_growth_triggers_long_before_infinity(growth):
    losses = torch.cat([falling(300), 0.5 * growth ** torch.arange(1000.0)])
    number = triggered_at(losses)
    assert number is not None and losses[number] < 20


@pytest.mark.parametrize("slope", [0.01, 0.002])
def test_a_slow_rise_triggers(slope):
    noise = 0.05 * torch.randn(3000)
    losses = falling(3000) + noise + slope * (torch.arange(3000) - 500).clamp(min=0)
    number = triggered_at(losses)
    assert number is not None and losses[number] < 1.5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_triggers(bad):
    assert triggered_at([bad]) == 0
    assert triggered_at([*falling(50), bad]) == 50


def test_learned_steps_return_gradually_and_a_second_trigger_holds_longer():
    guard = Guard()
    for hold in (HOLD, 2 * HOLD):
        assert triggered_at([*[1.0] * 50, math.nan], guard) == 50
        shares = []
        while guard.since is not None:
            guard.observe(1.0)
            shares.append(guard.share())
        assert shares[:hold] == [0] * hold
        assert shares[hold:] == pytest.approx([n / RETURN for n in range(1, RETURN + 1)])
        assert guard.share() == 1


def test_not_finite_losses_while_holding_begin_the_hold_again():
    guard = Guard()
    for _ in range(3):
        guard.observe(math.nan)
        assert guard.share() == 0
    assert (guard.triggers, guard.hold, guard.since) == (1, HOLD, 1)


def test_a_divergence_during_the_return_triggers_again():
    guard = Guard(triggers=1, since=HOLD)
    for loss in [*[1.0] * 20, 5.0, 5.0, 5.0]:
        guard.observe(loss)
        guard.share()
    assert guard.triggers == 2 and guard.holding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_safe_step_has_a_small_size_of_its_own(dtype):
    p, untouched = (torch.full((40, 25), 2.0, dtype=dtype, requires_grad=True) for _ in range(2))
    zero = torch.zeros(3, dtype=dtype, requires_grad=True)
    grad = torch.randn(40, 25)
    p.grad, zero.grad = (1e6 * grad).to(dtype), torch.zeros(3, dtype=dtype)
    safe_step([p, untouched, zero], 0.5)
    want = 2 - 0.5 * SAFE_SIZE * (2 + SMALLEST_SIZE) * grad / grad.square().mean().sqrt()
    torch.testing.assert_close(
        p.detach().double(), want.double(), rtol=8e-3 if dtype == torch.bfloat16 else 1e-6, atol=0
    )
    assert untouched.eq(2).all() and zero.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_safe_steps_add_up_in_half_precision(dtype):
    """Each is .001 of the parameters, which bfloat16 would round away and float16 by 3 percent."""
    p = torch.full((4, 4), 2.0, dtype=dtype, requires_grad=True)
    optimizer = LearnedOptimizer([p], AdamController(), guard=True)
    for _ in range(10):
        p.grad = torch.ones_like(p)
        optimizer.observe(math.nan)
        optimizer.step()
    want = (2 + SMALLEST_SIZE) * (1 - SAFE_SIZE) ** 10 - SMALLEST_SIZE
    got = exact(p.detach(), optimizer.state[p]["remainder"], torch.float32)
    torch.testing.assert_close(got, torch.full((4, 4), want), rtol=1e-5, atol=0)


def diverging(guard, steps=400):
    """The losses of gradient descent whose steps are too large after a while."""
    p = torch.tensor([1.0, 1.0], requires_grad=True)
    optimizer = LearnedOptimizer([p], SGD(1.0), lr=0.1, guard=guard)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 if step < 50 else 1.05
        optimizer.zero_grad()
        loss = (p.square() * torch.tensor([1.0, 0.1])).sum() + 0.1
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses, optimizer


def test_a_run_that_diverges_is_kept_finite():
    losses, optimizer = diverging(guard=True)
    assert optimizer.guard.triggers >= 1
    assert max(losses) < 10
    assert max(diverging(guard=False)[0]) > 1e3


def test_a_guard_that_is_not_triggered_changes_nothing(way):
    one, two = network(), network()
    rule = lstm()
    want = train(one, LearnedOptimizer(one.parameters(), rule, lr=0.01), 20, closure=True)
    guarded = LearnedOptimizer(two.parameters(), rule, lr=0.01, guard=True)
    assert torch.equal(train(two, guarded, 20, closure=True), want)
    assert torch.equal(theta(one), theta(two))
    assert guarded.guard.triggers == 0 and len(guarded.guard.losses) == 20


@pytest.mark.parametrize("when", ["watching", "holding", "returning"])
def test_a_guarded_run_resumes_to_the_bit(when):
    model, rule = network(), lstm()
    optimizer = LearnedOptimizer(model.parameters(), rule, lr=0.01, guard=True)
    train(model, optimizer, 12, closure=True)
    if when != "watching":
        optimizer.observe(math.nan)
        optimizer.guard.since = HOLD - (20 if when == "holding" else 3)
    train(model, optimizer, 5, closure=True)
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), model.state_dict()], file)
    file.seek(0)
    saved, weights = torch.load(file, weights_only=True)
    other = network()
    other.load_state_dict(weights)
    resumed = LearnedOptimizer(other.parameters(), rule, guard=True)
    resumed.load_state_dict(saved)
    copies = [(other, resumed), copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    train(model, optimizer, 20, seed=1, closure=True)
    for module, continued in copies:
        train(module, continued, 20, seed=1, closure=True)
        assert torch.equal(theta(module), theta(model))
        assert continued.guard == optimizer.guard
    assert saved["guard"]["triggers"] == (when != "watching")


def test_loading_shares_no_record():
    model = network()
    optimizer = LearnedOptimizer(model.parameters(), lstm(), guard=True)
    train(model, optimizer, 3, closure=True)
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved["guard"])
    optimizer.load_state_dict(saved)
    train(model, optimizer, 3, closure=True)
    assert saved["guard"] == before


def test_a_guard_needs_the_loss():
    model = network()
    optimizer = LearnedOptimizer(model.parameters(), lstm(), guard=True)
    sentence = r"the guard needs the loss: call step\(closure\), with a closure that returns it, or observe\(loss\)"
    with pytest.raises(RuntimeError, match=sentence):
        train(model, optimizer, 1)
    optimizer.observe(torch.tensor(1.0))
    optimizer.step()
    with pytest.raises(RuntimeError, match="before each step"):
        optimizer.step()


def test_a_closure_that_returns_nothing_tells_a_guard_nothing():
    """As Lightning gives one where a LightningModule steps by hand, or where its training_step returned None."""
    p = torch.ones(2, requires_grad=True)
    optimizer = LearnedOptimizer([p], lstm(), guard=True)
    optimizer.step(lambda: None)  # there is no gradient either, so nothing needs guarding
    p.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match="the guard needs the loss"):
        optimizer.step(lambda: None)
    assert p.eq(1).all()
    optimizer.observe(1.0)
    optimizer.step(lambda: None)
    assert not p.eq(1).any()
    moved = p.detach().clone()
    optimizer.step(lambda: None)  # a minibatch without a loss, among others, as where gradients are accumulated
    assert not p.eq(moved).any() and len(optimizer.guard.losses) == 1


def test_a_skipped_step_is_no_safe_step():
    p = torch.ones(2, requires_grad=True)
    optimizer = LearnedOptimizer([p], SGD(0.1), guard=True)
    for bad in (math.nan, math.nan):
        p.grad = torch.full((2,), bad)
        optimizer.observe(bad)
        optimizer.step()
    assert optimizer.guard.since == 0 and p.eq(1).all()
    with pytest.raises(RuntimeError, match="before each step"):
        optimizer.step()


def test_a_rate_of_zero_stops_safe_steps_too():
    p = torch.ones(2, requires_grad=True)
    p.grad = torch.ones(2)
    optimizer = LearnedOptimizer([p], SGD(0.1), lr=0.0, guard=True)
    optimizer.observe(math.nan)
    optimizer.step()
    assert p.eq(1).all()
