"""Markdown tables of kept results, over episodes and meta-seeds."""

import csv
import re
import shlex
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.evaluation.intervals import half_width
from lightning_l2l.evaluation.markdown_table import markdown_table
from lightning_l2l.evaluation.results import ACCURACY, COLUMNS, INTERVALS, NUMBERS, with_interval
from lightning_l2l.evaluation.suite.markdown import EXPLAINED as OF_BENCHMARKS
from lightning_l2l.evaluation.suite.markdown import is_benchmark, markdown
from lightning_l2l.terminal import ShortParser
from lightning_l2l.whole_files import replacing

BEGIN, END = "<!-- report: begin -->", "<!-- report: end -->"
WITH_INTERVALS = ("last10", "sum", "last10_to_best", "sum_to_best", "accuracy")
NUMERIC = (*NUMBERS, *INTERVALS, *ACCURACY, "learning_rate")
TITLES = {"last10_to_best": "last10 − best baseline", "sum_to_best": "sum − best baseline"}
EXPLAINED = """\
Mean loss: before the first step, after 20 and 100, over the last ten steps, summed over the run, and the first step at
which it is as low as the best baseline's last ten. In few-shot learning, last10 is the query loss. ± is half the width
of a 95 % interval by Student's t: over episodes, or, in a row "mean of k runs", over the k meta-seeds. Differences to
the best baseline are paired, episode by episode."""
OF_ACCURACY = "Accuracy is the share of held-out examples that the network classifies rightly where a run ends."


class Table(NamedTuple):
    """What rows must share to belong to one table."""

    experiment: str
    variant: str
    episodes: str
    horizon: str


def report(results: Sequence[str], output: Path) -> None:
    """Writes the tables of kept results.csv files into a Markdown file, between two marker comments.

    A rule with several runs has a row for their mean and one for each run. What a benchmark wrote, such as
    everyday.csv, follows in tables of its own. Text outside the markers is kept; a file without markers gets the tables
    at its end.

    Args:
        results: paths of results.csv files and benchmarks, or patterns of them such as "runs/mnist/seed_*/results.csv".
        output: the Markdown file.

    Raises:
        InvalidInputError: a file cannot be read, or the markers are broken.
    """
    tables: dict[Table, list[dict[str, str]]] = {}
    benchmarks: list[str] = []
    for path in [path for pattern in results for path in _found(pattern)]:
        found = _read(path)
        if is_benchmark(found):
            benchmarks.append(_of_benchmark(path, found))
            continue
        for row in _with_runs(path, found):
            rows = tables.setdefault(Table(*(row[column] for column in Table._fields)), [])
            if not any(_numbers_of(row) == _numbers_of(known) for known in rows):  # a baseline in several files
                rows.append(row)
    command = shlex.join(["python", "-m", "lightning_l2l", "report", "--results", *results, "--output", str(output)])
    shown = [*[EXPLAINED] * bool(tables), *[OF_ACCURACY] * any(map(_have_accuracy, tables.values()))]
    shown += [_markdown(table, rows) for table, rows in tables.items()]
    shown += [*[OF_BENCHMARKS] * bool(benchmarks), *benchmarks]
    written = "\n\n".join([BEGIN, f"Written by `{command}`.", *shown, END])
    before, after = _outside(output)
    with replacing(output) as part:
        part.write_text(before + written + after)
    print(f"Written: {output}")


def main(arguments: list[str]) -> None:
    """Runs the command."""
    parser = ShortParser("report", report.__doc__)
    parser.add_argument(
        "--results", nargs="+", required=True, metavar="FILE", help="results.csv files and benchmarks, or patterns"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the Markdown file")
    report(**vars(parser.parse_args(arguments)))


def _found(pattern: str) -> list[Path]:
    paths = [Path(path) for path in sorted(glob(pattern, recursive=True))] or [Path(pattern)]
    if other := [path for path in paths if not path.is_file()]:
        what = "which is a folder" if other[0].is_dir() else "but there is no such file"
        raise InvalidInputError(f"--results is {other[0]}, {what}: give results.csv files of tests.")
    return paths


def _read(path: Path) -> list[dict[str, str]]:
    """The rows of a results.csv, which lacks intervals in an earlier version, or of a benchmark's file."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        rows = []
    if not rows or not (is_benchmark(rows) or {*COLUMNS, *NUMBERS} <= rows[0].keys()):
        raise InvalidInputError(
            f"--results is {path}, which is no results.csv or benchmark of a test: give another file."
        )
    if not all(map(_is_whole, rows)):
        raise _damaged(path)
    return rows


def _is_whole(row: dict[str, str]) -> bool:
    """Whether a row has all its cells, and numbers where they belong."""
    if None in row or None in row.values():
        return False
    return all(_is_number(row.get(name) or "0") for name in NUMERIC)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _with_runs(path: Path, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of a results.csv with their kind, the run that they are of, and the rule's name without it."""
    folders = [folder.name for folder in path.resolve().parents[:2]]
    run = next((name for name in folders if re.fullmatch(r"(seed|version)_\d+", name)), folders[0]).replace("_", " ")
    for row in rows:
        row["kind"] = row.get("kind") or ("baseline" if row["learning_rate"] else "learned")
        given = row.get("run") or ""
        row["base"] = row["rule"].removesuffix(f" {given}")
        row["run"] = given or run
    return rows


def _of_benchmark(path: Path, rows: list[dict[str, str]]) -> str:
    try:
        return markdown(path.stem, rows)
    except ValueError as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> InvalidInputError:
    return InvalidInputError(f"--results is {path}, which is cut or damaged: let test write it anew.")


def _numbers_of(row: dict[str, str]) -> tuple[str, ...]:
    return (row["base"], row["learning_rate"], *(row[name] for name in NUMBERS))


def _markdown(table: Table, rows: list[dict[str, str]]) -> str:
    """A heading and a table: learned rules first, each group of runs under its mean; no columns without a number."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in sorted(rows, key=lambda row: row["kind"] == "baseline"):
        groups.setdefault((row["base"], "baseline" * (row["kind"] == "baseline")), []).append(row)
    numbers = *NUMBERS, "last10_to_best", "sum_to_best", "accuracy"
    columns = [name for name in numbers if any(row.get(name) for row in rows)]
    titles = ["rule", "learning rate", *(TITLES.get(name, name.replace("_", " ")) for name in columns)]
    lines = []
    for (base, baseline), runs in groups.items():
        if len(runs) > 1 and not baseline:  # a baseline has no meta-seed
            lines.append([f"**{base}, mean of {len(runs)} runs**", "", *(_over_runs(name, runs) for name in columns)])
        for row in runs:
            name = f"{base}, {row['run']}" if len(runs) > 1 else row["rule"]
            lines.append([name, _settings(row), *(_over_episodes(column, row) for column in columns)])
    heading = f"### {table.experiment} ({table.variant}): {table.episodes} episodes of {table.horizon} steps"
    return heading + "\n\n" + markdown_table(titles, lines, left=1)


def _have_accuracy(rows: list[dict[str, str]]) -> bool:
    return any(row.get("accuracy") for row in rows)


def _settings(row: dict[str, str]) -> str:
    """The tuned settings, in words."""
    rate = f"{float(row['learning_rate']):.3g}" if row["learning_rate"] else ""
    if row["kind"] != "baseline":
        return "learned"
    return ", ".join(part for part in (rate, (row.get("tuned_with") or "").replace("_", " ")) if part)


def _over_episodes(column: str, row: dict[str, str]) -> str:
    """A number of one race, with its interval over episodes."""
    half = _number(row, f"{column}_half_width") if column in WITH_INTERVALS else None
    return with_interval(_number(row, column), half)


def _over_runs(column: str, runs: list[dict[str, str]]) -> str:
    """The mean of a number over runs, with its interval over runs; empty if not all of them have it."""
    values = [value for row in runs if (value := _number(row, column)) is not None]
    if len(values) < len(runs):
        return ""
    return with_interval(fmean(values), half_width(values) if column in WITH_INTERVALS else None)


def _number(row: dict[str, str], column: str) -> float | None:
    return float(row[column]) if row.get(column) else None


def _outside(output: Path) -> tuple[str, str]:
    """The text before and after the tables in the existing file."""
    text = output.read_text() if output.is_file() else ""
    if BEGIN not in text and END not in text:
        return (text.rstrip("\n") + "\n\n" if text.strip() else ""), "\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in before + after:
        raise InvalidInputError(
            f"--output is {output}, which does not have one '{BEGIN}' and one '{END}' after it: repair or remove them."
        )
    return before, after
