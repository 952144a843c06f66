"""The benchmark as a whole: who runs on what, what is kept, and what it leaves behind."""

import csv
from pathlib import Path

import numpy as np
import pytest
from command_line import RUN, tiny
from small_benchmark import missing, problem, write
from torch import nn

from lightning_l2l.cli import main
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.evaluation.suite import runs as suite_runs
from lightning_l2l.evaluation.suite.benchmark import Benchmark
from lightning_l2l.evaluation.suite.candidates import adam, candidate, learned
from lightning_l2l.evaluation.suite.choosing import tuned_rate
from lightning_l2l.evaluation.suite.problems import read_file, read_problems
from lightning_l2l.evaluation.suite.rivals import Rival
from lightning_l2l.evaluation.suite.runs import Runs
from lightning_l2l.rules import Adam, AdamController

OURS = learned(Adam(learning_rate=0.01), "ours")[:1]


@pytest.fixture
def trainings(monkeypatch) -> list:
    """Which optimizers have been trained so far, with their settings and horizons."""
    found, train = [], suite_runs.train

    def counting(run, candidate, lengths, stop, published):
        found.append((candidate.name, candidate.settings.get("lr"), max(lengths), stop))
        return train(run, candidate, lengths, stop, published)

    monkeypatch.setattr(suite_runs, "train", counting)
    return found


def benchmark(**settings) -> Benchmark:
    """A benchmark of two problems, one of them without data, that has been set up."""
    settings = {"steps": (4, 8), "seeds": 2, "rival_seeds": 1} | settings
    made = Benchmark(write("mine", {"one": problem(5), "gone": missing()}), **settings)
    made.to_run = read_problems(read_file(str(made.problems))["problems"], made.root)
    made.opened = read_problems({"open": problem(6)}) if made.open_problems else []
    return made


def test_everyone_runs_on_what_is_there(trainings):
    made = benchmark()
    pairs = made.run(OURS)
    assert [(pair.entry.length, pair.entry.name) for pair in pairs] == [
        *((4, "Adam 1e-3"), (4, "ours")),
        *((8, "Adam 1e-3"), (8, "ours")),
    ]
    assert list(made.skipped) == ["gone"] and "nowhere" in made.skipped["gone"]
    assert len(trainings) == 4  # two optimizers, two seeds: four steps are read off the runs of eight
    for pair in pairs:
        assert pair.entry.records["one"].shape[0] == 2 and pair.entry.records["one"][0, -1, 0] == pair.entry.length
    assert np.exp(pairs[2].ratios()["one"]).tolist() == [1, 1] and pairs[3].score.mean < 1


def test_a_cosine_runs_for_each_number_of_steps(trainings):
    benchmark(rivals=[Rival("torch.optim.SGD", {"lr": 0.1}, cosine=True)]).run([])
    assert [one for one in trainings if one[0] != "Adam 1e-3"] == [
        ("SGD × cosine", 0.1, 4, 4),
        ("SGD × cosine", 0.1, 8, 8),
    ]


def test_single_rates_are_chosen_on_open_problems_and_the_default_is_shown(trainings):
    rival = Rival("torch.optim.SGD", {"lr": 0.5}, rates=[1e-9, 0.1, 1e9])
    pairs = benchmark(rivals=[rival], open_problems="given").run([])
    assert [pair.entry.name for pair in pairs if pair.entry.length == 8] == ["Adam 1e-3", "SGD", "SGD 0.1"]
    assert [pair.entry.rates.get("one") for pair in pairs[-2:]] == [0.5, 0.1]
    assert len([one for one in trainings if one[1] == 0.1]) == 2  # once on the open problem, once on the other


@pytest.mark.parametrize("settings", [{"lr": 0.001}, {}])
def test_a_default_that_is_chosen_runs_once(trainings, settings):
    rival = Rival("torch.optim.SGD", settings, rates=[1e-9, 0.001, 1e9])  # 0.001 is SGD's own default
    pairs = benchmark(rivals=[rival], open_problems="given").run([])
    assert [pair.entry.name for pair in pairs if pair.entry.length == 8] == ["Adam 1e-3", "SGD 0.001"]
    assert len([one for one in trainings if one[:2] == ("SGD 0.001", 0.001)]) == 1


def test_rates_are_tuned_on_seeds_of_their_own(trainings):
    rival = Rival("torch.optim.SGD", rates=[1e-9, 0.1, 1e9], choose="per_problem")
    pairs = benchmark(rivals=[rival], steps=(8,)).run([])
    assert pairs[-1].entry.name == "SGD, tuned" and pairs[-1].entry.rates == {"one": 0.1}
    assert len([one for one in trainings if one[0] == "SGD"]) == 3 * 2


def test_halving_gives_the_worse_rates_up_early(trainings):
    runs = Runs(read_problems({"one": problem()})[0], [16])
    rival = candidate(Rival("torch.optim.SGD", {}))
    assert tuned_rate(runs, rival, [1e-9, 0.03, 0.1, 1e9], 16, halving=True) == 0.1
    assert [(stop, rate) for _, rate, _, stop in trainings[::2]] == [
        *((2, 1e-9), (2, 0.03), (2, 0.1), (2, 1e9)),
        *((4, 0.1), (4, 0.03), (8, 0.1), (16, 0.1)),  # the best so far first
    ]


def test_finished_runs_are_kept_until_something_they_depend_on_changes(trainings, tmp_path):
    kept = tmp_path / "kept"
    first = benchmark().run(OURS, kept)
    count = len(trainings)
    again = benchmark().run(OURS, kept)
    assert len(trainings) == count
    assert np.array_equal(first[1].entry.records["one"], again[1].entry.records["one"], equal_nan=True)
    benchmark().run(learned(Adam(learning_rate=0.02), "ours")[:1], kept)
    assert len(trainings) == count + 2  # the rule's, not Adam's
    benchmark(seeds=3).run(OURS, kept)
    assert len(trainings) == count + 4


def test_runs_of_a_class_without_a_source_file_are_told_apart(trainings, tmp_path):
    names: dict = {"__name__": "a_notebook"}
    exec("import lightning_l2l.rules\nclass Own(lightning_l2l.rules.Adam):\n    pass", names)
    records = benchmark().run(learned(names["Own"](learning_rate=0.01), "own")[:1], tmp_path)[1].entry.records["one"]
    assert len(trainings) == 4  # two seeds of Adam, two of the class
    assert not np.array_equal(records[0], records[1])
    assert len(list(tmp_path.glob("*.npy"))) == 2  # Adam's, since a change of the class could not be noticed


def test_a_benchmark_that_was_killed_goes_on(monkeypatch, trainings, tmp_path):
    class Killed(BaseException):
        """Ends a run."""

    with monkeypatch.context() as patch:
        train = suite_runs.train

        def killed(*args):
            if len(trainings) == 2:
                raise Killed
            return train(*args)

        patch.setattr(suite_runs, "train", killed)
        with pytest.raises(Killed):
            benchmark().run(OURS, tmp_path)
    benchmark().run(OURS, tmp_path)
    assert len(trainings) == 4


def test_wrong_settings_are_refused():
    with pytest.raises(InvalidInputError, match=r"benchmark\.seeds is 0"):
        Benchmark(seeds=0)
    with pytest.raises(InvalidInputError, match=r"benchmark\.steps is 0"):
        Benchmark(steps=())
    with pytest.raises(InvalidInputError, match=r"benchmark\.open_problems is missing"):
        Benchmark("mine.yaml", rivals=[Rival("torch.optim.Adam", rates=[0.1])])
    with pytest.raises(InvalidInputError, match="which cannot be read"):
        read_file("nope.yaml")
    Path("none.yaml").write_text("problems: {}\n")
    with pytest.raises(InvalidInputError, match="which has no problems"):
        read_file("none.yaml")


@pytest.mark.parametrize(
    ("published", "sentence"),
    [
        ([0.1], "whose key published does not give losses by problem and step"),
        ({"one": [0.1]}, "whose key published does not give losses by problem and step"),
        ({"one": {"2000": 0.1}}, "whose key published does not give losses by problem and step"),
    ],
)
def test_published_curves_of_another_form_are_refused(published, sentence):
    with pytest.raises(InvalidInputError, match=sentence):
        read_file(write("mine", {"one": problem()}, published=published))
    with pytest.raises(InvalidInputError, match="a problem is called 1: put its name in quotes"):
        read_file(write("mine", {1: problem()}))
    assert read_file(write("mine", {"one": problem()}, published=None))["published"] == {}


def test_rivals_of_one_name_are_refused(fitted, fails):
    write("mine", {"one": problem()})
    flags = tiny("test", "--ckpt_path=best", "--benchmark.problems=mine_problems.yaml")
    sgd = "{optimizer: torch.optim.SGD, settings: {lr: 0.1}}"
    assert "benchmark.rivals has SGD twice" in fails(*flags, f"--benchmark.rivals=[{sgd}, {sgd}]")
    named = "{optimizer: torch.optim.SGD, settings: {lr: 0.1}, name: Adam 1e-3}"
    assert "benchmark.rivals has Adam 1e-3 twice" in fails(*flags, f"--benchmark.rivals=[{named}]")


class Negative(nn.CrossEntropyLoss):
    """A loss whose ratios mean nothing."""

    def forward(self, *given):
        return super().forward(*given) - 9


def test_a_loss_that_is_not_positive_is_skipped():
    made = benchmark()
    made.to_run[-1].data.loss = Negative()
    made.run(OURS)
    assert "one" in made.skipped and "give a loss that is positive" in made.skipped["one"]


def test_a_run_depends_on_the_split_of_its_examples():
    runs = Runs(read_problems({"one": problem()})[0], [4])
    before = runs._depends_on(OURS[0], 0, 4, "test")
    runs.data.examples.ranges = runs.data.examples.ranges | {"test": (0, 5)}
    assert runs._depends_on(OURS[0], 0, 4, "test") != before


@pytest.mark.parametrize("file", ["stepper.py", "arithmetic.py", "kernel.cpp", "units.py"])
def test_a_kept_run_depends_on_the_source_of_a_rules_steps_and_not_on_others(file, monkeypatch):
    ours, read = learned(AdamController(), "ours")[0], Path.read_bytes
    before, torchs = ours.depends_on(), adam().depends_on()
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"\n" * (path.name == file))
    assert ours.depends_on() != before and adam().depends_on() == torchs


def test_a_test_runs_it_and_writes_what_it_found(fitted, capsys):
    write("mine", {"one": problem(), "gone": missing()}, published={"one": {3: 1e9, 4: 1e9}})
    flags = ["--benchmark.problems=mine_problems.yaml", "--benchmark.steps=[3, 4]", "--benchmark.seeds=2"]
    rivals = "--benchmark.rivals=[{optimizer: torch.optim.SGD, settings: {lr: 0.1}, name: plain}]"
    main(tiny("test", "--ckpt_path=best", *flags, rivals))
    rows = list(csv.DictReader((RUN / "mine.csv").read_text().splitlines()))
    assert [row["optimizer"] for row in rows if row["problem"] == "all" and row["steps"] == "4"] == [
        *("Adam 1e-3", "LSTM", "LSTM × cosine", "plain"),
    ]
    assert {row["published"] for row in rows if row["problem"] == "all"} == {"below 1 of 1"}
    assert (RUN / "mine.png").stat().st_size > 10_000 and any(Path("runs/benchmark").iterdir())
    printed = capsys.readouterr().out
    assert "Loss over that of Adam 1e-3 on 1 problems" in printed and "Skipped: gone" in printed


def test_wrong_rivals_and_problems_are_named_before_the_race(fitted, fails):
    write("mine", {"one": problem()})
    flags = tiny("test", "--ckpt_path=best", "--benchmark.problems=mine_problems.yaml")
    assert "torch.optim.Nope" in fails(*flags, "--benchmark.rivals=[{optimizer: torch.optim.Nope}]")
    assert "benchmark.only has two" in fails(*flags, "--benchmark.only=[two]")
    nowhere = "--benchmark.problems=nowhere.yaml"
    assert "--benchmark.problems is nowhere.yaml, which is no file" in fails(*flags, nowhere)
    assert "batch_size is 0" in fails(
        *tiny("test", "--ckpt_path=best", f"--benchmark.problems={write('bad', {'one': problem(batch_size=0)})}")
    )
