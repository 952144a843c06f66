"""What a race leaves behind: numbers, table, figure and files."""

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from lightning_l2l.evaluation.intervals import half_width
from lightning_l2l.evaluation.results import (
    Entry,
    Race,
    best_baseline,
    best_entry,
    curves_figure,
    results_table,
    write_results,
)
from lightning_l2l.rules import SGD, Adam


def entries(steps: int) -> list[Entry]:
    curves = torch.arange(steps + 1, 0.0, -1).repeat(3, 1) + torch.tensor([[-1.0], [0.0], [1.0]])
    return [Entry("LSTM", "learned", curves / 2), Entry("SGD", "baseline", curves, SGD(0.1), {"learning_rate": 0.1})]


def flat(*losses: float) -> torch.Tensor:
    """Curves of 30 steps at one loss an episode."""
    return torch.tensor(losses)[:, None].repeat(1, 31)


def races(*steps: int) -> list[Race]:
    return [Race("uniform" if index == 0 else "longer", entries(s)) for index, s in enumerate(steps)]


def test_numbers_are_those_of_the_curves():
    learned, baseline = Race("uniform", entries(120)).numbers()
    assert baseline == {
        "initial": 121,
        "at_20": 101,
        "at_100": 21,
        "last10": 5.5,
        "sum": 120 * 121 / 2,
        "reaches_best": 116,
    }
    assert learned["reaches_best"] == 110  # (121 - t) / 2 ≤ 5.5


def test_numbers_that_there_are_not_are_empty():
    first, longer, longest = (Race("uniform", entries(steps)).numbers()[1] for steps in (19, 20, 100))
    assert (first["at_20"], longer["at_20"], longer["at_100"], longest["at_100"]) == (None, 1, None, 1)
    slow = [Entry("LSTM", "learned", flat(30.0, 30.0)), *entries(30)[1:]]
    assert Race("uniform", slow).numbers()[0]["reaches_best"] is None
    diverged = [entries(30)[0], Entry("SGD", "baseline", flat(torch.nan, torch.nan))]
    assert [row["reaches_best"] for row in Race("uniform", diverged).numbers()] == [None, None]


def test_intervals_are_students():
    """t of .975 is 12.7062 of one degree of freedom, 4.3027 of two, and 1.984 of a hundred."""
    assert half_width([0.0, 2.0]) == pytest.approx(12.7062, abs=1e-4)
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.3027 / 3**0.5, abs=1e-4)
    assert half_width([-1.0, 1.0] * 50 + [0.0]) == pytest.approx(1.984 / 101**0.5, abs=1e-4)
    assert half_width([1.0]) is None
    assert np.isnan(half_width([1.0, torch.inf]))


def test_differences_to_the_best_baseline_are_paired():
    race = Race("", [
        Entry("LSTM", "learned", flat(1.0, 12.0, 23.0)),
        Entry("rival", "rival", flat(0.0, 0.0, 0.0)),  # which is no baseline, however good it is
        Entry("good", "baseline", flat(2.0, 12.0, 22.0)),
        Entry("bad", "baseline", flat(3.0, 13.0, 23.0)),
    ])  # fmt: skip
    learned, rival, good, bad = race.intervals()
    assert learned["last10_half_width"] == pytest.approx(4.3027 * 11 / 3**0.5, rel=1e-4)
    assert (learned["last10_to_best"], learned["sum_to_best"]) == (0.0, 0.0)
    assert learned["last10_to_best_half_width"] == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert learned["sum_to_best_half_width"] == pytest.approx(30 * 4.3027 / 3**0.5, rel=1e-4)
    assert rival["last10_to_best"] == -12.0
    assert good["last10_to_best"] is None and good["last10_half_width"] is not None
    assert (bad["last10_to_best"], bad["last10_to_best_half_width"]) == (1.0, 0.0)


def test_a_last_loss_may_count_alone():
    curves = torch.tensor([[9.0, 1.0, 1.0, 4.0], [9.0, 2.0, 2.0, 2.0]])
    race = Race("few", [Entry(str(row), "baseline", curve[None], last=1) for row, curve in enumerate(curves)])
    assert [row["last10"] for row in race.numbers()] == [4.0, 2.0]
    others = ("at_20", "at_100", "sum", "reaches_best")  # of another loss before the last step
    assert all(row[name] is None for row in race.numbers() for name in others)
    assert [row["initial"] for row in race.numbers()] == [9.0, 9.0] and race.intervals()[0]["sum_to_best"] is None
    assert best_entry(race.entries).name == "1"
    assert race.intervals()[0]["last10_to_best"] == 2.0
    earlier = [replace(entry, last=10) for entry in race.entries]
    assert Race("few", earlier).numbers()[0]["last10"] == 2.0


def test_the_best_baseline_is_a_rule():
    good, diverged = Adam(0.1), SGD(0.1)
    race = [
        Entry("LSTM", "learned", flat(0.0)),
        Entry("SGD", "baseline", flat(torch.nan), diverged),
        Entry("Adam", "baseline", flat(3.0), good),
    ]
    assert best_baseline(race) is good
    assert best_baseline(race[:1]) is None


def test_results_are_written(tmp_path):
    write_results(races(30), tmp_path, "quadratic")
    with (tmp_path / "results.csv").open() as file:
        header, *rows = csv.reader(file)
    columns = "experiment,variant,rule,learning_rate,episodes,horizon,initial,at_20,at_100,last10,sum,reaches_best"
    columns += ",last10_half_width,sum_half_width,last10_to_best,last10_to_best_half_width,sum_to_best"
    assert ",".join(header) == columns + ",sum_to_best_half_width,kind,run,tuned_with,weights"
    assert rows[0][:12] == ["quadratic", "uniform", "LSTM", "", "3", "30", "15.5", "5.5", "", "2.75", "232.5", "20"]
    assert rows[1][:6] == ["quadratic", "uniform", "SGD", "0.1", "3", "30"]
    assert rows[0][14] == "-2.75" and rows[1][14] == ""
    assert [row[-4] for row in rows] == ["learned", "baseline"]
    with np.load(tmp_path / "curves.npz") as curves:
        np.testing.assert_allclose(curves["SGD_mean"], np.arange(31, 0, -1))
        np.testing.assert_allclose(curves["SGD_std"], np.sqrt(2 / 3), rtol=1e-6)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_settings_tuned_together_are_written(tmp_path):
    tuned = {"learning_rate": 0.1, "weight_decay": 0.01}
    write_results([Race("uniform", [*entries(30), Entry("AdamW", "baseline", flat(1.0), None, tuned)])], tmp_path, "q")
    with (tmp_path / "results.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    assert (row["learning_rate"], row["tuned_with"], row["last10_half_width"]) == ("0.1", "weight_decay=0.01", "")


def with_accuracy(*shares: float) -> list[Entry]:
    learned, baseline = entries(30)
    return [replace(learned, accuracy=torch.tensor(shares)), baseline]


def test_accuracies_are_written_where_a_rule_has_one(tmp_path):
    """t of .975 is 4.3027 of two degrees of freedom."""
    write_results([Race("uniform", entries(30)), Race("classes", with_accuracy(0.8, 0.9, 1.0))], tmp_path, "q")
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[-2:] == ["accuracy", "accuracy_half_width"]
    assert [row["accuracy"] for row in rows] == ["", "", "0.9", ""]
    assert float(rows[2]["accuracy_half_width"]) == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)


def test_the_table_marks_the_highest_accuracy():
    learned, baseline = with_accuracy(0.8, 0.8, 0.8)
    race = [learned, replace(baseline, accuracy=torch.full((3,), 0.75)), baseline]
    column = results_table([Race("uniform", race)], "q").columns[-1]
    assert column.header == "accuracy" and list(column.cells) == ["[bold]0.8 ± 0", "0.75 ± 0", ""]
    assert results_table(races(30), "q").columns[-1].header == "last10 minus\nbest baseline"
    mixed = results_table([*races(30), Race("classes", race)], "q").columns[-1]
    assert list(mixed.cells)[:2] == ["", ""]


def test_the_table_names_every_rule():
    table = results_table(races(30), "quadratic")
    assert list(table.columns[0].cells) == ["LSTM", "SGD"]
    assert list(table.columns[1].cells) == ["learned", "0.1"]


def test_the_table_fits_a_terminal():
    """120 columns, with numbers as long as they get and no row on two lines."""
    curves = torch.rand(5, 1001) * 1.2345e-5
    rules = ["LSTM seed 10", "mnist_scaled", "RMSprop", "CosineAdam"]
    race = [Entry(name, "rival", curves + n * 1e-7) for n, name in enumerate(rules)]
    race.append(Entry("AdamW", "baseline", curves * 1.7, None, {"learning_rate": 0.0001778}))
    console = Console(width=120, record=True)
    console.print(results_table([Race("uniform", race)], "quadratic"))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 120
    assert len([line for line in lines if line.startswith("│") and "e-0" in line]) == 5
    assert not any("…" in line for line in lines)


def test_a_diverging_rule_can_be_drawn(tmp_path):
    broken = [Entry("broken", "rival", flat(torch.nan, torch.nan, 1.0)), *entries(30)]
    write_results([Race("uniform", broken)], tmp_path, "quadratic")


@pytest.mark.parametrize("first", [torch.nan, torch.inf, -torch.inf, -1.0])
@pytest.mark.parametrize("later", [torch.nan, -torch.inf, 0.0, 1.0])
def test_losses_that_a_log_scale_cannot_show_are_left_out(first, later, tmp_path):
    curves = torch.tensor([first, *[later] * 30]).repeat(3, 1)
    write_results([Race("uniform", [Entry("broken", "learned", curves)])], tmp_path, "quadratic")


def test_variants_share_one_table_and_one_figure(tmp_path):
    write_results(races(30, 120), tmp_path, "quadratic")
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == ["uniform", "uniform", "longer", "longer"]
    assert [row["horizon"] for row in rows] == ["30", "30", "120", "120"]
    with np.load(tmp_path / "curves.npz") as curves:
        assert len(curves["SGD_mean"]) == 31
        assert len(curves["longer_SGD_mean"]) == 121
    table = results_table(races(30, 120), "quadratic")
    assert list(table.columns[0].cells)[2] == "[italic]longer: 3 episodes of 120 steps"
    assert len([axes for axes in curves_figure(races(30, 120, 5, 5), "quadratic").axes if axes.axison]) == 4


def test_an_interval_of_losses_too_large_for_float64_is_nan():
    assert math.isnan(half_width([1e200, 0.0, 1.0])) and math.isnan(half_width([1e308, 1e308]))
    assert math.isnan(half_width([1e154, -1e154, 1e154]))
