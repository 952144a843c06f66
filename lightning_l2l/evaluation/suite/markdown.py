"""Markdown tables of a benchmark's kept rows."""

from collections.abc import Sequence

from lightning_l2l.evaluation.markdown_table import markdown_table
from lightning_l2l.evaluation.suite.entries import ALL, COLUMNS
from lightning_l2l.evaluation.suite.pictures import SUMMARY, leading

EXPLAINED = """\
Training loss over that of Adam with rate 1e-3: geometric means over problems and seeds, with a 95 % interval (a
bootstrap over problems, then seeds), the interquartile mean, the worst problem, the runs that diverged, the ratio of
held-out losses, the ratio of CPU time, and on how many of the published tasks the loss is below the published curve of
a tuned optimizer. Losses are clipped to between 0.001 and 10 times their run's first. Tables by problem have the first
optimizers and the four best others."""
Rows = Sequence[dict[str, str]]


def is_benchmark(rows: Rows) -> bool:
    """Whether a benchmark wrote these rows of a file."""
    return rows[0].keys() == set(COLUMNS)


def markdown(name: str, rows: Rows) -> str:
    """The tables of a NAME.csv that a benchmark wrote: its summary, and the ratios on each problem.

    Args:
        name: of the benchmark.
        rows: of its file.

    Raises:
        ValueError: an optimizer lacks its summary, or a cell is not a number.
    """
    problems = list(dict.fromkeys(row["problem"] for row in rows if row["problem"] != ALL))
    summaries = [row for row in rows if row["problem"] == ALL]
    titles = ["steps", "optimizer", *SUMMARY]
    parts = [f"### {name}: {len(problems)} problems", markdown_table(titles, map(_summary, summaries), left=2)]
    for steps in dict.fromkeys(row["steps"] for row in rows):
        _, *shown = leading([row for row in summaries if row["steps"] == steps], lambda row: float(row["ratio"]))
        table = _by_problem(steps, [row["optimizer"] for row in shown], problems, rows)
        parts.append(f"The ratio on each problem after {steps} steps:\n\n{table}")
    return "\n\n".join(parts)


def _summary(row: dict[str, str]) -> list[str]:
    ratio, low, high, interquartile, worst, held_out, seconds = (
        f"{float(row[column]):.3g}"
        for column in ("ratio", "ratio_low", "ratio_high", "interquartile", "worst", "held_out_ratio", "seconds_ratio")
    )
    worst = f"{worst} ({row['worst_problem']})"
    seconds = seconds.replace("nan", "")  # not comparable with Adam's
    numbers = [ratio, f"{low} – {high}", interquartile, worst, row["diverged"], held_out, seconds]
    return [row["steps"], row["optimizer"], *numbers, row["published"]]


def _by_problem(steps: str, optimizers: Sequence[str], problems: Sequence[str], rows: Rows) -> str:
    ratios = {(row["optimizer"], row["problem"]): f"{float(row['ratio']):.3g}" for row in rows if row["steps"] == steps}
    cells = ([problem, *(ratios.get((one, problem), "") for one in optimizers)] for problem in problems)
    return markdown_table(["problem", *optimizers], cells, left=1)
