"""The table and the figures of a benchmark."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from lightning_l2l.evaluation.names import as_text
from lightning_l2l.evaluation.suite.entries import Paired
from lightning_l2l.evaluation.suite.scores import geometric_mean

COLUMNS = 4  # panels in a row
FIRST, OTHERS = 3, 4  # how many of a table's first optimizers are leading, and of the best others
SUMMARY = ("ratio", "95 % interval", "interquartile", "worst", "diverged", "held-out", "CPU time", "published")
Entrant = TypeVar("Entrant")


def table(pairs: Sequence[Paired], published: dict[str, dict[int, float]], skipped: dict[str, str]) -> Table:
    """One line for each optimizer and number of steps."""
    reference = pairs[0].reference
    sentences = [f"Skipped: {name} ({reason})" for name, reason in skipped.items()]
    shown = Table(
        title=f"Loss over that of {reference.name} on {len(reference.records)} problems",
        caption="\n".join(["Geometric mean over problems and seeds, with its 95 % interval.", *sentences]),
        caption_justify="left",
    )
    for name in ("steps", "optimizer"):
        shown.add_column(name, no_wrap=True)
    for name in SUMMARY:
        shown.add_column(name, justify="right")
    before = pairs[0].entry.length
    for one in pairs:
        if one.entry.length != before:
            shown.add_section()
        before = one.entry.length
        shown.add_row(str(before), escape(one.entry.name), *_cells(one, published))
    return shown


def _cells(one: Paired, published: dict[str, dict[int, float]]) -> list[str]:
    total = one.score
    return [
        f"{total.mean:.3g}",
        f"{total.low:.3g} – {total.high:.3g}",
        f"{total.interquartile:.3g}",
        f"{total.worst:.3g} ({total.worst_problem})",
        str(one.diverged()),
        f"{geometric_mean(one.held_out_ratios()):.3g}",
        f"{one.seconds_ratio():.3g}",
        one.published_in_words(published),
    ]


def leading(entrants: Sequence[Entrant], ratio: Callable[[Entrant], float]) -> list[Entrant]:
    """A table's first optimizers and the others with the lowest ratios, which figures and tables by problem show."""
    return [*entrants[:FIRST], *sorted(entrants[FIRST:], key=ratio)[:OTHERS]]


def figure(pairs: Sequence[Paired]) -> Figure:
    """Loss against CPU seconds, a panel for each problem, and below them each problem's ratio.

    Args:
        pairs: of the longest runs.
    """
    problems = list(pairs[0].reference.records)
    pairs = leading(pairs, lambda pair: pair.score.mean)
    lines = -(-len(problems) // COLUMNS)
    picture = Figure(figsize=(4 * COLUMNS, 3 * lines + 4), layout="constrained")
    (above,), (below,) = picture.subfigures(2, 1, squeeze=False, height_ratios=[3 * lines, 4])
    panels = above.subplots(lines, COLUMNS, squeeze=False).flatten()
    for name, axes in zip(problems, panels, strict=False):
        _draw_problem(axes, name, pairs)
    for axes in panels[len(problems) :]:
        axes.set_axis_off()
    _draw_bars(below.subplots(), problems, pairs)
    return picture


def _draw_problem(axes: Axes, problem: str, pairs: Sequence[Paired]) -> None:
    for one in pairs:
        if problem not in one.entry.records:
            continue
        records = one.entry.records[problem]
        axes.plot(np.median(records[:, 1:, 5], 0), np.median(records[:, 1:, 1], 0), label=as_text(one.entry.name))
    axes.set(title=as_text(problem), xscale="log", yscale="log", xlabel="CPU seconds", ylabel="training loss")


def _draw_bars(axes: Axes, problems: Sequence[str], pairs: Sequence[Paired]) -> None:
    width = 0.8 / len(pairs)
    for number, one in enumerate(pairs):
        ratios = one.ratios()
        heights = [float(np.exp(ratios[name].mean())) if name in ratios else np.nan for name in problems]
        axes.bar(np.arange(len(problems)) + number * width - 0.4, heights, width, label=as_text(one.entry.name))
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(yscale="log", ylabel=as_text(f"loss / {pairs[0].reference.name}"))
    names = [as_text(problem) for problem in problems]
    axes.set_xticks(range(len(problems)), names, rotation=20, ha="right", fontsize=8)
    axes.legend(fontsize=8)
