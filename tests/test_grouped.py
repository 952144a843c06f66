"""One rule for each group of parameters, from the command line."""

import torch
from command_line import fit, results, tiny
from conftest import weights

from lightning_l2l.cli import main


def test_a_parameter_without_a_group_is_named(fails):
    flag = "--model.rule.init_args.groups={conv: [conv*], fc: [fc1*]}"
    sentence = fails(*tiny("fit", flag, config="cifar10.yaml"))
    assert "fc2.weight belongs to no group" in sentence


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
