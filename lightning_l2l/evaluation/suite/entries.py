"""What a benchmark found: the records of each optimizer on each problem, and what is read from them."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from lightning_l2l.evaluation.suite.scores import (
    Array,
    Score,
    at_best_validation,
    diverged,
    geometric_mean,
    log_ratios,
    published_loss,
    score,
)
from lightning_l2l.whole_files import replacing

COLUMNS = (
    *("steps", "optimizer", "problem", "seeds", "rate", "loss", "ratio", "ratio_low", "ratio_high", "interquartile"),
    *("worst", "worst_problem", "diverged", "held_out_ratio", "seconds", "seconds_ratio", "smoothed", "published"),
)
ALL = "all"  # the name of the row that summarises an optimizer's problems


@dataclass
class Entry:
    """One optimizer after some number of steps.

    Attributes:
        name: what tables call it.
        length: T, the number of steps.
        records: a record of each seed on each problem, [S, M, 6] (see ``Mark``).
        rates: the learning rate on each problem, where one was chosen.
    """

    name: str
    length: int
    records: dict[str, Array] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)

    def first(self, problem: str) -> Array:
        """The training loss at each seed's start, [S]."""
        return self.records[problem][:, 0, 1]

    def last(self, problem: str) -> Array:
        """The training loss after the last step, [S]."""
        return self.records[problem][:, -1, 1]

    def held_out(self, problem: str) -> Array:
        """The held-out loss of each seed at its step with the lowest validation loss, [S]."""
        return np.array([at_best_validation(record[:, 2], record[:, 3]) for record in self.records[problem]])

    def seconds(self, problem: str) -> float:
        """CPU seconds of a run, the median over seeds that took all steps; NaN if none did."""
        seconds = self.records[problem][:, -1, 5]
        return float(np.median(whole)) if len(whole := seconds[np.isfinite(seconds)]) else float("nan")

    def diverged(self, problem: str) -> int:
        """How many seeds end above their start, or not finite."""
        return diverged(self.last(problem), self.first(problem))


@dataclass
class Paired:
    """An entry beside the reference's, with the same number of steps.

    Attributes:
        entry: the optimizer.
        reference: what its losses are divided by.
    """

    entry: Entry
    reference: Entry

    def ratios(self) -> dict[str, Array]:
        """The log ratios of training losses of each problem, [S]."""
        own, other = self.entry, self.reference
        return {name: log_ratios(own.last(name), other.last(name), own.first(name)) for name in own.records}

    def held_out_ratios(self) -> dict[str, Array]:
        """The log ratios of held-out losses of each problem, [S], each at its own step chosen on validation."""
        own, other = self.entry, self.reference
        starts = {name: records[:, 0, 3] for name, records in own.records.items()}
        return {name: log_ratios(own.held_out(name), other.held_out(name), starts[name]) for name in own.records}

    def seconds_ratio(self) -> float:
        """CPU time over the reference's, the geometric mean over problems on which both are known; else NaN."""
        pairs = [(self.entry.seconds(name), self.reference.seconds(name)) for name in self.entry.records]
        logs = [np.log(max(one, 1e-9) / max(other, 1e-9)) for one, other in pairs if not np.isnan(one + other)]
        return float(np.exp(np.mean(logs))) if logs else float("nan")

    @cached_property
    def score(self) -> Score:
        """The summary of the training losses."""
        return score(self.ratios())

    def diverged(self) -> int:
        """How many runs end above their start, or not finite."""
        return sum(map(self.entry.diverged, self.entry.records))

    def beside_published(self, published: dict[str, dict[int, float]]) -> dict[str, tuple[float, float]]:
        """The smoothed loss, its mean over seeds, and the published one, where there is one for this many steps."""
        found = {}
        for name, records in self.entry.records.items():
            other = published_loss(published.get(name, {}), self.entry.length)
            if other is not None:
                found[name] = float(records[:, -1, 4].mean()), other
        return found

    def published_in_words(self, published: dict[str, dict[int, float]]) -> str:
        """On how many problems the smoothed loss is below the published one; empty if none has one."""
        beside = self.beside_published(published).values()
        return f"below {sum(own < other for own, other in beside)} of {len(beside)}" if beside else ""


def rows(pair: Paired, published: dict[str, dict[int, float]]) -> list[dict[str, object]]:
    """The rows of an optimizer in the file: its summary, and one for each problem."""
    entry, total = pair.entry, pair.score
    ratios, held_out = pair.ratios(), pair.held_out_ratios()
    beside = pair.beside_published(published)
    found: list[dict[str, object]] = [
        {
            "problem": ALL,
            "ratio": total.mean,
            "ratio_low": total.low,
            "ratio_high": total.high,
            "interquartile": total.interquartile,
            "worst": total.worst,
            "worst_problem": total.worst_problem,
            "diverged": pair.diverged(),
            "held_out_ratio": geometric_mean(held_out),
            "seconds_ratio": pair.seconds_ratio(),
            "published": pair.published_in_words(published),
        }
    ]
    for name, values in ratios.items():
        smoothed, curve = beside.get(name, ("", ""))
        row = {"problem": name, "seeds": len(values), "rate": entry.rates.get(name, "")}
        row |= {"loss": float(entry.last(name).mean()), "ratio": float(np.exp(values.mean()))}
        row |= {"diverged": entry.diverged(name), "held_out_ratio": float(np.exp(held_out[name].mean()))}
        row |= {"seconds": entry.seconds(name), "smoothed": smoothed, "published": curve}
        found.append(row)
    return [{"steps": entry.length, "optimizer": entry.name, **row} for row in found]


def write_rows(found: Sequence[dict[str, object]], file: Path) -> None:
    """Writes the rows of all optimizers as a CSV."""
    with replacing(file) as part, part.open("w", newline="") as text:
        writer = csv.DictWriter(text, COLUMNS, restval="")
        writer.writeheader()
        for row in found:
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
