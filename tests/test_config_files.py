"""Shipped configs, and configs laid upon one another."""

from pathlib import Path

import pytest
import yaml
from command_line import CONFIGS, FOLDER, UPON, fit, given, tiny

from lightning_l2l.cli import main


@pytest.mark.parametrize("config", CONFIGS)
def test_every_shipped_config_runs(config):
    fit("--trainer.fast_dev_run=true", config=config)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_shipped_config_is_commented(config):
    """Each key has its comment, where it first stands."""
    known = {"class_path", "save_dir", "name", "network"}
    for file in [*([UPON[config]] if config in UPON else []), config]:
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
    assert settings["model"]["init_args"]["unroll"] == unrolls.get(UPON.get(config, config).removesuffix(".yaml"), 20)
    assert settings["comparison"]["rates_per_decade"] == 4
    assert "# K, steps between two meta-steps; must divide the horizon." in printed


def test_configs_compose_and_flags_beat_them(capsys):
    Path("mine.yaml").write_text("model:\n  learning_rate: 0.5\n  unroll: 50\n")
    with pytest.raises(SystemExit):
        main(["fit", "--config", "quadratic.yaml", "--config", "mine.yaml", "--model.unroll=25", "--print_config"])
    settings = yaml.safe_load(capsys.readouterr().out)
    model = settings["model"]["init_args"]
    assert (model["learning_rate"], model["unroll"]) == (0.5, 25)
    assert settings["data"]["init_args"]["distribution"] == "uniform"


def test_an_unknown_config_lists_those_there_are(fails):
    sentence = fails("fit", "--config", "nope.yaml")
    assert "nope.yaml" in sentence
    assert all(Path(name).stem in sentence for name in CONFIGS)


def test_an_unknown_key_in_a_config_is_named(fails):
    Path("mine.yaml").write_text("model:\n  unrol: 5\n")
    assert "unrol" in fails(*tiny("fit", "--config", "mine.yaml"))
