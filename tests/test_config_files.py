"""Shipped configs, and configs laid upon one another."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from command_line import CONFIGS, FOLDER, fit, given, tiny, with_bases
from conftest import skip

from lightning_l2l.cli import main


@pytest.mark.parametrize("config", CONFIGS)
def test_every_shipped_config_runs(config):
    if config.startswith("omniglot") and not find_spec("learn2learn"):
        skip("learn2learn is an extra: uv sync --extra learn2learn")
    fit("--trainer.fast_dev_run=true", config=config)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_shipped_config_is_commented(config):
    """Each key has its comment, where it first stands."""
    known = {"class_path", "save_dir", "name", "network"}
    for file in with_bases(config):
        for line in (FOLDER / file).read_text().splitlines():
            key, _, value = (part.strip() for part in line.partition(":"))
            if value and not line.startswith("#"):
                assert "#" in value or key in known, line
                known.add(key)


@pytest.mark.parametrize("config", CONFIGS)
def test_print_config_is_complete_and_commented(config, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *given(config), "--print_config"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    settings = yaml.safe_load(printed)
    unrolls = {"neural_art": 32, "cifar10": 50, "everyday": 50, "own_workload": 50, "omniglot_maml": 1}
    threes = "omniglot_lstm.yaml", "omniglot_lstm_start.yaml", "omniglot_ravi.yaml"
    unroll = 3 if config in threes else unrolls.get(with_bases(config)[0].removesuffix(".yaml"), 20)
    assert settings["comparison"]["rates_per_decade"] == 4
    if config == "omniglot_learn2learn.yaml":  # has a learner of its own
        assert "# of Adam on the network's start." in printed
        return
    assert settings["model"]["init_args"]["unroll"] == unroll
    assert "# K, steps between two meta-steps; must divide the horizon." in printed


def test_configs_compose_and_flags_beat_them(capsys):
    Path("mine.yaml").write_text("model:\n  learning_rate: 0.5\n  unroll: 50\n")
    with pytest.raises(SystemExit):
        main(["fit", "--config", "quadratic.yaml", "--config", "mine.yaml", "--model.unroll=25", "--print_config"])
    settings = yaml.safe_load(capsys.readouterr().out)
    model = settings["model"]["init_args"]
    assert (model["learning_rate"], model["unroll"]) == (0.5, 25)
    assert settings["data"]["init_args"]["distribution"] == "uniform"


def test_a_config_may_replace_the_learner_of_those_before_it(capsys):
    Path("mine.yaml").write_text(
        "model: {class_path: test_forking_learner.LastLoss, init_args: {rule: {class_path: lightning_l2l.rules.SGD}}}"
    )
    for last in ({}, {"model": {"steps": 7}}):
        Path("last.yaml").write_text(yaml.safe_dump(last))
        with pytest.raises(SystemExit):
            main(
                ["fit", *(f"--config={one}" for one in ("quadratic.yaml", "mine.yaml", "last.yaml")), "--print_config"]
            )
        settings = yaml.safe_load(capsys.readouterr().out)
        assert settings["model"]["init_args"] == {
            "rule": {"class_path": "lightning_l2l.rules.SGD", "init_args": {"learning_rate": 0.01}},
            "steps": last.get("model", {}).get("steps", 10),
        }
        assert settings["data"]["init_args"]["distribution"] == "uniform"
    Path("mine.yaml").write_text("model: {class_path: lightning_l2l.learners.MetaLearner}")  # which it is by default
    with pytest.raises(SystemExit):
        main(["fit", "--config=cifar10.yaml", "--config=mine.yaml", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["unroll"] == 50


def test_an_unknown_config_lists_those_there_are(fails):
    sentence = fails("fit", "--config", "nope.yaml")
    assert "nope.yaml" in sentence
    assert all(Path(name).stem in sentence for name in CONFIGS)


def test_an_unknown_key_in_a_config_is_named(fails):
    Path("mine.yaml").write_text("model:\n  unrol: 5\n")
    assert "unrol" in fails(*tiny("fit", "--config", "mine.yaml"))
