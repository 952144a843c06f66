"""The arithmetic of a benchmark's score, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from lightning_l2l.evaluation.suite.entries import Entry, Paired, rows
from lightning_l2l.evaluation.suite.scores import (
    at_best_validation,
    bootstrap,
    bounded,
    diverged,
    interquartile_mean,
    log_ratios,
    published_loss,
    score,
)

NAN = math.nan


def test_losses_are_bounded_by_their_first():
    first = np.full(5, 2.0)
    losses = np.array([0.0, 0.5, 100.0, NAN, math.inf])
    assert bounded(losses, first).tolist() == [0.002, 0.5, 20.0, 20.0, 20.0]


def test_ratios_are_paired_seed_by_seed():
    first, reference = np.array([4.0, 4.0]), np.array([1.0, 0.25, 9.0])  # of which the third seed did not run here
    assert np.allclose(log_ratios(np.array([0.5, 0.5]), reference, first), [math.log(0.5), math.log(2)])


def test_the_score_is_a_mean_over_problems_of_means_over_seeds():
    ratios = {"one": np.log([0.5, 0.5, 0.5, 0.5]), "two": np.log([2.0, 0.5]), "three": np.log([0.25])}
    found = score(ratios)
    assert found.mean == pytest.approx((0.5 * 1 * 0.25) ** (1 / 3))
    assert (found.worst, found.worst_problem) == (pytest.approx(1.0), "two")
    assert found.low < found.mean < found.high


def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end():
    assert interquartile_mean(np.array([100.0, 1.0, 2.0, 3.0, 4.0, -50.0, 5.0, 0.0])) == pytest.approx(2.5)
    assert interquartile_mean(np.array([1.0, 3.0, 8.0])) == pytest.approx(4.0)


def test_the_bootstrap_draws_problems_then_seeds():
    same = [np.log([0.3, 0.3])] * 4
    assert bootstrap(same) == (pytest.approx(0.3), pytest.approx(0.3))
    random = np.random.default_rng(1)
    problems = [random.normal(mean, 0.01, 5) for mean in random.normal(0, 1, 16)]
    low, high = bootstrap(problems)
    means = np.array([problem.mean() for problem in problems])
    half = 1.96 * means.std() / math.sqrt(16)  # of the mean of problems, whose seeds hardly differ
    assert math.log(low) == pytest.approx(means.mean() - half, abs=0.06)
    assert math.log(high) == pytest.approx(means.mean() + half, abs=0.06)
    noisy = [random.normal(0, 1, 4) for _ in range(4)]
    fixed = [np.full(4, values.mean()) for values in noisy]
    wide, narrow = (math.log(high) - math.log(low) for low, high in map(bootstrap, (noisy, fixed)))
    assert wide > 1.2 * narrow  # seeds add to it


def test_divergence_is_a_loss_above_its_start_or_none_at_all():
    assert diverged(np.array([1.0, 2.0, 2.1, NAN, math.inf]), np.full(5, 2.0)) == 3


def test_the_step_is_chosen_on_validation_alone():
    assert at_best_validation(np.array([3.0, 1.0, 2.0, NAN]), np.array([3.0, 1.5, 0.1, 0.0])) == 1.5


def test_published_curves_are_interpolated_between_close_points():
    curve = {978: 3.0, 1174: 1.0, 1957: 0.5, 2153: 0.3}
    assert published_loss(curve, 1076) == pytest.approx(2.0)
    assert published_loss(curve, 1957) == 0.5
    assert published_loss(curve, 1500) is None and published_loss(curve, 5000) is None and published_loss({}, 9) is None


def record(losses: list[float], smoothed: float = NAN, seconds: float = 1.0) -> np.ndarray:
    """A run whose held-out loss is twice its training loss, and whose validation loss is three times as high."""
    count = len(losses)
    columns = [range(count), losses, np.multiply(losses, 3), np.multiply(losses, 2), [smoothed] * count]
    return np.array([*columns, np.linspace(0, seconds, count)], dtype=float).T


def test_rows_summarise_and_list_the_problems():
    reference = Entry("Adam 1e-3", 2, {name: np.stack([record([4, 2, 1])] * 2) for name in ("one", "two")})
    own = {
        "one": np.stack([record([4, 1, 0.5], 0.2, 3.0), record([4, 0.25, 0.5], 0.4, 3.0)]),
        "two": np.stack([record([4, 5, NAN], NAN, 2.0)]),
    }
    found = rows(Paired(Entry("ours", 2, own, {"one": 0.1}), reference), {"one": {2: 0.35}})
    total, one, two = found
    assert (total["problem"], total["diverged"], total["worst_problem"]) == ("all", 1, "two")
    assert total["ratio"] == pytest.approx(math.sqrt(0.5 * 40))  # what is not finite counts as ten times the first
    assert total["seconds_ratio"] == pytest.approx(math.sqrt(6)) and total["published"] == "below 1 of 1"
    assert (one["ratio"], one["rate"], one["loss"]) == (pytest.approx(0.5), 0.1, 0.5)
    assert one["held_out_ratio"] == pytest.approx(math.sqrt(0.5 * 0.25))
    assert (one["smoothed"], one["published"]) == (pytest.approx(0.3), 0.35)
    assert (two["diverged"], two["held_out_ratio"], two["published"]) == (1, pytest.approx(4.0), "")


def test_seconds_of_runs_that_were_broken_off_do_not_count():
    reference = Entry("Adam 1e-3", 2, {name: np.stack([record([4, 2, 1])]) for name in ("one", "two")})
    broken = record([4, NAN, NAN], seconds=0.1)
    broken[2, 5] = NAN
    own = {"one": np.stack([broken, broken, record([4, 2, 1], seconds=3.0)]), "two": np.stack([broken])}
    pair = Paired(Entry("ours", 2, own), reference)
    assert pair.entry.seconds("one") == 3.0 and math.isnan(pair.entry.seconds("two"))
    assert pair.seconds_ratio() == pytest.approx(3.0)
    assert math.isnan(Paired(Entry("ours", 2, {"two": own["two"]}), reference).seconds_ratio())
