"""Callbacks: what a run keeps, how it stops, and what the terminal and the HParams tab show."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging, ProgressBar, Timer
from pytorch_lightning.cli import SaveConfigCallback
from tqdm import tqdm

from lightning_l2l.errors import InvalidInputError, require_share
from lightning_l2l.interrupts import Interrupt
from lightning_l2l.learners.base import check, monitor_of
from lightning_l2l.tensorboard import has_tensorboard
from lightning_l2l.trained.resuming import FittingOptimizers, RandomNumbers, SameData, SpentPatience
from lightning_l2l.trained.saving import BestCheckpoint, LastCheckpoint

__all__ = [  # with those that configs name by this module
    "AveragedWeights",
    "BestCheckpoint",
    "HyperparameterMetrics",
    "Interrupt",
    "LastCheckpoint",
    "MetaProgressBar",
    "SaveStageConfig",
]


def own_callbacks(progress: bool = True) -> list[Callback]:
    """Those of every run that have no settings; a progress bar among them, unless it is not wanted."""
    resuming: list[Callback] = [SameData(), FittingOptimizers(), SpentPatience(), RandomNumbers()]
    shown: list[Callback] = [MetaProgressBar()] if progress else []
    return [*resuming, LastCheckpoint(), Interrupt(), *shown, HyperparameterMetrics()]


class AveragedWeights(EMAWeightAveraging):
    """Validates and keeps a moving average of φ, in which the noise of single meta-gradients averages out.

    The mean moves towards φ after each meta-batch: mean ← decay · mean + (1 - decay) · φ. Validation runs with the
    mean; checkpoints hold both, and training continues from φ.

    Args:
        decay: the share of the mean that each meta-batch keeps, less than 1.
    """

    def __init__(self, decay: float = 0.9) -> None:
        require_share("decay of AveragedWeights", decay)
        super().__init__(decay=decay)
        self.swapped = False  # whether the module holds the mean

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copies φ, once the data has given it its shape."""
        if stage == "fit":
            check(pl_module, trainer.datamodule)  # type: ignore[attr-defined]
        super().setup(trainer, pl_module, stage)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the mean in φ's place."""
        super().on_validation_epoch_start(trainer, pl_module)
        self.swapped = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the mean in place, because figures are drawn after this hook."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts φ back, before checkpoints are written."""
        if self.swapped:
            super().on_validation_epoch_end(trainer, pl_module)
            self.swapped = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Puts φ back when a validation is interrupted."""
        self.on_validation_end(trainer, pl_module)


class MetaProgressBar(ProgressBar):
    """One bar over all meta-batches of training, or all batches of a test or a prediction, with the time left.

    Where ``trainer.max_time`` ends training, nobody knows how many meta-batches there will be: it counts them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.bar: tqdm | None = None

    def disable(self) -> None:
        """Called in every process except the first."""
        self.enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        limited = any(isinstance(callback, Timer) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        total = None if limited else int(trainer.num_training_batches) * (trainer.max_epochs or 1)
        self._open("meta-training", total, trainer.fit_loop.total_batch_idx + 1)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._advance(trainer, {"meta_loss": "train/meta_loss", "val": monitor_of(trainer.lightning_module)})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = f"test {trainer.datamodule.variant_name}".strip()  # type: ignore[attr-defined]
        self._open(name, int(sum(trainer.num_test_batches)), 0)

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

    def _open(self, name: str, total: int | None, initial: int) -> None:
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
        """Closes a full bar before results are printed."""
        if self.bar and self.bar.n == self.bar.total:
            self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class HyperparameterMetrics(Callback):
    """Fills TensorBoard's HParams tab: all settings of a run beside its best value of the monitored metric."""

    def __init__(self) -> None:
        self.best = torch.inf

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the settings."""
        if has_tensorboard(trainer):
            settings = {**pl_module.hparams, **trainer.datamodule.hparams}  # type: ignore[attr-defined]
            trainer.logger.log_hyperparams(settings, {_best_metric(pl_module): torch.nan})  # type: ignore[union-attr]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the best meta-loss so far."""
        if trainer.sanity_checking:
            return
        metrics, monitor = trainer.callback_metrics, monitor_of(pl_module)
        if monitor not in metrics:
            logged = ", ".join(metrics) or "nothing"
            raise InvalidInputError(
                f"model is {type(pl_module).__name__}, which logged {logged} but not {monitor}, by which its best "
                "checkpoint is chosen: log that in validation_step, or give the class an attribute monitor."
            )
        loss = metrics[monitor].item()
        self.best = min(self.best, loss) if loss == loss else self.best
        pl_module.log(_best_metric(pl_module), self.best, rank_zero_only=True)

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Restores what a checkpoint kept."""
        self.best = state_dict["best"]


class SaveStageConfig(SaveConfigCallback):
    """Keeps the settings of each command in the run's folder: config.yaml of fit, test.yaml of test."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Writes the file, except before training, which may still be refused."""
        self.config_filename = "config.yaml" if stage == "fit" else f"{trainer.state.fn.value}.yaml"
        if stage != "fit":
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file."""
        super().setup(trainer, pl_module, "fit")


def _best_metric(learner: LightningModule) -> str:
    return f"hp/best_{monitor_of(learner).replace('/', '_')}"
