"""Markdown tables of kept results."""

import csv
import shutil
from pathlib import Path

import pytest

from lightning_l2l.cli import main
from lightning_l2l.evaluation.report import BEGIN, END, report
from lightning_l2l.evaluation.results import ACCURACY, COLUMNS, FURTHER, INTERVALS, NUMBERS
from lightning_l2l.evaluation.suite.entries import write_rows

OLD = [*COLUMNS, *NUMBERS]
ALL = [*OLD, *INTERVALS, *FURTHER]


def write(path: str, *rows: dict[str, object], columns: list[str] | None = None) -> None:
    """A results.csv of the experiment e."""
    columns = columns or ALL
    shared = {"experiment": "e", "variant": "v", "episodes": 8, "horizon": 30}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(shared | row for row in rows)


def lstm(last10: float, **more: object) -> dict[str, object]:
    intervals = {"last10_half_width": 0.25, "last10_to_best": last10 - 4, "last10_to_best_half_width": 0.125}
    return {"rule": "LSTM", "kind": "learned", "initial": 9, "last10": last10, "sum": 30 * last10} | intervals | more


SGD = {"rule": "SGD", "kind": "baseline", "learning_rate": 0.1, "last10": 4, "sum": 120, "last10_half_width": 0.5}
ADAMW = {"rule": "AdamW", "kind": "baseline", "learning_rate": 0.3, "last10": 5, "tuned_with": "weight_decay=0.1"}


def table() -> list[list[str]]:
    """The cells of the rows in the report."""
    lines = Path("report.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]


def test_one_run_has_its_intervals_over_episodes():
    write("runs/e/version_0/results.csv", lstm(2.0), SGD, ADAMW)
    report(["runs/e/version_0/results.csv"], Path("report.md"))
    header, learned, sgd, adamw = table()
    assert header == ["rule", "learning rate", "initial", "last10", "sum", "last10 − best baseline"]
    assert learned == ["LSTM", "learned", "9", "2 ± 0.25", "60", "-2 ± 0.12"]
    assert sgd == ["SGD", "0.1", "", "4 ± 0.5", "120", ""]
    assert adamw[1] == "0.3, weight decay=0.1"
    assert "### e (v): 8 episodes of 30 steps" in Path("report.md").read_text()


def test_several_runs_have_a_mean_over_meta_seeds_and_each_its_own():
    """Of 1, 2 and 3 the mean is 2, and half its interval 4.3027 / √3 = 2.484."""
    for number, last10 in enumerate((1.0, 2.0, 3.0)):
        write(f"runs/e/version_{number}/results.csv", lstm(last10), SGD)
    report(["runs/*/*/results.csv"], Path("report.md"))
    _, mean, *runs, sgd = table()
    assert mean == ["**LSTM, mean of 3 runs**", "", "9", "2 ± 2.5", "60 ± 75", "-2 ± 2.5"]
    assert [row[0] for row in runs] == ["LSTM, version 0", "LSTM, version 1", "LSTM, version 2"]
    assert [row[3] for row in runs] == ["1 ± 0.25", "2 ± 0.25", "3 ± 0.25"]
    assert sgd[0] == "SGD"  # once, since it is the same in all files


def test_baselines_have_no_mean_over_meta_seeds():
    for number, rate in enumerate((0.1, 0.3)):
        write(f"runs/e/version_{number}/results.csv", lstm(2.0 + number), SGD | {"learning_rate": rate, "last10": rate})
    report(["runs/*/*/results.csv"], Path("report.md"))
    assert [row[0] for row in table()[-2:]] == ["SGD, version 0", "SGD, version 1"]


def test_the_runs_of_one_race_and_other_rivals():
    rows = [lstm(last10, rule=f"LSTM seed {n}", run=f"seed {n}", kind="rival") for n, last10 in ((1, 1.0), (2, 3.0))]
    write("runs/e/seed_0/results.csv", *rows, {"rule": "mnist", "kind": "rival", "last10": 3}, SGD)
    report(["runs/e/seed_0/results.csv"], Path("report.md"))
    assert [row[0] for row in table()[1:]] == [
        "**LSTM, mean of 2 runs**",
        "LSTM, seed 1",
        "LSTM, seed 2",
        "mnist",
        "SGD",
    ]
    assert table()[1][3] == "2 ± 13"  # 12.706 / √2 · √2


def test_results_of_before_there_were_intervals_are_read():
    write("old/results.csv", lstm(2.0), SGD, columns=OLD)
    report(["old/results.csv"], Path("report.md"))
    assert [row[1] + " " + row[3] for row in table()[1:]] == ["learned 2", "0.1 4"]


def test_accuracies_have_a_column_in_tables_that_have_any():
    """Of .8 and .9 the mean is .85, and half its interval 12.706 · .05."""
    write("old/results.csv", lstm(2.0), SGD)
    accuracies = [{"accuracy": share, "accuracy_half_width": 0.01} for share in (0.8, 0.9)]
    for number, accuracy in enumerate(accuracies):
        row = lstm(1.0 + number, variant="w") | accuracy
        write(f"runs/e/version_{number}/results.csv", row, {**SGD, "variant": "w"}, columns=[*ALL, *ACCURACY])
    report(["old/results.csv"], Path("report.md"))
    assert "ccuracy" not in Path("report.md").read_text()
    report(["old/results.csv", "runs/*/*/results.csv"], Path("report.md"))
    old, without, _, header, mean, first, second, sgd = table()
    assert old[-1] == "last10 − best baseline" and len(without) == len(old)
    assert [row[-1] for row in (header, mean, first, second, sgd)] == [
        "accuracy",
        "0.85 ± 0.64",
        "0.8 ± 0.01",
        "0.9 ± 0.01",
        "",
    ]
    assert "Accuracy is the share" in Path("report.md").read_text()


def test_variants_and_horizons_have_tables_of_their_own():
    write("runs/e/version_0/results.csv", lstm(2.0), SGD, lstm(2.0, variant="w"), lstm(2.0, horizon=60))
    report(["runs/e/version_0/results.csv"], Path("report.md"))
    assert Path("report.md").read_text().count("### e") == 3


def benchmark_rows(steps: int, optimizer: str, **ratios: float) -> list[dict[str, object]]:
    summary = {"problem": "all", "ratio": 0.5, "ratio_low": 0.4, "ratio_high": 0.6, "interquartile": 0.45}
    summary |= {"worst": max(ratios.values()), "worst_problem": "b", "diverged": 1, "held_out_ratio": 0.7}
    problems = [{"problem": name, "ratio": ratio} for name, ratio in ratios.items()]
    rows = [summary | {"seconds_ratio": 2.0, "published": "below 1 of 2"}, *problems]
    return [{"steps": steps, "optimizer": optimizer, **row} for row in rows]


def test_a_benchmark_has_tables_of_its_own():
    rows = benchmark_rows(9, "Adam 0.001", a=1.0, b=1.0) + benchmark_rows(9, "mine", a=0.25, b=1.0)
    write_rows([*rows, *benchmark_rows(9, "SOAP", a=0.75)], Path("everyday.csv"))
    report(["everyday.csv"], Path("report.md"))
    assert "Mean loss" not in Path("report.md").read_text()
    header, _, mine, soap, problems, a, b = table()
    assert mine == ["9", "mine", "0.5", "0.4 – 0.6", "0.45", "1 (b)", "1", "0.7", "2", "below 1 of 2"]
    assert [header[0], soap[1]] == ["steps", "SOAP"]
    assert [problems, a, b] == [["problem", "mine", "SOAP"], ["a", "0.25", "0.75"], ["b", "1", ""]]
    write("results.csv", lstm(2.0), SGD)
    report(["*.csv"], Path("report.md"))
    text = Path("report.md").read_text()
    assert text.index("Mean loss") < text.index("### e") < text.index("Training loss over") < text.index("### everyday")


def test_a_cpu_time_that_cannot_be_compared_is_left_out():
    total, *problems = benchmark_rows(9, "mine", a=0.25)
    write_rows([total | {"seconds_ratio": float("nan")}, *problems], Path("everyday.csv"))
    report(["everyday.csv"], Path("report.md"))
    assert table()[1][-3:] == ["0.7", "", "below 1 of 2"]


def test_a_benchmark_shows_each_problem_for_the_first_optimizers_and_the_four_best_others():
    names = ["Adam 0.001", "mine", "mine × cosine", "SOAP", "Muon", "NAG", "LDoG", "Prodigy"]
    ratios = dict(zip(names, (1.0, 0.9, 0.95, 0.5, 0.8, 0.6, 0.4, 0.7), strict=True))
    rows = [row | {"ratio": ratios[name]} for name in names for row in benchmark_rows(9, name, a=1.0)]
    write_rows(rows, Path("everyday.csv"))
    report(["everyday.csv"], Path("report.md"))
    assert table()[-2] == ["problem", "mine", "mine × cosine", "LDoG", "SOAP", "NAG", "Prodigy"]


def test_what_stands_outside_of_the_markers_stays(capsys):
    write("runs/e/version_0/results.csv", lstm(2.0), SGD)
    Path("report.md").write_text("# Results\n\nBy hand.\n")
    command = ["report", "--results", "runs/*/*/results.csv", "--output", "report.md"]
    main(command)
    first = Path("report.md").read_text()
    assert first.startswith(f"# Results\n\nBy hand.\n\n{BEGIN}\n")
    assert "`python -m lightning_l2l report --results 'runs/*/*/results.csv' --output report.md`" in first
    Path("report.md").write_text(first + "\nMore by hand.\n")
    write("runs/e/version_0/results.csv", lstm(7.0), SGD)
    main(command)
    again = Path("report.md").read_text()
    assert (
        again == first.replace("| 2 ± 0.25 | 60 |", "| 7 ± 0.25 | 210 |").replace("-2 ±", "3 ±") + "\nMore by hand.\n"
    )
    assert capsys.readouterr().out.count("Written: report.md") == 2


@pytest.mark.parametrize("text", [BEGIN, END, f"{END} {BEGIN}", f"{BEGIN} {END} {BEGIN} {END}"])
def test_broken_markers_are_refused(text, fails):
    write("results.csv", lstm(2.0))
    Path("report.md").write_text(text)
    assert "does not have one" in fails("report", "--results", "results.csv", "--output", "report.md")
    assert Path("report.md").read_text() == text


def test_bad_flags_get_one_sentence(fails, capsys):
    Path("no.csv").write_text("a,b\n1,2\n")
    Path("binary.csv").write_bytes(b"\xff\xfe\x00")
    Path("empty.csv").touch()
    write_rows(benchmark_rows(9, "Adam 0.001", a=1.0, b=1.0), Path("whole.csv"))
    Path("cut.csv").write_text(Path("whole.csv").read_text()[:-60])
    assert "--results is cut.csv, which is cut or damaged" in fails(
        "report", "--results", "cut.csv", "--output", "r.md"
    )
    write("results.csv", lstm(2.0), SGD)
    whole = Path("results.csv").read_text()
    for damaged in (whole[: whole.index("SGD") + 3], whole.replace("120", "12x")):
        Path("bad.csv").write_text(damaged)
        assert "--results is bad.csv, which is cut or damaged" in fails(
            "report", "--results", "bad.csv", "--output", "r.md"
        )
    for name in ("no.csv", "binary.csv", "empty.csv"):
        assert f"--results is {name}, which is no results.csv" in fails("report", "--results", name, "--output", "r.md")
    assert "there is no such file" in fails("report", "--results", "nope/*.csv", "--output", "r.md")
    assert "--results is ., which is a folder" in fails("report", "--results", ".", "--output", "r.md")
    assert "--outptu" in fails("report", "--results", "no.csv", "--output", "r.md", "--outptu=r.md")
    assert "--output" in fails("report", "--results", "no.csv")
    with pytest.raises(SystemExit) as stopped:
        main(["report", "--help"])
    assert stopped.value.code == 0
    assert "between two marker comments" in " ".join(capsys.readouterr().out.split())


def test_the_shipped_tables_are_those_of_the_kept_results():
    configs = Path(__file__).parents[1] / "configs"
    shutil.copytree(configs, "configs")
    report(["configs/results/*.csv"], Path("configs/README.md"))
    assert Path("configs/README.md").read_text() == (configs / "README.md").read_text()
