"""Learning rates of rivals: one for all problems, chosen on open problems, or the best for each."""

from collections.abc import Sequence

import numpy as np

from lightning_l2l.evaluation.suite.candidates import Candidate, adam
from lightning_l2l.evaluation.suite.runs import Runs
from lightning_l2l.evaluation.suite.scores import bounded, log_ratios

TUNING_SEEDS = 2


def open_scores(runs: Runs, candidate: Candidate, rates: Sequence[float], length: int) -> np.ndarray:
    """The log ratio to Adam's loss on an open problem, of one run with each rate, [R]."""
    first, *_, reference = runs.record(adam(), 0, length)[:, 1:2].numpy()
    lasts = [runs.record(candidate.with_rate(rate), 0, length)[-1:, 1].numpy() for rate in rates]
    return np.array([log_ratios(last, reference, first)[0] for last in lasts])


def tuned_rate(
    runs: Runs,
    candidate: Candidate,
    rates: Sequence[float],
    length: int,
    halving: bool = False,
) -> float:
    """The rate with the lowest loss at the end on one problem, as a geometric mean over two tuning seeds.

    Args:
        runs: those on the problem.
        candidate: the optimizer.
        rates: what to choose from.
        length: T.
        halving: keep the better half of the rates after an eighth, a quarter and half of the steps. It may miss a rate
            that is slow at first and best in the end.
    """
    left = list(rates)
    stops = [stop for stop in (length // 8, length // 4, length // 2) if stop] if halving else []
    for stop in (*stops, 0):
        means = []
        for rate in left:
            logs = []
            for seed in range(TUNING_SEEDS):
                record = runs.record(candidate.with_rate(rate), seed, length, "tune", stop).numpy()
                logs.append(np.log(bounded(record[-1, 1], record[0, 1])))
            means.append(np.mean(logs))
        order = np.argsort(means, kind="stable")
        left = [left[number] for number in order[: -(-len(order) // 2)]]
    return left[0]
