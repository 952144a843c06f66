"""LearnedOptimizer does what PyTorch's tests of its optimizers check, beside ``torch.optim.Adam`` in the same tests.

What they check of optimizers and does not apply here:

- complex, sparse and integer parameters or gradients: refused (test_learned_optimizer.py)
- ``foreach``, ``fused``, ``capturable``, ``differentiable``, and CUDA graphs and ``torch.compile`` of ``step``: a
  learned step has one implementation, which is chosen by itself, and is not captured
- ``maximize``, ``amsgrad``, ``betas``, ``eps``, ``momentum``: settings of a rule's arithmetic, which is learned
- tensors as ``betas``, and casting a state to the parameter's type: a rule's state has types of its own
- closures that are called more than once in a step: LBFGS alone does
- state dicts of earlier PyTorch versions without some settings: their settings are not ours; our own earlier ones are
  read (test_a_state_dict_without_what_tells_rules_and_shapes)
- a step's numbers against a reference: those of hand-designed rules are compared in test_learned_optimizer.py
"""

import copy
import io
import pickle
import warnings

import pytest
import torch
from own_loop import lstm
from test_everyday_loops import adam_controller
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.optim.swa_utils import AveragedModel
from torch_inputs import adam_inputs

from lightning_l2l import LearnedOptimizer
from lightning_l2l.rules import Adam


def learned(rule):
    def make(params, **settings):
        torch.manual_seed(2)
        return LearnedOptimizer(params, rule(), **settings)

    return make


DESCENDING = {
    "torch.optim.Adam": lambda params, **settings: torch.optim.Adam(params, **{"lr": 0.02} | settings),
    "Adam as a rule": learned(lambda: Adam(0.02)),  # with one state for all parameters of a group
    "AdamController": learned(adam_controller),
}
OPTIMIZERS = DESCENDING | {"LSTM": learned(lstm)}  # untrained, so its steps lead nowhere
SETTINGS = {"lr", "weight_decay"}  # those of Adam's that LearnedOptimizer has, too


@pytest.fixture(params=OPTIMIZERS)
def make(request):
    """Makes an optimizer from parameters and settings."""
    return OPTIMIZERS[request.param]


@pytest.fixture(params=DESCENDING)
def descending(request):
    return DESCENDING[request.param]


def parameters(dtype=torch.float32) -> list[nn.Parameter]:
    torch.manual_seed(1)
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in ((4, 6), (4,), (1, 4))]


def named(params):
    return [(f"p{number}", p) for number, p in enumerate(params)]


def loss_of(params, number: int = 0) -> torch.Tensor:
    weight, bias, output = params
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(number)).to(weight.dtype)
    return (nn.functional.linear(inputs, weight, bias).tanh() @ output.T - inputs[:, :1]).square().mean()


def closure_of(params, optimizer, number: int = 0):
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(params, number)
        loss.backward()
        return loss

    return closure


def train(params, optimizer, numbers=range(3)) -> list[float]:
    return [optimizer.step(closure_of(params, optimizer, number)).item() for number in numbers]


def assert_same(one, other) -> None:
    """Compares nested states and parameters to the bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other


def settings_of_adam():
    """The settings with which PyTorch tests Adam and that mean something here."""
    return [given.kwargs for given in adam_inputs().optim_inputs_func("cpu") if given.kwargs.keys() <= SETTINGS]


@pytest.mark.parametrize("contiguous", [True, False])
def test_steps_go_the_right_way(descending, contiguous):
    for settings in settings_of_adam():
        params = parameters()
        if not contiguous:
            with torch.no_grad():
                params[0] = nn.Parameter(params[0].T.contiguous().T)
            assert not params[0].is_contiguous()
        optimizer = descending(params, **{**settings, "lr": DESCENDING_LR.get(descending, 1.0)})
        before = loss_of(params).item()
        train(params, optimizer, [0] * 40)
        assert loss_of(params).item() < before


DESCENDING_LR = {DESCENDING["torch.optim.Adam"]: 0.02}


def test_steps_go_the_right_way_with_schedulers(descending):
    for makers in adam_inputs().scheduler_inputs:
        params = parameters()
        optimizer = descending(params)
        schedulers = [maker(optimizer) for maker in makers]
        before = loss_of(params).item()
        for _ in range(30):
            train(params, optimizer, [0])
            for scheduler in schedulers:
                loss = (loss_of(params).detach(),) if isinstance(scheduler, ReduceLROnPlateau) else ()
                scheduler.step(*loss)
        assert loss_of(params).item() < before


def test_wrong_arguments_raise_what_torchs_raise(make):
    for error in adam_inputs().optim_error_inputs_func("cpu", torch.float32):
        given = error.optimizer_error_input
        if not given.kwargs.keys() <= SETTINGS:
            continue
        params = parameters() if given.params is None else given.params
        if issubclass(error.error_type, Warning):
            with pytest.warns(error.error_type, match=error.error_regex):
                make(params, **given.kwargs)
        else:
            with pytest.raises(error.error_type, match=error.error_regex.split(" value")[0]):
                make(params, **given.kwargs)


def test_a_tensor_as_rate_is_a_number_as_rate(make):
    both = []
    for lr in (0.03, torch.tensor(0.03, dtype=torch.float64)):
        params = parameters(torch.float64)
        train(params, make(params, lr=lr))
        both.append(params)
    for p, q in zip(*both, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_groups_have_rates_and_decays_of_their_own(make):
    params = parameters()
    before = [p.detach().clone() for p in params]
    groups = [{"params": params[:1], "lr": 0.0}, {"params": params[1:2]}, {"params": params[2:], "weight_decay": 0.5}]
    optimizer = make(groups, lr=0.1)
    train(params, optimizer, [0])
    assert [torch.equal(p, old) for p, old in zip(params, before, strict=True)] == [True, False, False]
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.1, 0.1]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0, 0, 0.5]


def test_groups_join_later_with_the_defaults(make):
    params = parameters()
    optimizer = make(params[:1], lr=0.1)
    optimizer.add_param_group({"params": params[1]})
    optimizer.add_param_group({"params": params[2:], "lr": 0.2})
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1, 0.2]
    before = [p.detach().clone() for p in params]
    train(params, optimizer, [0])
    assert not any(torch.equal(p, old) for p, old in zip(params, before, strict=True))
    with pytest.raises(TypeError, match="param_group must be a dict"):
        optimizer.add_param_group([params[0]])
    with pytest.raises(ValueError, match="can't optimize a non-leaf Tensor"):
        optimizer.add_param_group({"params": [2 * params[0]]})


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "Adam as a rule"])
def test_groups_that_are_edited_by_hand_are_stepped(name):
    """As people do who freeze, replace and prune; what becomes of one state for all, test_learned_optimizer_edited."""
    params, make = parameters(), OPTIMIZERS[name]
    optimizer = make([{"params": params[:2]}, {"params": params[2:]}])
    train(params, optimizer)
    new = [nn.Parameter(p.detach().clone()) for p in params]
    optimizer.param_groups[0]["params"][0] = new[0]
    optimizer.param_groups[1]["params"].append(new[2])
    del optimizer.param_groups[0]["params"][1]
    before = [p.detach().clone() for p in (*new, *params)]
    loss_of(new).backward()
    loss_of(params).backward()
    optimizer.step()
    moved = [not torch.equal(p, old) for p, old in zip((*new, *params), before, strict=True)]
    assert moved == [True, False, True, False, False, True]
    assert optimizer.state[new[0]] and not optimizer.state.get(new[1])
    optimizer.param_groups[0]["lr"] = 0.0
    before = new[0].detach().clone()
    optimizer.step()
    assert torch.equal(new[0], before)


def test_nothing_happens_without_gradients(make):
    params = parameters()
    optimizer = make(params, weight_decay=0.1)
    before = [p.detach().clone() for p in params]
    assert optimizer.step() is None
    assert_same(before, params)
    assert not any(optimizer.state.get(p) for p in params)


def test_nothing_happens_at_gradients_of_zero(descending):
    params = parameters()
    optimizer = descending(params)
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, old in zip(params, before, strict=True):
        torch.testing.assert_close(p.detach(), old)


def test_a_closure_is_called_once_with_gradients_enabled(make):
    params, calls = parameters(), []
    optimizer = make(params)
    inner = closure_of(params, optimizer)

    def closure():
        calls.append(torch.is_grad_enabled())
        return inner()

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True]
    assert_same(loss.detach(), loss_of(parameters()).detach())


def test_an_optimizer_can_be_printed(make):
    params = parameters()
    optimizer = make([{"params": params[:1]}, {"params": params[1:], "lr": 0.5}])
    text = repr(optimizer)
    assert text.startswith(type(optimizer).__name__)
    assert "Parameter Group 1" in text and "lr: 0.5" in text
    assert text == repr(optimizer)


@pytest.mark.parametrize("names", [False, True])
def test_a_loaded_state_dict_continues_to_the_bit(make, names):
    params = parameters()
    optimizer = make(named(params) if names else params, weight_decay=0.01)
    train(params, optimizer)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    others = [nn.Parameter(p.detach().clone()) for p in params]
    resumed = make(named(others) if names else others, weight_decay=0.5)  # which the loaded one replaces
    saved = torch.load(file, weights_only=True)
    resumed.load_state_dict(saved)
    assert_same(optimizer.state_dict(), resumed.state_dict())
    assert train(params, optimizer) == train(others, resumed)
    assert_same(params, others)
    assert_same(optimizer.state_dict(), resumed.state_dict())


def test_a_named_state_dict_goes_to_an_unnamed_optimizer_and_back(make):
    params, others = parameters(), parameters()
    with_names, without = make(named(params)), make(others)
    train(params, with_names)
    without.load_state_dict(with_names.state_dict())
    assert without.param_groups[0]["param_names"] == ["p0", "p1", "p2"]
    plain = make(others := parameters())
    train(others, plain)
    with_names.load_state_dict(plain.state_dict())
    assert with_names.param_groups[0]["param_names"] == ["p0", "p1", "p2"]
    assert_same(with_names.state_dict()["state"], plain.state_dict()["state"])


def test_a_state_dict_without_steps_begins_anew(make):
    params, others = parameters(), parameters()
    empty = make(parameters()).state_dict()
    assert not empty["state"]
    optimizer = make(params)
    train(params, optimizer)
    optimizer.load_state_dict(empty)
    assert not optimizer.state
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            p.copy_(q)
    assert train(params, optimizer) == train(others, make(others))


def test_state_dicts_of_other_groups_are_refused_and_change_nothing(make):
    params = parameters()
    optimizer = make(params)
    train(params, optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    fewer = parameters()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(make([{"params": fewer[:1]}, {"params": fewer[1:]}]).state_dict())
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        optimizer.load_state_dict(make(fewer[:2]).state_dict())
    assert_same(before, optimizer.state_dict())


def test_what_belongs_to_no_parameter_is_kept_in_the_state(make):
    params = parameters()
    optimizer = make(params)
    optimizer.state["epochs"] = 3
    resumed = make(parameters())
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.state["epochs"] == 3


def test_copies_and_pickles_continue_to_the_bit(make):
    params = parameters()
    optimizer = make([{"params": params[:2]}, {"params": params[2:], "lr": 0.5}])
    train(params, optimizer)
    copies = [copy.deepcopy((params, optimizer)), pickle.loads(pickle.dumps((params, optimizer)))]
    for attribute in ("defaults", "param_groups"):
        assert getattr(copies[0][1], attribute) is not getattr(optimizer, attribute)
    losses = train(params, optimizer)
    for others, other in copies:
        assert train(others, other) == losses
        assert_same(params, others)
        assert_same(optimizer.state_dict(), other.state_dict())


def test_hooks_of_steps_are_called_in_order(make):
    params, calls = parameters(), []
    optimizer = make(params)

    def hook(name):
        return lambda own, args, kwargs: calls.append((name, own is optimizer))

    handles = [
        register_optimizer_step_pre_hook(hook("all before")),
        register_optimizer_step_post_hook(hook("all after")),
    ]
    handles += [optimizer.register_step_pre_hook(hook("before")), optimizer.register_step_post_hook(hook("after"))]
    try:
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    assert calls == [(name, True) for name in ("all before", "before", "after", "all after")]
    optimizer.step()
    assert len(calls) == 4


def test_a_hook_before_a_step_may_replace_its_arguments(make):
    params = parameters()
    optimizer = make(params)
    closure = closure_of(params, optimizer)
    optimizer.register_step_pre_hook(lambda own, args, kwargs: ((own, closure), kwargs))
    assert optimizer.step() is not None
    with pytest.raises(RuntimeError, match="must return None or a tuple"):
        optimizer.register_step_pre_hook(lambda *_: 3)
        optimizer.step()


def test_hooks_of_state_dicts_see_and_may_replace_them(make):
    params, seen = parameters(), []
    optimizer = make(params)
    train(params, optimizer)
    whole = optimizer.state_dict()
    optimizer.register_state_dict_pre_hook(lambda own: seen.append("before"))

    def after(own, saved):
        seen.append(sorted(saved))
        assert_same(saved["state"], whole["state"])
        return {**saved, "note": 1}

    optimizer.register_state_dict_post_hook(after)
    optimizer.register_state_dict_post_hook(lambda own, saved: seen.append("note" in saved))
    optimizer.register_state_dict_post_hook(lambda own, saved: seen.append("note" in saved), prepend=True)
    assert optimizer.state_dict().keys() - whole.keys() == {"note"}
    assert seen == ["before", False, sorted(whole), True]


def test_hooks_before_loading_see_the_whole_state_and_may_replace_it(make):
    params, others, seen = parameters(), parameters(), []
    optimizer, other = make(params), make(others)
    train(params, optimizer, range(3))
    train(others, other, range(5, 8))
    saved, replacement = optimizer.state_dict(), other.state_dict()
    target = make(parameters())

    def look(own, loaded):
        seen.append(own is target and loaded["state"].keys() == saved["state"].keys())
        loaded["param_groups"] = [{**group, "lr": 0.25} for group in loaded["param_groups"]]

    target.register_load_state_dict_pre_hook(look)
    target.load_state_dict(saved)
    assert seen == [True]
    assert target.param_groups[0]["lr"] == 0.25 and saved["param_groups"][0]["lr"] != 0.25
    assert_same(target.state_dict()["state"], saved["state"])
    target.register_load_state_dict_pre_hook(lambda own, loaded: replacement, prepend=True)
    target.load_state_dict(saved)
    assert seen == [True, True]
    assert_same(target.state_dict()["state"], replacement["state"])


def test_hooks_after_loading_find_all_of_it(make):
    params, seen = parameters(), []
    optimizer, target = make(params), make(parameters())
    train(params, optimizer)

    def look(name):
        return lambda own: seen.append((name, len(own.state) == len(optimizer.state), own.param_groups[0]["lr"]))

    optimizer.param_groups[0]["lr"] = 0.25
    target.register_load_state_dict_post_hook(look("last"))
    first = target.register_load_state_dict_post_hook(look("first"), prepend=True)
    target.load_state_dict(optimizer.state_dict())
    first.remove()
    target.load_state_dict(optimizer.state_dict())
    assert seen == [(name, True, 0.25) for name in ("first", "last", "last")]


def test_schedulers_continue_with_their_optimizer(make):
    params = parameters()
    optimizer = make(params, lr=0.5)
    scheduler = ExponentialLR(optimizer, 0.5)
    for number in range(3):
        train(params, optimizer, [number])
        scheduler.step()
    others = [nn.Parameter(p.detach().clone()) for p in params]
    resumed = make(others)
    later = ExponentialLR(resumed, 0.5)
    later.load_state_dict(scheduler.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # of which Adam would keep some tensors
    for number in range(3, 6):
        assert train(params, optimizer, [number]) == train(others, resumed, [number])
        scheduler.step()
        later.step()
        assert scheduler.get_last_lr() == later.get_last_lr() == [0.5 ** (number + 2)]
    assert_same(params, others)


def test_schedulers_tell_of_a_wrong_order(make):
    params = parameters()
    optimizer = make(params)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    with pytest.warns(UserWarning, match=r"lr_scheduler.step\(\)` before `optimizer.step\(\)"):
        scheduler.step()
    optimizer = make(params)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()


def test_parameters_of_several_types_are_stepped_together(make):
    params = [nn.Parameter(torch.zeros(3, dtype=dtype)) for dtype in (torch.float32, torch.float64, torch.bfloat16)]
    optimizer = make(params, lr=0.5)
    for p in params:
        p.grad = torch.linspace(-1, 1, 3).to(p.dtype) + 2
    for _ in range(3):
        optimizer.step()
    for p in params:
        assert p.isfinite().all() and p.all()


def test_averages_of_models_are_left_alone(make):
    model = nn.Linear(3, 1)
    averaged = AveragedModel(model)
    optimizer = make(model.parameters())
    before = copy.deepcopy(averaged.state_dict())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert_same(before, averaged.state_dict())
    averaged.update_parameters(model)
    assert torch.equal(averaged.module.weight, model.weight)


@pytest.mark.parametrize("names", [["LSTM"], []])
def test_a_state_dict_without_what_tells_rules_and_shapes(names):
    """As it was written before there was any."""
    params, others = parameters(), parameters()
    optimizer, resumed = LearnedOptimizer(params, rule := lstm()), LearnedOptimizer(others, rule)
    train(params, optimizer)
    old = {key: value for key, value in optimizer.state_dict().items() if key in ("state", "param_groups")}
    old["param_groups"] = [{**group, "rule": names[0] if names else "other"} for group in old["param_groups"]]
    if names:
        resumed.load_state_dict(old)
        assert_same(resumed.state_dict(), optimizer.state_dict())
    else:
        with pytest.raises(ValueError, match=r"is of rules \['other'\], but the groups here have \['LSTM'\]"):
            resumed.load_state_dict(old)
