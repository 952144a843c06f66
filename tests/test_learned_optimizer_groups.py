"""The param groups of LearnedOptimizer, each with a rule and factors of its own."""

import copy

import pytest
import torch
from own_loop import SMALL, lstm
from torch import nn

from lightning_l2l import LearnedOptimizer
from lightning_l2l.optimizees import ConvNet
from lightning_l2l.pretrained import save_rule
from lightning_l2l.rules import SGD, Adam, GlobalAveragingLSTM, Grouped


def test_groups_may_name_rules_factors_and_join_later():
    rule = lstm()
    save_rule(rule, "mine.safetensors", {"class_path": "lightning_l2l.rules.CoordinatewiseLSTM", "init_args": SMALL})
    a, b, c, d = (torch.zeros(40, requires_grad=True) for _ in range(4))
    groups = [{"params": [a]}, {"params": [b], "rule": SGD(0.5), "lr": 2.0}, {"params": c, "scale": 0.5, "lr": 0.5}]
    optimizer = LearnedOptimizer(groups, rule)
    optimizer.add_param_group({"params": [d], "rule": "mine.safetensors"})
    for p in (a, b, c, d):
        p.grad = torch.linspace(-1, 1, 40)
    optimizer.step()
    assert [group["rule"] for group in optimizer.param_groups] == ["LSTM", "SGD", "LSTM", "mine.safetensors"]
    torch.testing.assert_close(b, -1.0 * b.grad)
    torch.testing.assert_close(c, 0.25 * a)
    torch.testing.assert_close(d, a)


def test_two_rules_of_one_kind_are_told_apart():
    a, b = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    optimizer = LearnedOptimizer([{"params": a, "rule": SGD(0.1)}, {"params": b}], SGD(0.2))
    assert {group["rule"] for group in optimizer.param_groups} == {"SGD", "SGD 2"}
    a.grad = b.grad = torch.ones(1)
    optimizer.step()
    assert (a.item(), b.item()) == (pytest.approx(0.9), pytest.approx(0.8))


def test_grouped_rules_find_their_parameters_by_name_or_by_group():
    model = ConvNet(image_size=8, channels=(2,), hidden_sizes=(3,))
    rule = Grouped({"conv": SGD(0.1), "fc": SGD(0.3)}, {"conv": ["conv*"], "fc": ["fc*"]})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    parts = [[p for name, p in model.named_parameters() if name.startswith(kind)] for kind in ("conv", "fc")]
    groups = [{"params": parts[0], "rule": "conv"}, {"params": parts[1], "rule": "fc"}]
    for optimizer in (LearnedOptimizer(model.named_parameters(), rule), LearnedOptimizer(groups, rule)):
        model(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p, before[name] - (0.1 if "conv" in name else 0.3) * p.grad)
            before[name] = p.detach().clone()
        optimizer.zero_grad()
    with pytest.raises(ValueError, match="has one rule for each of conv, fc: give model"):
        LearnedOptimizer(model.parameters(), rule)
    with pytest.raises(ValueError, match=r"weight belongs to no group.* give groups of parameters that each name one"):
        LearnedOptimizer(nn.Linear(2, 2).named_parameters(), rule)


def test_a_group_that_is_refused_is_not_added():
    optimizer = LearnedOptimizer([torch.zeros(2, requires_grad=True)], lstm())
    with pytest.raises(ValueError):
        optimizer.add_param_group({"params": [torch.zeros(2, requires_grad=True)], "lr": -1})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": optimizer.param_groups[0]["params"]})


def test_parameters_stepped_together_keep_the_finest_type():
    small, large = torch.ones(1, requires_grad=True), torch.ones(1, dtype=torch.double, requires_grad=True)
    optimizer = LearnedOptimizer([small, large], Adam(1e-9))
    small.grad, large.grad = torch.ones(1), torch.ones(1, dtype=torch.double)
    optimizer.step()
    assert 0 < 1 - large.item() < 2e-9


@pytest.mark.parametrize("before", [0, 3])
def test_a_copy_knows_a_rule_given_by_hand(before):
    p = torch.ones(2, requires_grad=True)
    optimizer = LearnedOptimizer([p], "mnist")
    p.grad = torch.ones(2)
    for _ in range(before):
        optimizer.step()
    optimizer.param_groups[0]["rule"] = "quadratic"
    other = copy.deepcopy(optimizer)
    q = other.param_groups[0]["params"][0]
    q.grad = torch.ones(2)
    for _ in range(2):
        optimizer.step()
        other.step()
        assert torch.equal(p, q) and not torch.equal(p, torch.ones(2))


def test_a_group_that_is_gone_is_not_taken_for_a_new_one():
    a, b, c = (torch.ones(2, requires_grad=True) for _ in range(3))
    optimizer = LearnedOptimizer([{"params": [a]}, {"params": [b]}], GlobalAveragingLSTM(hidden_size=4, averaged=1))
    for number in range(20):  # so that a new dictionary may lie where the old one lay
        for p in (a, b, c):
            p.grad = torch.ones(2)
        optimizer.step()
        del optimizer.param_groups[1]
        optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
        optimizer.param_groups[1]["params"][0].grad = torch.ones(2)
        assert len(optimizer.param_groups) == 2, number
