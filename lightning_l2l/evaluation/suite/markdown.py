"""Markdown tables of a benchmark's kept rows."""

from collections.abc import Sequence

from lightning_l2l.evaluation.suite.entries import ALL
from lightning_l2l.evaluation.suite.pictures import FIRST, OTHERS

EXPLAINED = """\
Training loss over that of Adam with rate 1e-3: geometric means over problems and seeds, with a 95 % interval (a
bootstrap over problems, then seeds), the interquartile mean, the worst problem, the runs that diverged, the ratio of
held-out losses, the ratio of CPU time, and on how many of the published tasks the loss is below the published curve of
a tuned optimizer. A loss counts as at least a thousandth of its run's first, and as at most ten times that. Tables by
problem have the first optimizers and the four best others."""
Rows = Sequence[dict[str, str]]


def markdown(name: str, rows: Rows) -> str:
    """The tables of a NAME.csv that a benchmark wrote: its summary, and the ratios on each problem.

    Args:
        name: of the benchmark.
        rows: of its file.
    """
    problems = list(dict.fromkeys(row["problem"] for row in rows if row["problem"] != ALL))
    summaries = [row for row in rows if row["problem"] == ALL]
    parts = [f"### {name}: {len(problems)} problems", _summary(summaries)]
    for steps in dict.fromkeys(row["steps"] for row in rows):
        of_length = [row for row in summaries if row["steps"] == steps]
        others = sorted(of_length[FIRST:], key=lambda row: float(row["ratio"]))[:OTHERS]
        shown = [row["optimizer"] for row in [*of_length[1:FIRST], *others]]
        parts.append(f"The ratio on each problem after {steps} steps:\n\n" + _by_problem(steps, shown, problems, rows))
    return "\n\n".join(parts)


def _summary(rows: Rows) -> str:
    titles = ("ratio", "95 % interval", "interquartile", "worst", "diverged", "held-out", "CPU time", "published")
    lines = [_line(["steps", "optimizer", *titles]), "|---|---|" + "---:|" * len(titles)]
    for row in rows:
        cells = [row["steps"], row["optimizer"], _short(row["ratio"])]
        cells += [f"{_short(row['ratio_low'])} – {_short(row['ratio_high'])}", _short(row["interquartile"])]
        cells += [f"{_short(row['worst'])} ({row['worst_problem']})", row["diverged"]]
        lines.append(_line([*cells, _short(row["held_out_ratio"]), _short(row["seconds_ratio"]), row["published"]]))
    return "\n".join(lines)


def _by_problem(steps: str, optimizers: Sequence[str], problems: Sequence[str], rows: Rows) -> str:
    ratios = {(row["optimizer"], row["problem"]): _short(row["ratio"]) for row in rows if row["steps"] == steps}
    lines = [_line(["problem", *optimizers]), "|---|" + "---:|" * len(optimizers)]
    lines += [_line([problem, *(ratios.get((one, problem), "") for one in optimizers)]) for problem in problems]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _short(number: str) -> str:
    return f"{float(number):.3g}"
