"""The race of the learned rule against tuned baselines, after each validation and in a test."""

import sys
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info
from rich.console import Console
from torch import Tensor
from tqdm import tqdm

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import require_positive
from lightning_l2l.evaluation.result_cache import ResultCache
from lightning_l2l.evaluation.results import (
    Entry,
    Race,
    best_baseline,
    curves_figure,
    results_table,
    write_results,
)
from lightning_l2l.evaluation.tuning import BASELINES, learning_rates, tune
from lightning_l2l.learners.base import curves_in, dtype_of, label_of
from lightning_l2l.rules import HandDesignedRule
from lightning_l2l.tensorboard import has_tensorboard, show_figure
from lightning_l2l.unroll import learning_curves


class Comparison(Callback):
    """Races the learned rule against SGD, NAG, RMSprop and Adam on the same episodes.

    Each baseline's learning rate is tuned for the best final loss on episodes set apart for that. Every validation
    draws the learning curves into TensorBoard; a test prints the table and writes results.csv, curves.npz and
    curves.png into the run's folder. Tuned rates and the baselines' curves are kept beside all runs, in the folder
    ``baselines`` of the logger's ``save_dir``, under the episodes they belong to: the same are not run twice, whether a
    test was killed or another rule is raced. Who changes the code of a baseline must remove that folder.

    Attributes:
        best: the baseline with the lowest final loss in the last race, at its tuned rate; None before one.

    Args:
        rates_per_decade: how fine the grid of learning rates from 1e-4 to 10 is.
        prune_rates: give up the worse half of the rates after an eighth, a quarter and half of the horizon, for
            a third of the time; a rate that is slow at first but best in the end may then be missed, above all where
            runs begin on a plateau (``deep`` of mnist_transfer.yaml: SGD ended at 2.30 so, at 1.79 else).
        results: what results call the experiment, and a folder for them in the run's folder, so that tests of one rule
            on several things do not overwrite each other; by default the logger's name, and the run's folder itself.
    """

    def __init__(self, rates_per_decade: int = 4, prune_rates: bool = False, results: str = "") -> None:
        require_positive("comparison.rates_per_decade", rates_per_decade)
        self.rates_per_decade = rates_per_decade
        self.prune_rates = prune_rates
        self.results = results
        self.races: list[Race] = []
        self.best: HandDesignedRule | None = None
        self.races_to_come = 0  # after the one at hand, in the same test
        self.tuned: dict[str, float] = {}
        self.baselines: list[Entry] = []  # on the validation episodes, which are the same each time
        self.curves: dict[str, list[Tensor]] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tunes the baselines."""
        self._tune(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tunes the baselines."""
        self._tune(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the curves of the last validation."""
        self.curves = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Episodes,
        *_: Any,
    ) -> None:
        """Runs the baselines on the validation episodes, the first time."""
        if (curves := curves_in(outputs)) is None:
            return
        self._add(label_of(pl_module), curves)
        if self.tuned and not self.baselines:
            self._race(trainer, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the learning curves."""
        if not self.curves:
            return
        entries = self._entries(pl_module)
        learned, baselines = entries[0], entries[1:]
        self.baselines = self.baselines or baselines
        self.best = best_baseline(self.baselines)
        if trainer.is_global_zero and has_tensorboard(trainer):
            race = Race(variant(trainer), [learned, *self.baselines])
            show_figure(trainer, "val/curves", curves_figure([race], experiment_name(trainer)))

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the curves of an earlier test."""
        self.curves = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Episodes,
        *_: Any,
    ) -> None:
        """Runs the baselines on the same episodes."""
        if (curves := curves_in(outputs)) is not None:
            self._add(label_of(pl_module), curves)
            self._race(trainer, batch)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the table, after the last race, and writes the files, after each."""
        if not self.curves:
            return
        entries = self._entries(pl_module)
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
        episodes = data.tuning_episodes_batch().to(pl_module.device, dtype_of(pl_module))
        pruned = ", the worse halves given up early" if self.prune_rates else ""
        rank_zero_info(f"Tuning the baselines: {len(rates)} learning rates on {len(episodes)} episodes{pruned} ...")
        fingerprint = episodes.fingerprint()

        settings = data.horizon, self.rates_per_decade, self.prune_rates, trainer.precision
        bar = tqdm(
            desc="tuning",
            total=len(BASELINES) * len(rates),
            leave=False,
            disable=not trainer.is_global_zero,
            dynamic_ncols=True,
        )

        def tuned(baseline: type[HandDesignedRule]) -> Tensor:
            return self._cache(trainer).get(
                lambda: torch.tensor(tune(baseline, episodes, data.horizon, rates, self.prune_rates, bar.update)),
                *("rate", baseline.__name__, fingerprint, settings),
            )

        with bar, torch.no_grad(), trainer.precision_plugin.forward_context():
            for number, baseline in enumerate(BASELINES, 1):
                self.tuned[baseline.__name__] = float(tuned(baseline))
                bar.update(number * len(rates) - bar.n)  # those that are known, or need not be tried
        rank_zero_info("  " + ", ".join(f"{name} {rate:.3g}" for name, rate in self.tuned.items()))

    def _race(self, trainer: Trainer, episodes: Episodes) -> None:
        horizon, fingerprint = trainer.datamodule.horizon, episodes.fingerprint()  # type: ignore[attr-defined]
        for baseline in BASELINES:
            name, rate = baseline.__name__, self.tuned[baseline.__name__]

            def run(baseline: type[HandDesignedRule] = baseline, rate: float = rate) -> Tensor:
                with trainer.precision_plugin.forward_context():
                    return learning_curves(baseline(rate).to(episodes.theta), episodes, horizon)

            curves = self._cache(trainer).get(run, "curves", name, rate, fingerprint, horizon, trainer.precision)
            self._add(name, curves.to(episodes.theta))

    def _cache(self, trainer: Trainer) -> ResultCache:
        """One for all experiments, beside their runs; it keeps nothing where runs are not kept."""
        if not has_tensorboard(trainer):
            return ResultCache(None)
        return ResultCache(Path(trainer.logger.save_dir) / "baselines")  # type: ignore[union-attr, arg-type]

    def _add(self, name: str, curves: Tensor) -> None:
        self.curves.setdefault(name, []).append(curves)

    def _entries(self, pl_module: LightningModule) -> list[Entry]:
        """The curves of all processes, first the learned rule's."""
        entries = []
        for name, batches in self.curves.items():
            curves = cast(Tensor, pl_module.all_gather(torch.cat(batches)))
            curves = curves.transpose(0, 1).flatten(0, 1) if curves.ndim == 3 else curves  # [W, N, ·]: dealt in turn
            entries.append(Entry(name, self.tuned.get(name), curves.cpu()))
        return entries


def variant(trainer: Trainer) -> str:
    """Which form of the optimizee is being run."""
    return trainer.datamodule.variant  # type: ignore[attr-defined]


def experiment_name(trainer: Trainer) -> str:
    """What results call the experiment: the logger's name, or the DataModule's."""
    return (trainer.logger and trainer.logger.name) or type(trainer.datamodule).__name__  # type: ignore[attr-defined]


def comparison_of(trainer: Trainer) -> Comparison:
    """The trainer's comparison, which knows the best baseline and where results are written."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, Comparison))  # type: ignore[attr-defined]
