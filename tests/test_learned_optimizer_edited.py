"""LearnedOptimizer after parameters, states and groups were changed by hand: followed, or refused in one sentence."""

import copy
from pathlib import Path

import pytest
import torch
from own_loop import SMALL, lstm
from test_everyday_loops import adam_controller
from torch import nn

from lightning_l2l import LearnedOptimizer
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.pretrained import save_rule
from lightning_l2l.rules import SGD, Adam, Grouped, PerCoordinateMLP

RULES = {
    "LSTM": lstm,
    "momenta": lambda: lstm(momenta=[0.9]),
    "MLP": PerCoordinateMLP,
    "AdamController": adam_controller,
}
MISFITS = (ValueError, InvalidInputError)


@pytest.fixture(params=RULES)
def rule(request):
    torch.manual_seed(0)
    return RULES[request.param]()


def stepped(rule, shape=(40, 30), **settings) -> tuple[nn.Parameter, LearnedOptimizer]:
    torch.manual_seed(1)
    p = nn.Parameter(torch.randn(shape))
    optimizer = LearnedOptimizer([p], rule, **settings)
    for _ in range(2):
        p.grad = torch.randn_like(p)
        optimizer.step()
    return p, optimizer


def one_sentence(raised) -> str:
    text = str(raised.value)
    assert "\n" not in text and len(text) < 1000
    return text


@pytest.mark.parametrize("shape", [(400, 300), (40, 31), (39, 30), (1, 1), (30, 40), (1200,)])
def test_a_parameter_that_changed_its_shape_is_refused(rule, shape):
    p, optimizer = stepped(rule)
    p.data = torch.zeros(shape)
    p.grad = torch.ones(shape)
    with pytest.raises(MISFITS, match="shape has changed from") as raised:
        optimizer.step()
    one_sentence(raised)
    assert not p.any()
    del optimizer.state[p]
    optimizer.step()
    assert p.any()


@pytest.mark.parametrize("shape", [(400, 300), (40, 29), (30, 40)])
def test_a_gradient_of_another_shape_is_refused(rule, shape):
    p, optimizer = stepped(rule)
    before = p.detach().clone()
    p.data, p.grad = torch.zeros(shape), torch.ones(shape)
    p.data = before
    with pytest.raises(MISFITS, match="but its gradient") as raised:
        optimizer.step()
    one_sentence(raised)
    assert torch.equal(p, before)


def spoiled(value: torch.Tensor) -> list[torch.Tensor]:
    """Tensors that a kernel must never be given in another's place."""
    wide = torch.zeros(*value.shape[:-1], 2 * value.shape[-1], dtype=value.dtype)
    return [
        value.flatten()[:3].clone(),
        wide,
        wide.to("meta")[..., ::2],
        value.long(),
        value[..., :0],
        value.to_sparse(),
    ]


def test_states_that_were_changed_by_hand_are_refused(rule):
    _, optimizer = stepped(rule)
    saved = copy.deepcopy(optimizer.state_dict())
    for name, value in saved["state"][0].items():
        for other in spoiled(value) if isinstance(value, torch.Tensor) and value.ndim else ():
            p, changed = stepped(rule)
            before = p.detach().clone()
            changed.state[p][name] = other
            with pytest.raises((*MISFITS, RuntimeError, NotImplementedError)):
                changed.step()
            assert torch.equal(p, before)
            damaged = copy.deepcopy(saved)
            damaged["state"][0][name] = other
            with pytest.raises((ValueError, RuntimeError, NotImplementedError)):
                changed.load_state_dict(damaged)


def test_states_that_were_cast_or_laid_out_by_hand_are_converted(rule):
    """To other floating-point types, and to tensors with gaps: numbers, and so steps, stay what they are."""
    p, optimizer = stepped(rule)
    q, changed = stepped(rule)
    for name, value in changed.state[q].items():
        if isinstance(value, torch.Tensor):
            gaps = torch.zeros(*value.shape, 2, dtype=torch.float64)
            gaps[..., 0] = value
            changed.state[q][name] = gaps[..., 0]
    for each, own in ((p, optimizer), (q, changed)):
        each.grad = torch.ones_like(each)
        own.step()
    assert torch.equal(p, q)


def test_a_state_that_lacks_something_is_refused(rule):
    for name in list(stepped(rule)[1].state_dict()["state"][0]):
        p, optimizer = stepped(rule)
        saved = copy.deepcopy(optimizer.state_dict())
        del optimizer.state[p][name], saved["state"][0][name]
        if optimizer.state[p]:  # none at all begins anew
            with pytest.raises(InvalidInputError, match="the state of a parameter has"):
                optimizer.step()
        if saved["state"][0]:
            with pytest.raises(ValueError, match="loaded state dict has a state that does not fit"):
                optimizer.load_state_dict(saved)


@pytest.mark.parametrize(("key", "value"), [("controls", []), ("controls", [1.0] * 7), ("step", 0), ("step", -1)])
def test_controls_that_do_not_fit_the_step_are_refused(key, value):
    p, optimizer = stepped(adam_controller())
    optimizer.state[p][key] = value
    with pytest.raises(InvalidInputError, match=r"has \d controls"):
        optimizer.step()


@pytest.mark.parametrize("own", [torch.zeros(4, 4, dtype=torch.bfloat16), torch.zeros(4, 8)[:, ::2]])
def test_parameters_that_share_memory_but_step_in_copies_are_refused(own):
    p, q = nn.Parameter(own), nn.Parameter(own)
    optimizer = LearnedOptimizer([p, q], adam_controller())
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    with pytest.raises(InvalidInputError, match="two parameters share their memory"):
        optimizer.step()
    assert not p.any()


@pytest.mark.parametrize("negated", ["parameter", "gradient"])
def test_a_pending_negation_is_seen(rule, negated):
    """PyTorch may keep the opposite numbers and a note of it, as in the imaginary part of a conjugate."""

    def put(numbers: torch.Tensor, as_negation: bool) -> torch.Tensor:
        return torch._neg_view(-numbers) if as_negation else numbers

    torch.manual_seed(1)
    start, gradients, ends = torch.randn(40, 30), torch.randn(6, 40, 30), []
    for of in ("nothing", negated):
        p = nn.Parameter(put(start.clone(), of == "parameter"))
        optimizer = LearnedOptimizer([p], rule)
        for grad in gradients:
            p.grad = put(grad, of == "gradient")
            assert p.is_neg() == (of == "parameter") and p.grad.is_neg() == (of == "gradient")
            optimizer.step()
        ends.append(p.detach().resolve_neg().contiguous())
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_that_is_cast_in_the_middle_keeps_its_state(rule, dtype):
    p, optimizer = stepped(rule)
    p.data = p.data.to(dtype)
    p.grad = torch.ones_like(p)
    before = p.detach().clone()
    optimizer.step()
    assert p.dtype == dtype and p.isfinite().all() and not torch.equal(p, before)
    p.data = p.data.float()
    p.grad = torch.ones_like(p)
    optimizer.step()


def test_channels_last_parameters_step_as_others_do(rule):
    both = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(4, 3, 5, 5).to(memory_format=layout))
        optimizer = LearnedOptimizer([p], rule)
        for _ in range(3):
            p.grad = torch.randn(4, 3, 5, 5)
            optimizer.step()
        both.append(p.detach())
    torch.testing.assert_close(*both)


def test_shapes_are_compared_when_a_state_is_loaded(rule):
    _, optimizer = stepped(rule)
    for shape in ((40, 29), (30, 40), (1200,), (400, 300)):
        _, other = stepped(rule, shape)
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(ValueError, match=r"a state of a parameter of shape \[40, 30\]"):
            other.load_state_dict(optimizer.state_dict())
        assert str(before) == str(other.state_dict())


def test_a_group_may_be_given_another_rule():
    """By an object, a name or a path; its state begins anew."""
    p, optimizer = stepped(lstm())
    save_rule(lstm(), "mine.safetensors", {"class_path": "lightning_l2l.rules.CoordinatewiseLSTM", "init_args": SMALL})
    for rule, name in (
        (SGD(0.1), "SGD"),
        ("mine.safetensors", "mine.safetensors"),
        (adam_controller(), "AdamController"),
    ):
        optimizer.param_groups[0]["rule"] = rule
        assert optimizer.state_dict()["param_groups"][0]["rule"] == name
        assert not optimizer.state.get(p)
        before = p.detach().clone()
        optimizer.step()
        assert not torch.equal(p, before)
    optimizer.param_groups[0]["rule"] = "nope"
    with pytest.raises(ValueError, match="rule is nope, which is neither a file"):
        optimizer.step()


def test_a_state_of_all_parameters_does_not_follow_changed_groups():
    params = [nn.Parameter(torch.ones(3)) for _ in range(3)]
    for p in params:
        p.grad = torch.ones(3)
    for edit in (lambda own: own.append(params[2]), lambda own: own.pop(), lambda own: own.__setitem__(0, params[2])):
        optimizer = LearnedOptimizer(params[:2], Adam(0.1))
        edit(optimizer.param_groups[0]["params"])
        optimizer.step()  # nothing had begun
        optimizer = LearnedOptimizer(params[:2], Adam(0.1))
        optimizer.step()
        edit(optimizer.param_groups[0]["params"])
        with pytest.raises(ValueError, match="Adam keeps one state for all parameters of a group"):
            optimizer.step()


def test_what_is_appended_by_hand_is_checked():
    p, optimizer = stepped(lstm())
    optimizer.param_groups[0]["params"].append(nn.Parameter(torch.zeros(2, dtype=torch.complex64)))
    with pytest.raises(ValueError, match="does not support complex"):
        optimizer.step()
    named = LearnedOptimizer([("conv", p)], Grouped({"conv": SGD(0.1)}, {"conv": ["conv*"]}), diagnose_every=1)
    named.param_groups[0]["params"].append(nn.Parameter(torch.zeros(2)))
    with pytest.raises(ValueError, match="2 parameters, but 1 param_names"):
        named.step()
    diagnosed = LearnedOptimizer([("conv", p)], SGD(0.1), diagnose_every=1)
    diagnosed.param_groups[0]["params"].append(q := nn.Parameter(torch.ones(2)))
    q.grad = torch.ones(2)
    diagnosed.step()
    assert "cosine/1" in diagnosed.diagnostics()


@pytest.mark.parametrize("make", [lstm, adam_controller])
def test_a_parameter_that_was_replaced_leaves_nothing_in_a_state_dict(make):
    p, optimizer = stepped(make())
    optimizer.param_groups[0]["params"] = [q := nn.Parameter(torch.ones(5))]
    assert not optimizer.state_dict()["state"]
    q.grad = torch.ones(5)
    optimizer.step()
    assert optimizer.state_dict()["state"].keys() == {0}
    optimizer.param_groups[0]["params"] = [p]  # as frozen parameters come back, with their state
    assert optimizer.state[p] and optimizer.state_dict()["state"].keys() == {0}


def test_a_rule_is_its_contents_not_its_path():
    settings = {"class_path": "lightning_l2l.rules.CoordinatewiseLSTM", "init_args": SMALL}
    torch.manual_seed(0)
    rule = lstm()
    save_rule(rule, "mine.safetensors", settings)
    Path("folder").mkdir()
    save_rule(rule, "folder/moved.safetensors", settings)
    _, optimizer = stepped("mine.safetensors")
    for alike in ("./mine.safetensors", Path("mine.safetensors").absolute(), "folder/moved.safetensors", rule):
        _, other = stepped(alike)
        name = other.param_groups[0]["rule"]
        other.load_state_dict(optimizer.state_dict())
        assert other.param_groups[0]["rule"] == name
        other.step()
    save_rule(lstm(), "mine.safetensors", settings)  # trained on
    _, other = stepped("mine.safetensors")
    with pytest.raises(ValueError, match=r"another rule called mine\.safetensors"):
        other.load_state_dict(optimizer.state_dict())
    scaled = copy.deepcopy(rule)
    scaled.output_scale = 0.5
    with pytest.raises(ValueError, match="loaded state dict"):
        stepped(scaled)[1].load_state_dict(stepped(rule)[1].state_dict())


@pytest.mark.parametrize("before", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrapped_names_find_their_group(before):
    rule = Grouped({"conv": SGD(0.1), "fc": SGD(0.3)}, {"conv": ["conv*"], "fc": ["fc.weight"]})
    params = {name: nn.Parameter(torch.zeros(2)) for name in (f"{before}conv1.weight", f"{before}fc._orig_mod.weight")}
    for p in params.values():
        p.grad = torch.ones(2)
    LearnedOptimizer(params.items(), rule).step()
    assert [p[0].item() for p in params.values()] == [pytest.approx(-0.1), pytest.approx(-0.3)]
    with pytest.raises(ValueError, match="parameter other belongs to no group"):
        LearnedOptimizer([(f"{before}other", nn.Parameter(torch.zeros(2)))], rule)
