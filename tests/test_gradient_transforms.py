"""learn2learn's transforms as update rules, and update rules as transforms, against its own GBML."""

import sys
import time
from importlib.util import find_spec

import pytest
import torch
from conftest import skip
from learn2learn_problem import RATE, adapted_gradient, few_steps, our_gradient, started

from lightning_l2l import extras
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules import (
    SGD,
    AdamW,
    CoordinatewiseLSTM,
    GradientTransforms,
    LearnedStart,
    PerCoordinateMLP,
    PerCoordinateSGD,
    RuleTransform,
    layout_of,
)
from lightning_l2l.rules.files import load_rule, save_rule, write_rule

LAYOUT = layout_of({"weight": (4, 3), "bias": (4,)})


@pytest.fixture
def l2l():
    if not find_spec("learn2learn"):
        skip("learn2learn is an extra: uv sync --extra learn2learn")
    return extras.learn2learn("the test")


def transform_of(name, package):
    return {
        "meta_curvature": package.optim.MetaCurvatureTransform,
        "kronecker": package.optim.KroneckerTransform(package.nn.KroneckerLinear),
        "linear": package.optim.ModuleTransform(torch.nn.Linear),
    }[name]


@pytest.mark.parametrize("first_order", [False, True], ids=["second", "first"])
@pytest.mark.parametrize("name", ["meta_curvature", "kronecker", "linear"])
@pytest.mark.parametrize("given", ["itself", "by name"])
def test_meta_gradients_are_those_of_gbml(given, name, first_order, l2l):
    episodes = few_steps()
    make = transform_of(name, l2l)
    rule = started(LearnedStart(GradientTransforms(make if given == "itself" else name, RATE)), episodes)
    far_from_identity(rule.rule.transforms)

    def gbml(network):
        algorithm = l2l.algorithms.GBML(network, make, lr=RATE, first_order=first_order).double()
        theirs = list(algorithm.compute_update.parameters())
        for parameter, ours in zip(theirs, rule.rule.parameters(), strict=True):
            parameter.data.copy_(ours.data)
        return algorithm

    for got, want in zip(our_gradient(rule, episodes, first_order), adapted_gradient(gbml, episodes), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12 * want.abs().max().item())


def far_from_identity(transforms):
    for parameter in transforms.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)


@pytest.mark.parametrize("first_order", [False, True], ids=["second", "first"])
def test_a_rule_inside_gbml_has_our_meta_gradients(first_order, l2l):
    episodes = few_steps()
    rule = started(LearnedStart(CoordinatewiseLSTM(hidden_size=3, preprocessing=None)), episodes)

    def gbml(network):
        return l2l.algorithms.GBML(network, RuleTransform(rule.rule), lr=1.0, first_order=first_order)

    for got, want in zip(our_gradient(rule, episodes, first_order), adapted_gradient(gbml, episodes), strict=True):
        assert want.abs().max() > 0
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12 * want.abs().max().item())


@pytest.mark.parametrize("rule", [AdamW(), PerCoordinateMLP(), LearnedStart(SGD()), PerCoordinateSGD()])
def test_a_rule_that_gbml_cannot_serve_is_refused(rule):
    with pytest.raises(InvalidInputError, match=r"GBML"):
        RuleTransform(rule)


def test_the_untrained_rule_is_gradient_descent(l2l):
    for name in ("meta_curvature", "kronecker"):
        rule, grad = GradientTransforms(name, 0.1).bind(LAYOUT), torch.randn(2, 16)
        torch.testing.assert_close(rule.update(grad, rule.init(grad))[0], -0.1 * grad)


@pytest.mark.parametrize("name", ["meta_curvature", "kronecker"])
def test_a_file_holds_the_transforms(name, l2l):
    rule = LearnedStart(GradientTransforms(name, 0.1))
    rule.bind(LAYOUT).start(torch.randn(1, 16))
    far_from_identity(rule.rule.transforms)
    inner = {"class_path": "lightning_l2l.rules.GradientTransforms", "init_args": {"transform": name}}
    settings = {"class_path": "lightning_l2l.rules.LearnedStart", "init_args": {"rule": inner}}
    save_rule(rule, "rule.safetensors", settings)
    before = torch.get_rng_state()
    loaded = load_rule("rule.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in rule.state_dict().items())
    loaded.bind(LAYOUT)
    with pytest.raises(InvalidInputError, match=r"shapes \[\(4, 3\), \(4,\)\], but the optimizee's are \[\(3, 4\)"):
        loaded.bind(layout_of({"weight": (3, 4), "bias": (4,)}))


@pytest.mark.parametrize("declared", [[2, 10**5, 10**5], [2, 10**18, 10**18], [1, -1], [1, 3, 5], [0] * 10**6])
@pytest.mark.parametrize("own", [False, True])
def test_shapes_that_a_file_only_declares_take_no_memory(declared, own, l2l):
    settings = {"class_path": "lightning_l2l.rules.GradientTransforms", "init_args": {"transform": "linear"}}
    write_rule({"shapes": torch.tensor(declared)}, "rule.safetensors", settings)
    began = time.process_time()
    with pytest.raises(InvalidInputError, match="do not fit GradientTransforms"):
        load_rule("rule.safetensors", GradientTransforms("linear") if own else None)
    assert time.process_time() - began < 5


def test_shapes_without_a_transform_are_refused(l2l):
    with pytest.raises(InvalidInputError, match="no transform for one"):
        GradientTransforms("meta_curvature").bind(layout_of({"scalar": ()}))


def test_without_learn2learn_one_sentence_gives_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    want = r"transform: kronecker needs learn2learn, which is not installed: run uv sync --extra learn2learn\."
    with pytest.raises(InvalidInputError, match=want):
        GradientTransforms("kronecker")


def test_importing_learn2learn_prints_no_notice(monkeypatch, capsys):
    monkeypatch.setattr(extras.importlib, "import_module", lambda name: print(f"{name} is old", file=sys.stderr))
    extras.learn2learn("the test")
    assert capsys.readouterr().err == ""
