"""What a race leaves behind: numbers, table, figure and files."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from lightning_l2l.evaluation.tuning import BASELINES
from lightning_l2l.rules import HandDesignedRule
from lightning_l2l.unroll import LAST, final_loss

COLUMNS = ("experiment", "variant", "rule", "learning_rate", "episodes", "horizon")
NUMBERS = ("initial", "at_20", "at_100", "last10", "sum", "reaches_best")


@dataclass(frozen=True)
class Entry:
    """One rule in a race.

    Attributes:
        rule: its name.
        learning_rate: the tuned one; None for a learned rule.
        curves: f(θ_0) .. f(θ_T) of every episode, [N, T + 1].
    """

    rule: str
    learning_rate: float | None
    curves: Tensor


@dataclass(frozen=True)
class Race:
    """All rules on the same episodes.

    Attributes:
        variant: which form of the optimizee.
        entries: the rules, the learned one first.
    """

    variant: str
    entries: list[Entry]

    def numbers(self) -> list[dict[str, float | None]]:
        """Numbers of each rule's mean curve, as ``NUMBERS`` names them; None where it does not have one.

        These are the loss before the first step, after 20 and 100, its mean over the last ten, its sum over steps 1 to
        the horizon, and the first step at which it is as low as the best baseline's mean over the last ten.
        """
        means = [entry.curves.double().mean(0) for entry in self.entries]
        tuned = [mean for mean, entry in zip(means, self.entries, strict=True) if entry.learning_rate is not None]
        lasts = [final_loss(mean).item() for mean in tuned]
        best = min(filter(math.isfinite, lasts), default=math.nan)  # which no loss is as low as
        return [_numbers(mean, best) for mean in means]


def _numbers(curve: Tensor, best: float) -> dict[str, float | None]:
    def after(step: int) -> float | None:
        return curve[step].item() if step < len(curve) else None

    reached = (curve <= best).nonzero()
    reaches_best = reached[0].item() if len(reached) else None
    values = (after(0), after(20), after(100), curve[1:][-LAST:].mean().item(), curve[1:].sum().item(), reaches_best)
    return dict(zip(NUMBERS, values, strict=True))


def best_baseline(entries: Sequence[Entry]) -> HandDesignedRule | None:
    """The baseline with the lowest mean final loss in a race, at its tuned rate; None where there is none."""
    tuned = [entry for entry in entries if entry.learning_rate is not None]
    if not tuned:
        return None
    best = min(tuned, key=lambda entry: final_loss(entry.curves).mean().item())
    assert best.learning_rate is not None
    return next(b for b in BASELINES if b.__name__ == best.rule)(best.learning_rate)


def results_rows(race: Race, experiment: str) -> list[dict[str, object]]:
    """One row a rule, as ``results.csv`` holds it; a number that it does not have is left empty."""
    rows = []
    for entry, row in zip(race.entries, race.numbers(), strict=True):
        episodes, steps = entry.curves.shape
        values = (experiment, race.variant, entry.rule, entry.learning_rate, episodes, steps - 1)
        numbers: dict[str, object] = {name: None if value is None else f"{value:.6g}" for name, value in row.items()}
        rows.append(dict(zip(COLUMNS, values, strict=True)) | numbers)
    return rows


def write_results(races: Sequence[Race], folder: Path, experiment: str) -> None:
    """Writes results.csv, curves.npz (mean and standard deviation per step of each rule) and curves.png.

    In curves.npz the names of all variants but the first stand before those of the rules.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS + NUMBERS)
        writer.writeheader()
        for race in races:
            writer.writerows(results_rows(race, experiment))
    arrays = {"variant": np.array(races[0].variant)}
    for race in races:
        prefix = "" if race is races[0] else f"{race.variant}_"
        for entry in race.entries:
            arrays[f"{prefix}{entry.rule}_mean"] = entry.curves.mean(0).numpy()
            arrays[f"{prefix}{entry.rule}_std"] = entry.curves.std(0, correction=0).numpy()
    np.savez(folder / "curves.npz", **arrays)  # type: ignore[arg-type]
    curves_figure(races, experiment).savefig(folder / "curves.png", dpi=150)


def results_table(races: Sequence[Race], experiment: str) -> Table:
    """The table that the terminal shows; the best of each column is bold."""
    episodes, steps = races[0].entries[0].curves.shape
    first = f"{experiment} ({races[0].variant})"
    table = Table(title=f"{first}: mean loss over {episodes} fresh episodes of {steps - 1} steps")
    table.add_column("rule")
    table.add_column("learning rate", justify="right")
    for name in NUMBERS:
        table.add_column(name, justify="right")
    for race in races:
        if race is not races[0]:
            episodes, steps = race.entries[0].curves.shape
            table.add_section()
            table.add_row(f"[italic]{race.variant}: {episodes} episodes of {steps - 1} steps")
        _add_rows(table, race)
    return table


def _add_rows(table: Table, race: Race) -> None:
    rows = race.numbers()
    best = {name: min((x for row in rows if (x := row[name]) is not None), default=None) for name in NUMBERS}
    for entry, row in zip(race.entries, rows, strict=True):
        rate = "learned" if entry.learning_rate is None else f"{entry.learning_rate:.3g}"
        cells = ["" if row[n] is None else f"{row[n]:.4g}" for n in NUMBERS]
        marks = ["[bold]" * (row[n] is not None and row[n] == best[n] and n != "initial") for n in NUMBERS]
        table.add_row(entry.rule, rate, *(mark + cell for mark, cell in zip(marks, cells, strict=True)))


def curves_figure(races: Sequence[Race], experiment: str) -> Figure:
    """Loss against step on a log scale, a panel for each race."""
    columns = min(len(races), 3)
    lines = -(-len(races) // columns)
    figure = Figure(figsize=(6 * columns, 4 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for race, axes in zip(races, panels, strict=False):
        _draw(axes, race.entries, f"{experiment} ({race.variant})")
    for axes in panels[len(races) :]:
        axes.set_axis_off()
    return figure


def _draw(axes: Axes, entries: Sequence[Entry], title: str) -> None:
    """The means, each with a band that holds the middle two thirds of the episodes."""
    for entry in entries:
        steps = np.arange(entry.curves.shape[1])
        low, high = entry.curves.float().nan_to_num(torch.inf).quantile(torch.tensor([1 / 6, 5 / 6]), dim=0)
        mean = entry.curves.mean(0)
        (line,) = axes.plot(steps, mean, label=entry.rule, zorder=3 - (entry.learning_rate is not None))
        axes.fill_between(steps, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    means = torch.stack([entry.curves.mean(0) for entry in entries])
    finite = means[means.isfinite()]
    if len(finite):  # a rule that diverges must not flatten the others
        start = min(float(mean[0]) for mean in means if mean[0].isfinite())
        axes.set_ylim(float(finite.min()) / 1.5, 2 * start)
    axes.set(title=title, xlabel="step", ylabel="loss", yscale="log")
    axes.legend()
