"""What LearnedOptimizer remembers: saved, loaded, copied, taken to another machine."""

import copy
import io
import pickle

import pytest
import torch
from conftest import skip
from own_loop import SETTINGS, by_hand, lstm, network, theta, train
from test_everyday_loops import adam_controller
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from lightning_l2l import LearnedOptimizer
from lightning_l2l.rules import SGD
from lightning_l2l.rules.lstm.kernel import CompiledLSTM


@pytest.mark.parametrize("bfloat16_state", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_state_dict_continues_to_the_next_bit(way, dtype, bfloat16_state):
    rule, model = lstm(), network(dtype)
    optimizer = LearnedOptimizer(model.parameters(), rule, bfloat16_state=bfloat16_state)
    train(model, optimizer, 3)
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), model.state_dict()], file)
    file.seek(0)
    saved, weights = torch.load(file, weights_only=True)
    other = network(dtype)
    other.load_state_dict(weights)
    resumed = LearnedOptimizer(other.parameters(), rule, bfloat16_state=bfloat16_state)
    resumed.load_state_dict(saved)
    train(model, optimizer, 3, seed=1)
    train(other, resumed, 3, seed=1)
    assert torch.equal(theta(model), theta(other))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert optimizer.state[a].keys() == resumed.state[b].keys()
        assert all(torch.equal(value, resumed.state[b][name]) for name, value in optimizer.state[a].items())


def test_loading_a_state_dict_shares_nothing():
    model = network()
    optimizer = LearnedOptimizer(model.parameters(), lstm())
    train(model, optimizer, 1)
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    optimizer.load_state_dict(saved)
    train(model, optimizer, 1)
    for number, state in before["state"].items():
        assert all(torch.equal(value, saved["state"][number][name]) for name, value in state.items())


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("first", ["kernel", "eager"])
def test_a_state_goes_to_a_machine_without_a_compiler_and_back(first, settings, monkeypatch):
    if lstm().compiled(torch.zeros(1), 1) is None:
        skip("there is no C++ compiler")
    rule, model, of, saved = lstm(**settings), network(), CompiledLSTM.of, None
    want = by_hand(rule, model, 6)
    for index, kernel in enumerate([first == "kernel", first != "kernel"]):
        monkeypatch.setattr(CompiledLSTM, "of", of if kernel else classmethod(lambda *_: None))
        optimizer = LearnedOptimizer(model.parameters(), rule)
        if saved:
            optimizer.load_state_dict(saved)
        random_batches(model, optimizer, range(3 * index, 3 * index + 3))
        saved = optimizer.state_dict()
    torch.testing.assert_close(theta(model), want, rtol=1e-5, atol=1e-6)


def random_batches(model, optimizer, numbers):
    """As ``train``, on the minibatches with these numbers of the same stream."""
    random = torch.Generator().manual_seed(0)
    for number in range(max(numbers) + 1):
        inputs, targets = torch.randn(8, 200, generator=random), torch.randn(8, 3, generator=random)
        if number in numbers:
            optimizer.zero_grad()
            (model(inputs) - targets).square().mean().backward()
            optimizer.step()


def test_a_state_of_something_else_is_refused():
    model = network()
    optimizer = LearnedOptimizer(model.parameters(), lstm())
    train(model, optimizer, 1)
    saved = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"is of rules \['LSTM'\], but the groups here have \['SGD'\]"):
        LearnedOptimizer(model.parameters(), SGD(0.1)).load_state_dict(saved)
    with pytest.raises(ValueError, match="loaded state dict has"):
        LearnedOptimizer(model.parameters(), lstm(hidden_size=6)).load_state_dict(saved)
    with pytest.raises(ValueError, match="match the size"):
        LearnedOptimizer(nn.Linear(2, 2).parameters(), lstm()).load_state_dict(saved)
    with pytest.raises(ValueError, match="loaded state dict has"):
        LearnedOptimizer([torch.zeros(2, requires_grad=True) for _ in range(4)], lstm()).load_state_dict(saved)


def test_copies_and_pickles_continue_alike(way):
    model = network()
    optimizer = LearnedOptimizer(model.parameters(), lstm(), bfloat16_state=True)
    train(model, optimizer, 2)
    copies = [copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    train(model, optimizer, 2)
    for other in copies:
        train(*other, 2)
        assert torch.equal(theta(other[0]), theta(model))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_none_are_not_loaded(value):
    optimizer = stepped()
    saved = optimizer.state_dict()
    name = next(key for key, one in saved["state"][0].items() if torch.is_tensor(one) and one.is_floating_point())
    saved["state"][0][name] = saved["state"][0][name] + value
    with pytest.raises(ValueError, match="a state with numbers that are not finite"):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize("setting", ["lr", "scale", "weight_decay"])
def test_a_setting_that_has_become_nan_skips_the_step(setting):
    optimizer = stepped()
    p = optimizer.param_groups[0]["params"][0]
    before = p.clone()
    optimizer.param_groups[0][setting] = torch.nan
    optimizer.step()
    assert torch.equal(p, before)
    assert optimizer.skipped_steps == 1


def stepped() -> LearnedOptimizer:
    """An optimizer of one parameter, after one step."""
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = LearnedOptimizer([p], "mnist")
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("make", [lstm, adam_controller])
def test_a_distributed_checkpoint_continues_to_the_next_bit(make, flat):
    rule, model, options = make(), network(), StateDictOptions(flatten_optimizer_state_dict=flat)
    optimizer = LearnedOptimizer(model.parameters(), rule)
    train(model, optimizer, 5)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    other = copy.deepcopy(model)
    resumed = LearnedOptimizer(other.parameters(), rule)
    set_optimizer_state_dict(other, resumed, saved, options=options)
    train(model, optimizer, 5, seed=1)
    train(other, resumed, 5, seed=1)
    assert torch.equal(theta(model), theta(other))
