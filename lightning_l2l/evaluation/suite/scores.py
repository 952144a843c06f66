"""The score of a benchmark: paired log ratios of losses, their means and intervals.

Each run is compared with the reference's run from the same start on the same minibatches. Losses are clipped
to between FLOOR and CEILING times the run's first, so that no single run decides a mean; one that is not finite counts
as the ceiling.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FLOOR = 1e-3
CEILING = 10.0
DRAWS = 10_000  # of the bootstrap
CONFIDENCE = 0.95

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """A summary of the log ratios on all problems, as ratios.

    Attributes:
        mean: the geometric mean over problems, of geometric means over seeds.
        low: the lower end of its 95 % interval.
        high: its upper end.
        interquartile: the geometric mean of the middle half of the problems.
        worst: the largest ratio of a problem.
        worst_problem: its name.
    """

    mean: float
    low: float
    high: float
    interquartile: float
    worst: float
    worst_problem: str


def bounded(losses: Array, first: Array) -> Array:
    """Losses that are not finite, or beyond what counts, are moved to the nearest that counts."""
    return np.clip(np.where(np.isfinite(losses), losses, np.inf), FLOOR * first, CEILING * first)


def log_ratios(losses: Array, reference: Array, first: Array) -> Array:
    """The logarithms of a candidate's losses over the reference's, seed by seed, [S].

    Args:
        losses: at the last step, [S].
        reference: the reference's, from the same starts; if it has more seeds, its first are taken.
        first: the losses at the starts, [S].
    """
    count = len(losses)
    return np.log(bounded(losses, first)) - np.log(bounded(reference[:count], first))


def diverged(losses: Array, first: Array) -> int:
    """How many losses are not finite, or above those at the start."""
    return int((~(losses <= first)).sum())


def geometric_mean(ratios: dict[str, Array]) -> float:
    """The geometric mean over problems of geometric means over seeds."""
    return float(np.exp(np.mean([values.mean() for values in ratios.values()])))


def score(ratios: dict[str, Array]) -> Score:
    """Summarises log ratios.

    Args:
        ratios: those of each problem by its name, [S]; problems may have different numbers of seeds.
    """
    means = np.array([values.mean() for values in ratios.values()])
    low, high = bootstrap(list(ratios.values()))
    worst = int(means.argmax())
    return Score(
        mean=geometric_mean(ratios),
        low=low,
        high=high,
        interquartile=float(np.exp(interquartile_mean(means))),
        worst=float(np.exp(means[worst])),
        worst_problem=list(ratios)[worst],
    )


def bootstrap(ratios: Sequence[Array], draws: int = DRAWS) -> tuple[float, float]:
    """The 95 % interval of the geometric mean, by percentiles over draws of problems, and of seeds within each."""
    random = np.random.default_rng(0)
    count = len(ratios)
    seeds = np.empty((draws, count, count))  # [.., i, j]: mean over seeds of problem j, where it is drawn as the i-th
    for number, values in enumerate(ratios):
        drawn = random.integers(0, len(values), (draws, count, len(values)))
        seeds[:, :, number] = values[drawn].mean(-1)
    problems = random.integers(0, count, (draws, count, 1))
    means = np.take_along_axis(seeds, problems, axis=2).mean((1, 2))
    low, high = np.exp(np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
    return float(low), float(high)


def interquartile_mean(values: Array) -> float:
    """The mean without the lowest and the highest quarter, rounded down (Agarwal et al., arXiv:2108.13264)."""
    cut = len(values) // 4
    return float(np.sort(values)[cut : len(values) - cut].mean())


def at_best_validation(validation: Array, held_out: Array) -> float:
    """The held-out loss at the step with the lowest validation loss.

    Args:
        validation: the losses of one run, [M].
        held_out: at the same steps, [M].
    """
    return float(held_out[np.where(np.isfinite(validation), validation, np.inf).argmin()])


def published_loss(curve: dict[int, float], step: int) -> float | None:
    """The loss of a published curve at a step, interpolated; None where it has no points close to it.

    Args:
        curve: losses by their steps.
        step: the number of training steps.
    """
    steps = sorted(curve)
    before = max((one for one in steps if one <= step), default=None)
    after = min((one for one in steps if one >= step), default=None)
    if before is None or after is None or after - before > step / 4:
        return None
    return float(np.interp(step, steps, [curve[one] for one in steps]))
