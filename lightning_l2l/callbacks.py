"""What the terminal and TensorBoard show while it runs, and what is kept."""

import signal
import sys
import threading
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_info
from rich.console import Console
from torch import Tensor
from tqdm import tqdm

from lightning_l2l.comparison import (
    BASELINES,
    Entry,
    Race,
    best_baseline,
    curves_figure,
    learning_rates,
    results_table,
    tune,
    write_results,
)
from lightning_l2l.optimizees import Episodes
from lightning_l2l.optimizees.base import require_positive
from lightning_l2l.result_cache import ResultCache
from lightning_l2l.rules import HandDesignedRule, UpdateRule
from lightning_l2l.unroll import learning_curves


class BestCheckpoint(ModelCheckpoint):
    """Keeps φ with the lowest val/meta_loss as checkpoints/best.ckpt; a loss that is not a number is never best."""

    def __init__(self) -> None:
        super().__init__(
            monitor="val/meta_loss",
            filename="best",
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether this is the best so far."""
        return current is not None and bool(current.isfinite()) and super().check_monitor_top_k(trainer, current)


class LastCheckpoint(ModelCheckpoint):
    """Keeps checkpoints/last.ckpt, written after each validation and when training is interrupted."""

    def __init__(self) -> None:
        super().__init__(
            filename="last",
            enable_version_counter=False,
            save_on_train_epoch_end=False,
            save_on_exception=True,
        )


class Interrupt(Callback):
    """Lets the first Ctrl-C finish the meta-batch at hand, so that what is saved can be resumed exactly."""

    def __init__(self) -> None:
        self.requested = False
        self.before: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over SIGINT."""

        def handle(number: int, frame: Any) -> None:
            self.requested = True
            signal.signal(signal.SIGINT, self.before)  # a second Ctrl-C stops at once
            print(
                "\nFinishing this meta-batch; Ctrl-C again stops at once.",
                file=sys.stderr,
            )

        if threading.current_thread() is threading.main_thread():  # the only one that may
            self.before = signal.signal(signal.SIGINT, handle)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stops here if Ctrl-C was pressed."""
        if trainer.strategy.reduce_boolean_decision(self.requested, all=False):  # a signal may reach one process
            rank_zero_info("\nResume with the same command and --ckpt_path last.")
            raise KeyboardInterrupt

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives SIGINT back."""
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)
            self.before = None


class MetaProgressBar(ProgressBar):
    """One bar over all meta-batches of the training, or all batches of a test or of predict, with the time left."""

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.bar: tqdm | None = None

    def disable(self) -> None:
        """Called in all processes but the first."""
        self.enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = int(trainer.num_training_batches)
        self._open(
            "meta-training",
            batches * (trainer.max_epochs or 1),
            trainer.fit_loop.total_batch_idx + 1,
        )

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._advance(trainer, {"meta_loss": "train/meta_loss", "val": "val/meta_loss"})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("test", int(sum(trainer.num_test_batches)), 0)

    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._advance(trainer, {"meta_loss": "test/meta_loss"})
        self._close_if_full()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("predict", int(sum(trainer.num_predict_batches)), 0)

    def on_predict_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._advance(trainer, {})
        self._close_if_full()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _open(self, name: str, total: int, initial: int) -> None:
        self._close()
        self.bar = tqdm(
            desc=name,
            total=total,
            initial=initial,
            disable=not self.enabled,
            dynamic_ncols=True,
        )

    def _advance(self, trainer: Trainer, shown: dict[str, str]) -> None:
        assert self.bar is not None
        metrics = trainer.callback_metrics
        postfix = {name: f"{metrics[key].item():.4g}" for name, key in shown.items() if key in metrics}
        self.bar.set_postfix(postfix, refresh=False)
        self.bar.update()

    def _close_if_full(self) -> None:
        """Before anything is printed about what was done."""
        if self.bar and self.bar.n == self.bar.total:
            self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class HyperparameterMetrics(Callback):
    """Fills TensorBoard's HParams tab: all settings of a run beside its best val/meta_loss."""

    METRIC = "hp/best_val_meta_loss"

    def __init__(self) -> None:
        self.best = torch.inf

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the settings."""
        if isinstance(trainer.logger, TensorBoardLogger):
            settings = {**pl_module.hparams, **trainer.datamodule.hparams}  # type: ignore[attr-defined]
            trainer.logger.log_hyperparams(settings, {self.METRIC: torch.nan})

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the best meta-loss so far."""
        loss = trainer.callback_metrics["val/meta_loss"].item()
        self.best = min(self.best, loss) if loss == loss else self.best
        pl_module.log(self.METRIC, self.best, rank_zero_only=True)

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Takes up what a checkpoint kept."""
        self.best = state_dict["best"]


class Comparison(Callback):
    """Races the learned rule against SGD, NAG, RMSprop and Adam on the same episodes.

    Each baseline's learning rate is tuned for the best final loss on episodes set apart for that. Every validation
    draws the learning curves into TensorBoard; a test prints the table and writes results.csv, curves.npz and
    curves.png into the run's folder. Tuned rates and the baselines' curves are kept beside the runs, in the folder
    ``baselines``, under the episodes they belong to: the same are not run twice, also after a test was killed. Who
    changes the code of a baseline must remove that folder.

    Attributes:
        best: the baseline with the lowest final loss in the last race, at its tuned rate; None before one.

    Args:
        rates_per_decade: how fine the grid of learning rates from 1e-4 to 10 is.
        prune_rates: give up the worse half of the rates after an eighth, a quarter and half of the horizon, for
            a third of the time; a rate that is slow at first but best in the end may then be missed.
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
        self._add(rule_name(pl_module), outputs)
        if self.tuned and not self.baselines:
            self._race(trainer, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the learning curves."""
        entries = self._entries(pl_module)
        learned, baselines = entries[0], entries[1:]
        self.baselines = self.baselines or baselines
        self.best = best_baseline(self.baselines)
        if trainer.is_global_zero:
            race = Race(variant(trainer), [learned, *self.baselines])
            self._to_tensorboard(trainer, [race], "val/curves")

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
        self._add(rule_name(pl_module), outputs)
        self._race(trainer, batch)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the table, after the last race, and writes the files, after each."""
        entries = self._entries(pl_module)
        self.best = best_baseline(entries)
        folder = self.folder(trainer)
        if not trainer.is_global_zero:
            return
        experiment = self.results or experiment_name(trainer)
        self.races.append(Race(variant(trainer), entries))
        write_results(self.races, folder, experiment)
        self._to_tensorboard(trainer, self.races, "test/curves")
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
        episodes = data.tuning_episodes_batch().to(pl_module.device, pl_module.rule_dtype)
        pruned = ", the worse halves given up early" if self.prune_rates else ""
        rank_zero_info(f"Tuning the baselines: {len(rates)} learning rates on {len(episodes)} episodes{pruned} ...")
        fingerprint = episodes.fingerprint()

        def tuned(baseline: type[HandDesignedRule]) -> Tensor:
            settings = data.horizon, self.rates_per_decade, self.prune_rates, trainer.precision
            return self._cache(trainer).get(
                lambda: torch.tensor(tune(baseline, episodes, data.horizon, rates, self.prune_rates)),
                *("rate", baseline.__name__, fingerprint, settings),
            )

        with torch.no_grad(), trainer.precision_plugin.forward_context():
            bar = tqdm(BASELINES, "tuning", leave=False, disable=not trainer.is_global_zero, dynamic_ncols=True)
            self.tuned = {baseline.__name__: float(tuned(baseline)) for baseline in bar}
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
        """Beside the runs of this experiment; it keeps nothing where runs are not kept."""
        folder = trainer.log_dir if isinstance(trainer.logger, TensorBoardLogger) else None
        return ResultCache(Path(folder).parent / "baselines" if folder else None)

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

    def _to_tensorboard(self, trainer: Trainer, races: list[Race], tag: str) -> None:
        if isinstance(trainer.logger, TensorBoardLogger):
            figure = curves_figure(races, experiment_name(trainer))
            trainer.logger.experiment.add_figure(tag, figure, trainer.fit_loop.total_batch_idx + 1)


def rule_name(pl_module: LightningModule) -> str:
    """What tables and figures call the learned rule."""
    return cast(UpdateRule, pl_module.rule).label


def variant(trainer: Trainer) -> str:
    """Which form of the optimizee is being run."""
    return trainer.datamodule.variant  # type: ignore[attr-defined]


def experiment_name(trainer: Trainer) -> str:
    """What results call the experiment: the logger's name, or the DataModule's."""
    return (trainer.logger and trainer.logger.name) or type(trainer.datamodule).__name__  # type: ignore[attr-defined]
