"""Learned starts and learned rates: MAML and Meta-SGD."""

import copy
from importlib.util import find_spec

import pytest
import torch
from conftest import skip
from learn2learn_problem import RATE, STEPS, adapted_gradient, few_steps, our_gradient, started
from small_problem import assert_agrees_with_finite_differences, meta_gradient, problem

from lightning_l2l import LearnedOptimizer
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.extras import learn2learn
from lightning_l2l.meta_gradients import Exact, FirstOrder, Linearized
from lightning_l2l.rules import (
    SGD,
    Adam,
    AdamController,
    CoordinatewiseLSTM,
    Grouped,
    LearnedStart,
    PerCoordinateMLP,
    PerCoordinateSGD,
    layout_of,
)
from lightning_l2l.rules.files import check_fit, load_rule, save_rule
from lightning_l2l.unroll import learning_curves, optimize

LAYOUT = layout_of({"weight": (4, 3), "bias": (4,)})


@pytest.mark.parametrize("first_order", [False, True], ids=["second", "first"])
@pytest.mark.parametrize("name", ["MAML", "MetaSGD"])
def test_meta_gradients_are_those_of_learn2learn(name, first_order):
    if not find_spec("learn2learn"):
        skip("learn2learn is an extra: uv sync --extra learn2learn")
    algorithm = getattr(learn2learn("the test").algorithms, name)
    episodes = few_steps()
    rule = started(LearnedStart(SGD(RATE) if name == "MAML" else PerCoordinateSGD(RATE)), episodes)
    theirs = adapted_gradient(lambda network: algorithm(network, lr=RATE, first_order=first_order), episodes)
    for got, want in zip(our_gradient(rule, episodes, first_order), theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12 * want.abs().max().item())


def test_the_two_orders_differ():
    """So that the test above tells them apart."""
    episodes = few_steps()
    rule = started(LearnedStart(PerCoordinateSGD(RATE)), episodes)
    for first, second in zip(*(our_gradient(rule, episodes, order) for order in (True, False)), strict=True):
        assert (first - second).norm() > 1e-3 * second.norm()


@pytest.mark.parametrize("rule", [PerCoordinateSGD(0.01), CoordinatewiseLSTM(hidden_size=3, preprocessing=None)])
def test_exact_agrees_with_finite_differences(rule):
    _, episodes = problem()
    rule = started(LearnedStart(rule), episodes)
    got = meta_gradient(Exact(), rule, episodes)
    torch.testing.assert_close(meta_gradient(Exact(1e9), rule, episodes), got)  # by a φ for each episode
    assert_agrees_with_finite_differences(got, rule, episodes, atol=1e-6)


def test_runs_begin_at_the_first_start_that_was_seen():
    _, episodes = problem()
    rule = started(LearnedStart(SGD(0.01)), episodes)
    again = episodes.with_tensors({"theta": episodes.theta + 1})
    want = episodes.with_tensors({"theta": episodes.theta[:1].repeat(3, 1)})
    assert torch.equal(learning_curves(rule, again, 4), learning_curves(SGD(0.01), want, 4))


@pytest.mark.parametrize("rule", [CoordinatewiseLSTM(hidden_size=3), AdamController(), PerCoordinateMLP()])
def test_the_other_rule_runs_as_by_itself(rule):
    """Bound, sped up, and by its own tape."""
    episodes = few_steps().to("cpu", torch.float32)
    for parameter in rule.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    learned = LearnedStart(rule)
    learned.bind(episodes.layout).start(episodes.theta)
    same = episodes.with_tensors({"theta": learned.theta.detach().repeat(2, 1)})
    assert torch.equal(optimize(learned, episodes, STEPS)[0], optimize(rule, same, STEPS)[0])
    grads = [our_gradient(one, same, first_order=True) for one in (learned, rule)]
    torch.testing.assert_close(grads[0][1], torch.cat(grads[1]))


def test_a_group_may_learn_its_start():
    _, episodes = problem()
    rule = Grouped({"all": LearnedStart(CoordinatewiseLSTM(hidden_size=3, preprocessing=None))}, {"all": ["*"]})
    alone = started(rule, episodes).rules["all"]
    with torch.no_grad():
        alone.theta += 1
    bound = rule.bind(episodes.layout)
    assert torch.equal(optimize(rule, episodes, 4)[0], optimize(alone, episodes, 4)[0])
    for estimator in (FirstOrder(), Exact()):
        torch.testing.assert_close(meta_gradient(estimator, bound, episodes), meta_gradient(estimator, alone, episodes))


def test_linearized_refuses_a_learned_start():
    _, episodes = problem()
    with pytest.raises(InvalidInputError, match="learns where runs start"):
        Linearized().check(started(LearnedStart(SGD(0.01)), episodes), episodes)


@pytest.mark.parametrize("rule", [LearnedStart(SGD()), PerCoordinateSGD()], ids=["start", "rates"])
def test_an_optimizee_of_another_size_is_refused(rule):
    rule.bind(LAYOUT).start(torch.zeros(1, 16))
    with pytest.raises(InvalidInputError, match="each of 16 coordinates, but the optimizee has 15 parameters"):
        rule.bind(layout_of({"weight": (5, 3)}))


def trained():
    rule = LearnedStart(PerCoordinateSGD(0.1))
    rule.bind(LAYOUT).start(torch.randn(1, 16))
    with torch.no_grad():
        rule.rule.rates += torch.rand(16)
    return rule


def test_a_file_and_a_state_dict_hold_all_of_it():
    rule = trained()
    inner = {"class_path": "lightning_l2l.rules.PerCoordinateSGD", "init_args": {"learning_rate": 0.1}}
    settings = {"class_path": "lightning_l2l.rules.LearnedStart", "init_args": {"rule": inner}}
    save_rule(rule, "rule.safetensors", settings)
    other = LearnedStart(PerCoordinateSGD())
    other.load_state_dict(rule.state_dict())
    given = load_rule("rule.safetensors", LearnedStart(PerCoordinateSGD()))
    for loaded in (load_rule("rule.safetensors"), given, other):
        assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in rule.state_dict().items())


@pytest.mark.parametrize("damage", [{"theta": torch.zeros(2, 3)}, {"theta": torch.zeros(16, dtype=torch.long)}, {}])
def test_a_file_without_a_start_is_refused(damage):
    tensors = {key: value for key, value in trained().state_dict().items() if key != "theta"} | damage
    rule = LearnedStart(PerCoordinateSGD())
    with pytest.raises(InvalidInputError, match="theta is"):
        check_fit(rule, tensors, "it")


def test_in_a_loop_it_starts_and_steps():
    rule, module = trained(), torch.nn.Linear(3, 4)
    optimizer = LearnedOptimizer(module.named_parameters(), rule)
    optimizer.start()
    start = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert torch.equal(start, rule.theta.detach())
    module(torch.ones(2, 3)).square().mean().backward()
    optimizer.step()
    grad = torch.cat([p.grad.flatten() for p in module.parameters()])
    moved = torch.cat([p.detach().flatten() for p in module.parameters()])
    torch.testing.assert_close(moved, start - rule.rule.rates.detach() * grad)


def test_an_untrained_start_leaves_a_loop_where_it_is():
    module = torch.nn.Linear(3, 4)
    before = [p.detach().clone() for p in module.parameters()]
    optimizer = LearnedOptimizer(module.named_parameters(), LearnedStart(SGD(0.1)))
    optimizer.start()
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
    module(torch.ones(2, 3)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("make", [lambda: LearnedStart(SGD(0.1)), trained], ids=["SGD", "PerCoordinateSGD"])
def test_a_rule_that_keeps_nothing_goes_on_where_it_was(make):
    rule, module = make(), torch.nn.Linear(3, 4)
    optimizer = LearnedOptimizer(module.named_parameters(), rule)
    optimizer.start()
    module(torch.ones(2, 3)).square().mean().backward()
    optimizer.step()
    other = copy.deepcopy(module)
    again = LearnedOptimizer(other.named_parameters(), copy.deepcopy(rule))
    again.load_state_dict(optimizer.state_dict())
    for one, p in ((optimizer, module), (again, other)):
        one.zero_grad()
        p(torch.ones(2, 3)).square().mean().backward()
        one.step()
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), other.parameters(), strict=True))


def test_a_state_that_was_only_looked_at_has_not_begun():
    p, q = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer, other = (LearnedOptimizer([one], LearnedStart(Adam(0.1))) for one in (p, q))
    assert optimizer.state[p] == {}
    other.load_state_dict(optimizer.state_dict())
    q.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="call start"):
        other.step()


def test_a_state_of_the_controller_goes_on_where_it_was():
    def steps(optimizer, p, count):
        for number in range(count):
            p.grad = torch.linspace(-1, 1, 6, dtype=torch.double).view(2, 3) * (number % 3 + 1)
            optimizer.step()

    def begun():
        p = torch.ones(2, 3, dtype=torch.double, requires_grad=True)
        torch.manual_seed(0)
        optimizer = LearnedOptimizer([p], LearnedStart(AdamController()))
        optimizer.start()
        return optimizer, p

    (whole, p), (half, q), (rest, r) = begun(), begun(), begun()
    steps(whole, p, 9)
    steps(whole, p, 9)
    steps(half, q, 9)
    rest.load_state_dict(half.state_dict())
    with torch.no_grad():
        r.copy_(q)
    steps(rest, r, 9)
    assert torch.equal(p, r)
