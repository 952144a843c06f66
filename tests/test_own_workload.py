"""Fitting a trained rule to a workload of one's own."""

from pathlib import Path

import pytest
import torch
import yaml
from command_line import TINY_OWN
from conftest import same, weights
from small_benchmark import problem

from lightning_l2l import LearnedOptimizer
from lightning_l2l.cli import main
from lightning_l2l.rules import AdamController
from lightning_l2l.rules.files import load_rule, save_rule

SETTINGS = {
    "class_path": "lightning_l2l.rules.AdamController",
    "init_args": {"all_sides": True, "warm_up": 8, "fade_orthogonal": True},
}
CHECKPOINTS = Path("runs/own_workload/version_0/checkpoints")


@pytest.fixture
def begun() -> dict[str, torch.Tensor]:
    """A trained rule's numbers, in begun.safetensors."""
    rule = AdamController(**SETTINGS["init_args"])
    for parameter in rule.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_rule(rule, "begun.safetensors", SETTINGS)
    return rule.state_dict()


def own(command: str, *flags: str, **data) -> None:
    """A command on a workload that only its data describes."""
    Path("mine.yaml").write_text(yaml.safe_dump({"data": problem(**data)}))
    main([command, "--config", "own_workload.yaml", "--config", "mine.yaml", *flags])


def fit(*flags: str) -> None:
    own("fit", *TINY_OWN, *flags)


def test_data_alone_describes_a_workload(capsys):
    with pytest.raises(SystemExit) as stopped:
        own("fit", "--print_config", horizon=2000)
    assert stopped.value.code == 0
    data = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]
    assert data["source"]["init_args"]["name"] == "wine"
    assert (data["horizon"], data["episodes_per_batch"], data["relative_loss"]) == (2000, 4, True)


def test_a_fit_begins_with_a_trained_rule_goes_on_and_is_exported(begun):
    fit("--ckpt_path=pretrained:begun.safetensors")
    fitted = weights(CHECKPOINTS / "last.ckpt")
    for name, tensor in begun.items():
        assert 0 < (fitted[f"rule.{name}"] - tensor).abs().max() < 0.05  # a few steps away
    fit("--ckpt_path=last", "--trainer.max_epochs=3")
    further = weights(CHECKPOINTS / "last.ckpt")
    assert not same(fitted, further)
    main(["export", f"--ckpt_path={CHECKPOINTS}/last.ckpt", "--output=mine.safetensors"])
    rule = load_rule("mine.safetensors")
    assert isinstance(rule, AdamController)
    assert same(rule.state_dict(), {name.removeprefix("rule."): tensor for name, tensor in further.items()})
    model = torch.nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    LearnedOptimizer(model.named_parameters(), "mine.safetensors").step()


def test_a_fit_that_is_continued_is_that_of_one_go(begun):
    """To the bit where the rate does not fall with the time, which is never the same."""
    begin = ("--ckpt_path=pretrained:begun.safetensors", "--model.final_learning_rate=null")
    fit(*begin, "--trainer.max_epochs=1")
    fit("--ckpt_path=last", begin[1])
    fit(*begin)
    in_one_go = Path("runs/own_workload/version_1/checkpoints/last.ckpt")
    assert same(weights(CHECKPOINTS / "last.ckpt"), weights(in_one_go))


def test_a_time_limit_ends_a_fit_with_a_low_rate_and_a_validated_rule(begun):
    fit("--ckpt_path=pretrained:begun.safetensors", "--trainer.max_epochs=1000", "--trainer.max_time=00:00:00:02")
    last = torch.load(CHECKPOINTS / "last.ckpt", weights_only=True)
    assert last["global_step"] > 0 and last["epoch"] < 900
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] < 0.002  # of 0.003 at the start
    assert (CHECKPOINTS / "best.ckpt").is_file()


def test_a_fit_ends_with_the_next_command(begun, capsys, monkeypatch):
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    fit()
    checkpoint = CHECKPOINTS / "best.ckpt"
    printed = capsys.readouterr().out
    assert f"  python -m lightning_l2l export --output mine.safetensors --ckpt_path {checkpoint}" in printed
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    fit("--comparison.baselines=[lightning_l2l.rules.SGD]", "--comparison.rates_per_decade=1")
    assert "  uv run python -m lightning_l2l test --config own_workload.yaml" in capsys.readouterr().out
