"""The benchmark of a test: everyday problems, trained with the learned rule and with what people would use instead."""

import copy
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info
from rich.console import Console
from tqdm import tqdm

from lightning_l2l.errors import InvalidInputError, require_positive
from lightning_l2l.evaluation.suite.candidates import Candidate, adam, candidate, learned
from lightning_l2l.evaluation.suite.choosing import open_scores, tuned_rate
from lightning_l2l.evaluation.suite.entries import Entry, Paired, rows, write_rows
from lightning_l2l.evaluation.suite.pictures import figure, table
from lightning_l2l.evaluation.suite.problems import Problem, read_file, read_problems
from lightning_l2l.evaluation.suite.rivals import Rival
from lightning_l2l.evaluation.suite.runs import Runs, load
from lightning_l2l.learners.base import label_of, rule_of
from lightning_l2l.tensorboard import has_tensorboard, show_figure


class Benchmark(Callback):
    """Trains the networks of a list of problems with the learned rule, and with other optimizers, in a plain loop.

    A test does so after its race, if ``problems`` is given. It prints a table of losses over those of Adam with rate
    1e-3, and writes NAME.csv and NAME.png into the run's folder, for problems NAME_problems.yaml. Runs are kept in the
    folder ``benchmark`` of the logger's ``save_dir``, keyed by everything that they depend on, so that a test that was
    killed goes on. All of it runs on the CPU.

    Args:
        problems: a YAML file, or the name of a shipped one: under ``problems`` a name for each problem, with its
            settings of ``data`` (a ModuleTraining); under ``published`` losses of others' curves, by problem and step.
        open_problems: a file like it, on which single rates of rivals are chosen.
        rivals: other optimizers; see ``lightning_l2l.evaluation.suite.rivals.Rival``.
        steps: the numbers of training steps after which optimizers are compared.
        seeds: runs of the learned rule and of Adam 1e-3 on each problem.
        rival_seeds: runs of each rival on each problem, the first of these.
        root: the folder of datasets, for problems that give no other.
        prune_rates: drop the worse half of the rates that are tuned per problem after an eighth, a quarter and half of
            the steps.
        only: names of the problems to run; null runs all.
    """

    def __init__(
        self,
        problems: str | None = None,
        open_problems: str | None = None,
        rivals: list[Rival] | None = None,
        steps: tuple[int, ...] = (500, 2000),
        seeds: int = 10,
        rival_seeds: int = 3,
        root: str = "data",
        prune_rates: bool = False,
        only: list[str] | None = None,
    ) -> None:
        self.problems = problems
        self.open_problems = open_problems
        self.rivals = rivals or []
        self.steps = sorted(steps)
        self.seeds = seeds
        self.rival_seeds = min(rival_seeds, seeds)
        self.root = root
        self.prune_rates = prune_rates
        self.only = only
        self.to_run: list[Problem] = []
        self.published: dict[str, dict[int, float]] = {}
        self.opened: list[Problem] = []
        self.skipped: dict[str, str] = {}
        self.done = False
        for key, value in {"seeds": seeds, "rival_seeds": rival_seeds, "steps": min(self.steps, default=0)}.items():
            require_positive(f"benchmark.{key}", value)
        if any(rival.rates and rival.choose == "single" for rival in self.rivals) and problems and not open_problems:
            raise InvalidInputError(
                "benchmark.open_problems is missing, but a rival's rate is to be chosen on them: give a file."
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reads the problems and tries all optimizers, before any slow work."""
        if self.problems is None or stage != "test" or self.done:
            return
        settings = read_file(self.problems)
        self.to_run = read_problems(settings["problems"], self.root)
        if self.only is not None:
            unknown = set(self.only) - {problem.name for problem in self.to_run}
            if unknown:
                raise InvalidInputError(f"benchmark.only has {', '.join(sorted(unknown))}, which no problem is called.")
            self.to_run = [problem for problem in self.to_run if problem.name in self.only]
        self.published = settings["published"]
        if self.open_problems:
            key = "benchmark.open_problems"
            self.opened = read_problems(read_file(self.open_problems, key)["problems"], self.root, key)
        for rival in self.rivals:
            candidate(rival).check()
        own = self._own(pl_module)
        for one, problem in itertools.product(own, self.to_run):
            one.make(copy.deepcopy(problem.data.network))
        refuse_repeated([adam().name, *(one.name for one in own)], self.rivals)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs the benchmark, once, and shows what it found."""
        if not self.to_run or self.done or not trainer.is_global_zero:
            return
        self.done = True
        kept = Path(trainer.logger.save_dir) / "benchmark" if has_tensorboard(trainer) else None  # type: ignore
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        pairs = self.run(self._own(pl_module), kept)
        if not pairs:
            raise InvalidInputError(
                f"benchmark.root is {self.root}, where no problem has its data: {'; '.join(self.skipped.values())}"
            )
        name = Path(str(self.problems)).stem.removesuffix("_problems")
        folder.mkdir(parents=True, exist_ok=True)
        write_rows([row for one in pairs for row in rows(one, self.published)], folder / f"{name}.csv")
        picture = figure([one for one in pairs if one.entry.length == self.steps[-1]])
        picture.savefig(folder / f"{name}.png", dpi=100)
        if has_tensorboard(trainer):
            show_figure(trainer, f"test/{name}", picture)
        console = Console(width=None if sys.stdout.isatty() else 160)
        console.print(table(pairs, self.published, self.skipped))
        console.print(f"Written to {folder}: {name}.csv, {name}.png", soft_wrap=True)

    def run(self, own: Sequence[Candidate], kept: Path | None = None) -> list[Paired]:
        """Runs all optimizers on all problems.

        Args:
            own: the candidates that run with all seeds, beside Adam 1e-3.
            kept: the folder of finished runs; None keeps nothing.

        Returns:
            An entry, paired with that of Adam 1e-3, for each number of steps and optimizer, Adam's own first.
        """
        chosen = self._choose(kept)
        entries: dict[tuple[int, str], Entry] = {}
        for problem in tqdm(self.to_run, "problems", leave=False, dynamic_ncols=True):
            runs = load(problem, self.steps, kept, problem.name in self.published)
            if isinstance(runs, str):
                self.skipped[problem.name] = runs
                rank_zero_info(f"Skipping {problem.name}: {runs}")
                continue
            for length, one, seeds in self._entrants(own, chosen, runs):
                records = np.stack([runs.record(one, seed, length).numpy() for seed in range(seeds)])
                entry = entries.setdefault((length, one.name), Entry(one.name, length))
                entry.records[problem.name] = records
                if "lr" in one.settings:
                    entry.rates[problem.name] = one.settings["lr"]
        in_order = sorted(entries.values(), key=lambda entry: entry.length)
        return [Paired(entry, entries[entry.length, adam().name]) for entry in in_order]

    def _own(self, learner: LightningModule) -> list[Candidate]:
        rule = rule_of(learner)
        if rule is None:
            raise InvalidInputError(
                f"benchmark.problems is {self.problems}, but {type(learner).__name__} has no rule to train with: leave "
                "it out, or give another learner."
            )
        return learned(rule, label_of(learner))

    def _choose(self, kept: Path | None) -> dict[tuple[str, int], float]:
        """The single rate of each rival that has one, for each number of steps."""
        rivals = [rival for rival in self.rivals if rival.rates and rival.choose == "single"]
        scores: dict[tuple[str, int], list[np.ndarray]] = {}
        for problem in tqdm(self.opened if rivals else [], "open problems", leave=False, dynamic_ncols=True):
            runs = load(problem, self.steps, kept)
            if isinstance(runs, str):
                self.skipped[problem.name] = runs
                continue
            for rival in rivals:
                for length in self.steps:
                    found = open_scores(runs, candidate(rival), rival.rates, length)
                    scores.setdefault((full_name(rival), length), []).append(found)
        rates = {full_name(rival): rival.rates for rival in rivals}
        return {(name, n): rates[name][int(np.mean(found, 0).argmin())] for (name, n), found in scores.items()}

    def _entrants(
        self, own: Sequence[Candidate], chosen: dict[tuple[str, int], float], runs: Runs
    ) -> Iterator[tuple[int, Candidate, int]]:
        """Everything that runs on a problem: the number of steps, the optimizer and the number of seeds."""
        for length in self.steps:
            for one in (adam(), *own):
                yield length, one, self.seeds
            for rival in self.rivals:
                name, given = full_name(rival), candidate(rival)
                if rival.choose == "per_problem":
                    rate = tuned_rate(runs, given, rival.rates, length, self.prune_rates)
                    yield length, replace(given.with_rate(rate), name=name_tuned(name)), self.rival_seeds
                    continue
                single = chosen.get((name, length))
                if single is None or single != given.rate:
                    yield length, replace(given, name=name), self.rival_seeds
                if single is not None:
                    yield length, replace(given.with_rate(single), name=name_at(name, single)), self.rival_seeds


def full_name(rival: Rival) -> str:
    """What tables call a rival."""
    return f"{rival.name} × cosine" if rival.cosine else rival.name


def name_at(name: str, rate: float) -> str:
    """What tables call a rival at a single rate."""
    return f"{name} {rate:.3g}"


def name_tuned(name: str) -> str:
    """What tables call a rival whose rate is tuned for each problem."""
    return f"{name}, tuned"


def refuse_repeated(others: Sequence[str], rivals: Sequence[Rival]) -> None:
    """Refuses rivals that tables would call alike, or like one of the others."""
    names = list(others)
    for rival in rivals:
        name = full_name(rival)
        at_rates = {name_at(name, rate) for rate in rival.rates}
        names += [name_tuned(name)] if rival.choose == "per_problem" else [name, *at_rates]
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if repeated:
        raise InvalidInputError(f"benchmark.rivals has {repeated[0]} twice: give each a name of its own.")
