"""The race of the learned rule against tuned baselines and rivals, after each validation and in a test."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info
from rich.console import Console
from torch import Tensor
from tqdm import tqdm

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import InvalidInputError, require_inside, require_positive
from lightning_l2l.evaluation.contestants import Contestant, contestants, run_of, told_apart
from lightning_l2l.evaluation.outcomes import Outcomes, as_one, in_two
from lightning_l2l.evaluation.result_cache import ResultCache
from lightning_l2l.evaluation.results import (
    Entry,
    Race,
    best_baseline,
    curves_figure,
    results_table,
    write_results,
)
from lightning_l2l.evaluation.tuning import RATE, Grid, grid_of, learning_rates, size_of, tune
from lightning_l2l.learners.base import counted, dtype_of, evaluated, label_of, rule_of
from lightning_l2l.optimizees import EpisodeDataModule
from lightning_l2l.rules import UpdateRule
from lightning_l2l.tensorboard import has_tensorboard, show_figure
from lightning_l2l.unroll import evaluate


class Comparison(Callback):
    """Races the learned rule against baselines, and other learned rules, on the same episodes.

    Each baseline's settings are tuned for the best final loss on separate episodes. Every validation draws the learning
    curves into TensorBoard; a test prints the table and writes results.csv, curves.npz and curves.png into the run's
    folder. Where episodes have an accuracy, that of the runs' ends is in the table and in results.csv. Tuned settings
    and the baselines' curves are cached in the folder ``baselines`` of the logger's ``save_dir``, keyed by everything
    that they depend on: the episodes, the baseline's settings and the source code of both. So nothing runs twice after
    a test was killed, or when another rule is raced.

    Attributes:
        best: the baseline with the lowest final loss in the last race, with its tuned settings; None before one.

    Args:
        rates_per_decade: learning rates per decade, on a grid from 1e-4 to 10.
        prune_rates: drop the worse half of the rates after an eighth, a quarter and half of the horizon, which takes a
            third of the time. It may miss a rate that is slow at first but best in the end, above all where runs begin
            on a plateau (``deep`` of mnist_transfer.yaml: SGD ended at 2.30 with it, at 1.79 without).
        results: the experiment's name in results, and their folder in the run's folder, so that tests of one rule on
            several problems do not overwrite each other; by default the logger's name, and the run's folder itself.
        baselines: update rules by class path, with settings. A rule's attribute ``learning_rate`` is tuned, whatever
            value it is given, together with the settings that its attribute ``tuned_with`` names; a rule without one
            races as given. Null is SGD, NAG, RMSprop and Adam, as in the paper.
        rivals: other trained rules, each ``pretrained:NAME``, ``pretrained:PATH`` or the path of a checkpoint. They
            appear in the table but never count as the best baseline.
    """

    def __init__(
        self,
        rates_per_decade: int = 4,
        prune_rates: bool = False,
        results: str = "",
        baselines: list[UpdateRule] | None = None,
        rivals: list[str] | str | None = None,
    ) -> None:
        require_positive("comparison.rates_per_decade", rates_per_decade)
        require_inside("comparison.results", results)
        self.rates_per_decade = rates_per_decade
        self.prune_rates = prune_rates
        self.results = results
        self.baselines = baselines
        self.rivals = [rivals] if isinstance(rivals, str) else rivals or []
        self.races: list[Race] = []
        self.best: UpdateRule | None = None
        self.races_to_come = 0  # after the current one, in the same test
        self.contestants: list[Contestant] | None = None
        self.run = ""  # of the learned rule, in a test against rivals from other runs
        self.validated: list[Entry] = []  # all but the learned rule; validation episodes never change
        self.outcomes = Outcomes()  # the learned rule's first, then each contestant's

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the contestants, before any slow work."""
        if stage in ("fit", "test"):
            self.check(trainer, pl_module, trainer.datamodule)  # type: ignore[attr-defined]

    def check(self, trainer: Trainer, learner: LightningModule, datamodule: EpisodeDataModule) -> None:
        """Refuses contestants that cannot be read, or do not fit the data.

        Raises:
            InvalidInputError: names the first.
        """
        if self.contestants is None:
            logger = trainer.logger
            home = Path(logger.save_dir) / str(logger.name) if logger and logger.save_dir else None
            self.contestants = contestants(learner, self.baselines, self.rivals, home)
        for contestant in self.contestants:
            try:
                contestant.check(datamodule)
            except InvalidInputError as error:
                raise InvalidInputError(f"comparison.{contestant.kind}s has {contestant.name}: {error}") from None

    @property
    def alone(self) -> bool:
        """Whether there is nobody to race against."""
        return self.contestants == []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tunes the baselines."""
        self._tune(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tunes the baselines, and finds the learned rule's name."""
        checkpoints = Path(trainer.log_dir or "") / "checkpoints"
        rivals_have_runs = any(contestant.run for contestant in self.contestants or [])
        self.run = run_of(checkpoints / "best.ckpt") if rivals_have_runs and checkpoints.is_dir() else ""
        self._tune(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the outcomes of the last validation."""
        self.outcomes = Outcomes()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Episodes,
        batch_idx: int,
        *_: Any,
    ) -> None:
        """Runs the contestants on the validation episodes, in the first validation only."""
        if trainer.sanity_checking:
            return
        if (learned := evaluated(outputs, batch, horizon_of(trainer))) is not None:
            others = () if self.validated else self._race(trainer, batch)
            self.outcomes.add(counted(trainer, batch, batch_idx), [as_one(*learned), *others])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the learning curves."""
        if not self.outcomes.batches:
            return
        learned, *others = self._entries(trainer, pl_module)
        self.validated = self.validated or others
        self.best = best_baseline(self.validated)
        if trainer.is_global_zero and has_tensorboard(trainer):
            race = Race(variant(trainer), [learned, *self.validated])
            show_figure(trainer, "val/curves", curves_figure([race], experiment_name(trainer)))

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the outcomes of an earlier test."""
        self.outcomes = Outcomes()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Episodes,
        batch_idx: int,
        *_: Any,
    ) -> None:
        """Runs the contestants on the same episodes."""
        if (learned := evaluated(outputs, batch, horizon_of(trainer))) is not None:
            self.outcomes.add(counted(trainer, batch, batch_idx), [as_one(*learned), *self._race(trainer, batch)])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the table, after the last race, and writes the files, after each."""
        if not self.outcomes.batches:
            return
        entries = self._entries(trainer, pl_module)
        self.best = best_baseline(entries)
        folder = self.folder(trainer)
        if not trainer.is_global_zero:
            return
        experiment = self.results or experiment_name(trainer)
        self.races.append(Race(variant(trainer), entries))
        write_results(self.races, folder, experiment)
        if has_tensorboard(trainer):
            show_figure(trainer, "test/curves", curves_figure(self.races, experiment_name(trainer)))
        if not self.races_to_come:
            console = Console(width=None if sys.stdout.isatty() else 120)
            console.print(results_table(self.races, experiment))
            console.print(f"Written to {folder}: results.csv, curves.npz, curves.png", soft_wrap=True)
            self.races = []

    def folder(self, trainer: Trainer) -> Path:
        """Where a test's results are written; all processes must ask for it."""
        return Path(trainer.log_dir or trainer.default_root_dir) / self.results

    def _tune(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        rates = learning_rates(self.rates_per_decade)
        grids = [(one, grid_of(one.rule, rates)) for one in self.contestants or [] if one.tunable]
        if not grids:
            return
        batches = [episodes.to(pl_module.device, dtype_of(pl_module)) for episodes in data.tuning_batches()]
        count, pruned = sum(map(len, batches)), ", the worse halves given up early" if self.prune_rates else ""
        rank_zero_info(f"Tuning the baselines: {len(rates)} learning rates on {count} episodes{pruned} ...")
        fingerprints = [episodes.fingerprint() for episodes in batches]
        bar = tqdm(
            desc="tuning",
            total=sum(size_of(grid) for _, grid in grids) * len(batches),
            leave=False,
            disable=not trainer.is_global_zero,
            dynamic_ncols=True,
        )
        done = 0
        with bar, torch.no_grad(), trainer.precision_plugin.forward_context():
            for contestant, grid in grids:

                def best(contestant: Contestant = contestant, grid: Grid = grid) -> Tensor:
                    rule = contestant.over(data.horizon).to(batches[0].theta)
                    found = tune(rule, batches, data.horizon, grid, self.prune_rates, bar.update, data.last_steps)
                    return torch.tensor([found[name] for name in grid], dtype=torch.double)

                settings = fingerprints, data.horizon, data.last_steps, grid, self.prune_rates, trainer.precision
                found = self._kept(trainer, contestant, batches, best, "settings", *settings)
                contestant.tuned = dict(zip(grid, found.tolist(), strict=True))
                done += size_of(grid) * len(batches)
                bar.update(done - bar.n)  # counts those that are cached or pruned
        rank_zero_info("  " + ", ".join(in_words(contestant) for contestant, _ in grids))

    def _race(self, trainer: Trainer, episodes: Episodes) -> Iterator[Tensor]:
        """Runs each contestant, or reads its cached outcome."""
        horizon = horizon_of(trainer)
        fingerprint = episodes.accuracy_fingerprint() or episodes.fingerprint()
        for contestant in self.contestants or []:

            def run(contestant: Contestant = contestant) -> Tensor:
                with trainer.precision_plugin.forward_context():
                    return as_one(*evaluate(contestant.tuned_over(horizon).to(episodes.theta), episodes, horizon))

            settings = sorted(contestant.tuned.items()), fingerprint, horizon, trainer.precision
            yield self._kept(trainer, contestant, [episodes], run, "curves", *settings).to(episodes.theta)

    def _kept(
        self,
        trainer: Trainer,
        contestant: Contestant,
        batches: Sequence[Episodes],
        compute: Callable[[], Tensor],
        *settings: object,
    ) -> Tensor:
        """Computes a baseline's result once for all experiments; caches nothing if runs are not kept."""
        depends_on = contestant.depends_on(batches) if contestant.kind == "baseline" else None
        folder = Path(trainer.logger.save_dir) / "baselines" if has_tensorboard(trainer) else None  # type: ignore
        with batches[0].same_random_numbers():  # whichever results were cached
            return ResultCache(folder if depends_on else None).get(compute, depends_on, *settings)

    def _entries(self, trainer: Trainer, pl_module: LightningModule) -> list[Entry]:
        """The outcomes in all processes, first the learned rule's."""
        learned = f"{label_of(pl_module)} {self.run}".strip()
        names = told_apart([learned, *(contestant.name for contestant in self.contestants or [])])
        data = trainer.datamodule  # type: ignore[attr-defined]
        entries = []
        for number, outcome in enumerate(self.outcomes.of_all_processes(pl_module)):
            curves, accuracy = in_two(outcome, data.horizon)
            if number == 0:
                entry = Entry(names[0], "learned", curves, rule_of(pl_module), run=self.run)
            else:
                one = (self.contestants or [])[number - 1]
                entry = Entry(names[number], one.kind, curves, one.tuned_over(data.horizon), one.tuned, one.run)
            entries.append(replace(entry, accuracy=accuracy, last=data.last_steps))
        return entries


def in_words(contestant: Contestant) -> str:
    """The tuned settings of a baseline."""
    others = ", ".join(f"{name} {value:.3g}" for name, value in contestant.tuned.items() if name != RATE)
    return f"{contestant.name} {contestant.tuned[RATE]:.3g}{others and f' ({others})'}"


def horizon_of(trainer: Trainer) -> int:
    """Steps of a run."""
    return trainer.datamodule.horizon  # type: ignore[attr-defined]


def variant(trainer: Trainer) -> str:
    """Which form of the optimizee is being run."""
    return trainer.datamodule.variant  # type: ignore[attr-defined]


def experiment_name(trainer: Trainer) -> str:
    """What results call the experiment: the logger's name, or the DataModule's."""
    return (trainer.logger and trainer.logger.name) or type(trainer.datamodule).__name__  # type: ignore[attr-defined]


def comparison_of(trainer: Trainer) -> Comparison:
    """The trainer's comparison, which knows the best baseline and where results are written."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, Comparison))  # type: ignore[attr-defined]
