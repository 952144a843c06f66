"""One rule for each group of parameters, from the command line."""

import pytest
import torch
from command_line import fit, results, tiny
from conftest import weights

from lightning_l2l.cli import main
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules import SGD, Grouped
from lightning_l2l.rules.base import layout_of


def test_a_parameter_without_a_group_is_named(fails):
    flag = "--model.rule.init_args.groups={conv: [conv*], fc: [fc1*]}"
    sentence = fails(*tiny("fit", flag, config="cifar10.yaml"))
    assert "fc2.weight belongs to no group" in sentence


@pytest.mark.parametrize("patterns", [["fc*"], ["conv*", "none*"]], ids=["no group", "an empty group"])
def test_groups_that_do_not_fit_are_those_of_the_rule_wherever_it_was_given(patterns):
    rule = Grouped({name: SGD() for name in patterns}, {name: [name] for name in patterns})
    with pytest.raises(InvalidInputError, match="change the patterns of the rule's groups"):
        rule.bind(layout_of({"conv.weight": (2, 2)}))


def test_groups_train_race_and_resume():
    fit(config="cifar10.yaml")
    last = "runs/cifar10/version_0/checkpoints/last.ckpt"
    before = weights(last)
    fit("--trainer.max_epochs=3", "--ckpt_path=last", config="cifar10.yaml")
    assert {key.split(".")[2] for key in before} == {"conv", "fc"}
    for group in ("conv", "fc"):
        key = f"rule.rules.{group}.output.weight"
        assert not torch.equal(weights(last)[key], before[key])
    main(tiny("test", "--ckpt_path=best", config="cifar10.yaml"))
    assert [row["rule"] for row in results("runs/cifar10/version_0")] == ["LSTM", "SGD", "NAG", "RMSprop", "Adam"]
