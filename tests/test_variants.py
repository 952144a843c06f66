"""Further races of a test, each with some settings of the data changed."""

from pathlib import Path

import pytest
from command_line import RUN, fit, results, tiny

from lightning_l2l.cli import main

VARIANTS = """
variants:
  longer: {horizon: 15}
  larger: {dimension: 5}
"""


def test_a_test_races_on_all_variants(fitted):
    Path("variants.yaml").write_text(VARIANTS)
    main(tiny("test", "--config", "variants.yaml", "--ckpt_path=best"))
    rows = results()
    assert [(row["variant"], row["horizon"]) for row in rows[::5]] == [
        ("uniform", "10"),
        ("longer", "15"),
        ("larger", "10"),
    ]
    assert len({row["initial"] for row in rows}) == 2  # the longer one starts where the first did
    learned = [float(row["sum"]) for row in rows if row["rule"] == "LSTM"]
    assert learned[1] > learned[0]


def test_a_variant_that_the_rule_does_not_fit_is_named_before_the_first_race(fails):
    fit(config="cifar10.yaml")
    Path("variants.yaml").write_text("variants:\n  plain: {network: {class_path: lightning_l2l.optimizees.MLP}}\n")
    sentence = fails(*tiny("test", "--ckpt_path=best", "--config", "variants.yaml", config="cifar10.yaml"))
    assert "variants.plain: parameter 1.weight belongs to no group" in sentence


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ("{horizn: 15}", ["variants.far", "horizn"]),
        ("{horizon: 0}", ["variants.far", "data.horizon is 0"]),
        ("{distribution: cauchy}", ["variants.far", "cauchy"]),
    ],
)
def test_a_wrong_variant_is_named_before_the_first_race(changes, words, fails, fitted):
    Path("variants.yaml").write_text(f"variants:\n  far: {changes}\n")
    sentence = fails(*tiny("test", "--config", "variants.yaml", "--ckpt_path=best"))
    assert all(word in sentence for word in words)
    assert not (RUN / "results.csv").exists()


def test_a_later_config_changes_settings_of_a_variant_keeps_the_others_or_removes_all(fitted):
    Path("variants.yaml").write_text(VARIANTS)
    Path("mine.yaml").write_text("variants:\n  longer: {test_episodes: 3}\n  mine: {horizon: 15}\n")
    main(tiny("test", "--config", "variants.yaml", "--config", "mine.yaml", "--ckpt_path=best"))
    rows = results()
    races = [(row["variant"], row["horizon"], row["episodes"]) for row in rows[::5]]
    assert races == [("uniform", "10", "8"), ("longer", "15", "3"), ("larger", "10", "8"), ("mine", "15", "8")]
    Path("none.yaml").write_text("variants: {}\n")
    main(tiny("test", "--config", "variants.yaml", "--config", "none.yaml", "--ckpt_path=best"))
    assert [row["variant"] for row in results()] == ["uniform"] * 5
