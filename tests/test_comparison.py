"""Tuning, and what a race leaves behind."""

import csv

import numpy as np
import pytest
import torch

from lightning_l2l.comparison import BASELINES, Entry, learning_rates, results_table, tune, write_results
from lightning_l2l.optimizees import Quadratics
from lightning_l2l.rules import SGD
from lightning_l2l.unroll import learning_curves


def entries(steps: int) -> list[Entry]:
    curves = torch.arange(steps + 1, 0.0, -1).repeat(3, 1) + torch.tensor([[-1.0], [0.0], [1.0]])
    return [Entry("LSTM", None, curves / 2), Entry("SGD", 0.1, curves)]


def test_the_grid_is_fine_and_wide_enough():
    rates = learning_rates(4)
    assert rates[0].item() == pytest.approx(1e-4)
    assert rates[-1].item() == pytest.approx(10)
    assert len(rates) == 21


@pytest.mark.parametrize("baseline", BASELINES)
def test_tuning_finds_the_best_rate_of_the_grid(baseline):
    episodes, rates = Quadratics().episodes("tune", range(8)), learning_rates(4)
    finals = [learning_curves(baseline(r.item()), episodes, 30)[:, -10:].mean().nan_to_num(torch.inf) for r in rates]
    assert tune(baseline, episodes, 30, rates) == pytest.approx(rates[int(torch.stack(finals).argmin())].item())


def test_diverging_rates_are_never_chosen():
    assert tune(SGD, Quadratics().episodes("tune", range(4)), 100, torch.tensor([1e-3, 10.0])) == pytest.approx(1e-3)


def test_numbers_are_those_of_the_curve():
    numbers = entries(120)[1].numbers()
    assert numbers == {"initial": 121, "at_20": 101, "at_100": 21, "last10": 5.5, "sum": 120 * 121 / 2}


def test_numbers_beyond_the_horizon_are_empty():
    assert entries(20)[1].numbers()["at_20"] == 1
    assert entries(20)[1].numbers()["at_100"] is None
    assert entries(19)[1].numbers()["at_20"] is None


def test_results_are_written(tmp_path):
    write_results(entries(30), tmp_path, "quadratic", "uniform")
    with (tmp_path / "results.csv").open() as file:
        header, *rows = csv.reader(file)
    assert ",".join(header) == "experiment,variant,rule,learning_rate,episodes,horizon,initial,at_20,at_100,last10,sum"
    assert rows[0] == ["quadratic", "uniform", "LSTM", "", "3", "30", "15.5", "5.5", "", "2.75", "232.5"]
    assert rows[1][:6] == ["quadratic", "uniform", "SGD", "0.1", "3", "30"]
    with np.load(tmp_path / "curves.npz") as curves:
        np.testing.assert_allclose(curves["SGD_mean"], np.arange(31, 0, -1))
        np.testing.assert_allclose(curves["SGD_std"], np.sqrt(2 / 3), rtol=1e-6)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_names_every_rule():
    table = results_table(entries(30), "quadratic", "uniform")
    assert list(table.columns[0].cells) == ["LSTM", "SGD"]
    assert list(table.columns[1].cells) == ["learned", "0.1"]


def test_a_diverging_rule_can_be_drawn(tmp_path):
    broken = [Entry("LSTM", None, torch.full((2, 31), torch.nan)), *entries(30)]
    write_results(broken, tmp_path, "quadratic", "uniform")
