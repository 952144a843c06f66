"""The results of a race: numbers, table, figure and files."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from lightning_l2l.evaluation.contestants import Kind
from lightning_l2l.evaluation.intervals import half_width
from lightning_l2l.evaluation.names import as_text
from lightning_l2l.evaluation.tuning import RATE
from lightning_l2l.rules import UpdateRule
from lightning_l2l.rules.identity import digest
from lightning_l2l.unroll import LAST, final_loss
from lightning_l2l.whole_files import replacing

COLUMNS = ("experiment", "variant", "rule", "learning_rate", "episodes", "horizon")
NUMBERS = ("initial", "at_20", "at_100", "last10", "sum", "reaches_best")
INTERVALS = (
    "last10_half_width",  # of the 95 % interval over episodes
    "sum_half_width",
    "last10_to_best",  # paired difference to the best baseline, episode by episode
    "last10_to_best_half_width",
    "sum_to_best",
    "sum_to_best_half_width",
)
FURTHER = ("kind", "run", "tuned_with", "weights")  # the last is a digest of the learned rule's
ACCURACY = ("accuracy", "accuracy_half_width")  # mean over episodes; only where a rule has one


@dataclass(frozen=True)
class Entry:
    """One rule in a race.

    Attributes:
        name: what tables and figures call it.
        kind: learned, rival or baseline.
        curves: f(θ_0) .. f(θ_T) of every episode, [N, T + 1].
        rule: the rule as it ran, with its tuned settings; None for a learner that does not say which rule it learns.
        tuned: the settings that were tuned, by name.
        run: the run that a learned rule comes from, where several are raced.
        accuracy: of every episode at θ_T (see ``Episodes.accuracy``), [N]; None if there is none.
        last: steps at the end of a run whose mean loss is its final loss, called ``last10``.
    """

    name: str
    kind: Kind
    curves: Tensor
    rule: UpdateRule | None = None
    tuned: dict[str, float] = field(default_factory=dict)
    run: str = ""
    accuracy: Tensor | None = None
    last: int = LAST

    def last10(self) -> Tensor:
        """The mean loss of each episode over the last ten steps, or those that ``last`` says, [N]."""
        return self.curves.double()[:, 1:][:, -self.last :].mean(1)

    def sum(self) -> Tensor:
        """The sum of each episode's losses over steps 1 to the horizon, [N]."""
        return self.curves.double()[:, 1:].sum(1)


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
        """Numbers of each rule's mean curve, as ``NUMBERS`` names them; None for a missing number.

        These are the loss before the first step, after 20 and 100, its mean over the last ten, its sum over steps 1 to
        the horizon, and the first step at which it is as low as the best baseline's mean over the last ten. Where
        only the last loss counts, because the earlier ones are of another kind, only the first and the last are given.
        """
        means = [entry.curves.double().mean(0) for entry in self.entries]
        lasts = [final_loss(mean, entry.last).item() for mean, entry in zip(means, self.entries, strict=True)]
        of_baselines = [last for last, entry in zip(lasts, self.entries, strict=True) if entry.kind == "baseline"]
        best = min(filter(math.isfinite, of_baselines), default=math.nan)  # no loss is below NaN
        return [_numbers(mean, best, entry.last) for mean, entry in zip(means, self.entries, strict=True)]

    def intervals(self) -> list[dict[str, float | None]]:
        """Half-widths of 95 % intervals over episodes, and differences to the best baseline (see ``INTERVALS``).

        Differences are paired: an episode's loss minus that of the best baseline on the same episode. Half-widths are
        Student's t quantile times the standard error (see ``half_width``).
        """
        best = best_entry(self.entries)
        rows = []
        for entry in self.entries:
            row: dict[str, float | None] = dict.fromkeys(INTERVALS)
            of_episodes = {"last10": entry.last10()} | ({"sum": entry.sum()} if entry.last > 1 else {})
            for name, values in of_episodes.items():
                row[f"{name}_half_width"] = half_width(values.tolist())
                if best is not None and best is not entry:
                    differences = values - getattr(best, name)()
                    row[f"{name}_to_best"] = differences.mean().item()
                    row[f"{name}_to_best_half_width"] = half_width(differences.tolist())
            rows.append(row)
        return rows

    def accuracies(self) -> list[dict[str, float | None]]:
        """Each rule's mean accuracy and half the width of its 95 % interval over episodes, as ``ACCURACY`` names them.

        Nothing for a rule without an accuracy.
        """
        shares = [[] if entry.accuracy is None else entry.accuracy.tolist() for entry in self.entries]
        both = [(math.fsum(each) / len(each), half_width(each)) if each else () for each in shares]
        return [dict(zip(ACCURACY, each, strict=False)) for each in both]


def _numbers(curve: Tensor, best: float, last: int) -> dict[str, float | None]:
    if last == 1:
        return dict.fromkeys(NUMBERS) | {"initial": curve[0].item(), "last10": curve[-1].item()}

    def after(step: int) -> float | None:
        return curve[step].item() if step < len(curve) else None

    reached = (curve <= best).nonzero()
    reaches_best = reached[0].item() if len(reached) else None
    values = (after(0), after(20), after(100), curve[1:][-last:].mean().item(), curve[1:].sum().item(), reaches_best)
    return dict(zip(NUMBERS, values, strict=True))


def best_entry(entries: Sequence[Entry]) -> Entry | None:
    """The baseline with the lowest mean final loss in a race; None where there is none."""
    baselines = [entry for entry in entries if entry.kind == "baseline"]
    return min(baselines, key=lambda entry: final_loss(entry.curves, entry.last).mean().item(), default=None)


def best_baseline(entries: Sequence[Entry]) -> UpdateRule | None:
    """The rule of ``best_entry``, with its tuned settings."""
    best = best_entry(entries)
    return best.rule if best else None


def results_rows(race: Race, experiment: str) -> list[dict[str, object]]:
    """One row per rule, as in ``results.csv``; a missing number is left empty."""
    rows = []
    computed = zip(race.entries, race.numbers(), race.intervals(), race.accuracies(), strict=True)
    for entry, numbers, intervals, accuracies in computed:
        episodes, steps = entry.curves.shape
        values = (experiment, race.variant, entry.name, entry.tuned.get(RATE), episodes, steps - 1)
        row: dict[str, object] = dict(zip(COLUMNS, values, strict=True))
        for name, value in (numbers | intervals | accuracies).items():
            row[name] = None if value is None else f"{value:.6g}"
        others = " ".join(f"{name}={value:.6g}" for name, value in entry.tuned.items() if name != RATE)
        weights = digest(entry.rule.state_dict()) if entry.rule is not None and entry.kind == "learned" else ""
        rows.append(row | dict(zip(FURTHER, (entry.kind, entry.run, others, weights), strict=True)))
    return rows


def write_results(races: Sequence[Race], folder: Path, experiment: str) -> None:
    """Writes results.csv, curves.npz (mean and standard deviation per step of each rule) and curves.png.

    results.csv has the columns ``ACCURACY`` only if a rule has an accuracy.

    In curves.npz a rule's name follows that of the variant, except for the first variant.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "results.csv") as part, part.open("w", newline="") as file:
        rows = [row for race in races for row in results_rows(race, experiment)]
        accuracy = ACCURACY if any("accuracy" in row for row in rows) else ()
        writer = csv.DictWriter(file, COLUMNS + NUMBERS + INTERVALS + FURTHER + accuracy)
        writer.writeheader()
        writer.writerows(rows)
    arrays = {"variant": np.array(races[0].variant)}
    for race in races:
        prefix = "" if race is races[0] else f"{race.variant}_"
        for entry in race.entries:
            arrays[f"{prefix}{entry.name}_mean"] = entry.curves.mean(0).numpy()
            arrays[f"{prefix}{entry.name}_std"] = entry.curves.std(0, correction=0).numpy()
    with replacing(folder / "curves.npz") as part:
        np.savez(part, **arrays)  # type: ignore[arg-type]
    with replacing(folder / "curves.png") as part:
        curves_figure(races, experiment).savefig(part, dpi=150)


def results_table(races: Sequence[Race], experiment: str) -> Table:
    """The table that the terminal shows; the best of each column is bold."""
    episodes, steps = races[0].entries[0].curves.shape
    first = escape(f"{experiment} ({races[0].variant})")
    accuracy = any(any(race.accuracies()) for race in races)
    and_accuracy = ", and of accuracies on held-out examples where runs end" if accuracy else ""
    table = Table(
        title=f"{first}: mean loss over {episodes} fresh episodes of {steps - 1} steps",
        caption=f"± is half the width of the 95 % interval over episodes of the paired differences{and_accuracy}.",
    )
    table.add_column("rule")
    for name in ("learning\nrate", *NUMBERS, "last10 minus\nbest baseline", *["accuracy"] * accuracy):
        table.add_column(name.replace("reaches_", "reaches\n"), justify="right", no_wrap=True)
    for race in races:
        if race is not races[0]:
            episodes, steps = race.entries[0].curves.shape
            table.add_section()
            table.add_row(f"[italic]{escape(race.variant)}: {episodes} episodes of {steps - 1} steps")
        _add_rows(table, race)
    return table


def _add_rows(table: Table, race: Race) -> None:
    rows = race.numbers()
    best = {name: min((x for row in rows if (x := row[name]) is not None), default=None) for name in NUMBERS}
    accuracies = race.accuracies()
    highest = max((share for row in accuracies if (share := row.get("accuracy")) is not None), default=None)
    for entry, row, interval, accuracy in zip(race.entries, rows, race.intervals(), accuracies, strict=True):
        rate = f"{entry.tuned[RATE]:.3g}" if RATE in entry.tuned else "" if entry.kind == "baseline" else "learned"
        cells = [with_interval(row[name], None) for name in NUMBERS]
        marks = ["[bold]" * (row[n] is not None and row[n] == best[n] and n != "initial") for n in NUMBERS]
        difference = with_interval(interval["last10_to_best"], interval["last10_to_best_half_width"])
        marked = [mark + cell for mark, cell in zip(marks, cells, strict=True)] + [difference]
        if accuracy:
            mark = "[bold]" * (accuracy["accuracy"] == highest)
            marked.append(mark + with_interval(accuracy["accuracy"], accuracy["accuracy_half_width"]))
        table.add_row(escape(entry.name), rate, *marked)


def with_interval(value: float | None, half_width: float | None) -> str:
    """A number as tables show it, with half the width of its interval where that is known."""
    if value is None:
        return ""
    return f"{value:.4g}" if half_width is None else f"{value:.4g} ± {half_width:.2g}"


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
    axes.set_ylim(1, 10)  # stays where there is no loss that a log scale can show
    for entry in entries:
        steps = np.arange(entry.curves.shape[1])
        low, high = entry.curves.float().nan_to_num(torch.inf).quantile(torch.tensor([1 / 6, 5 / 6]), dim=0)
        mean = entry.curves.mean(0)
        (line,) = axes.plot(steps, mean, label=as_text(entry.name), zorder=3 - (entry.kind == "baseline"))
        axes.fill_between(steps, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    means = torch.stack([entry.curves.mean(0) for entry in entries])
    finite = means[means.isfinite() & (means > 0)]
    if len(finite):  # a rule that diverges must not flatten the others
        start = min((float(mean[0]) for mean in means if 0 < mean[0] < torch.inf), default=float(finite.max()))
        axes.set_ylim(float(finite.min()) / 1.5, 2 * start)
    axes.set(title=as_text(title), xlabel="step", ylabel="loss", yscale="log")
    axes.legend()
