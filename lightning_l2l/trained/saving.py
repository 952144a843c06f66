"""Checkpoints as training writes them: best.ckpt and last.ckpt."""

import errno
import os
import re
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.interrupts import Interrupted, Terminated
from lightning_l2l.learners.base import MONITOR
from lightning_l2l.whole_files import remove_leftovers, replacing

Due = Literal["meta-batch", "validation", "epoch"]
"""What a run goes on with: the next meta-batch, a validation, or the next epoch without one."""

PREVIOUS = "previous.ckpt"  # what last.ckpt was before it was last written


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all; Lightning's own may leave half of one across file systems."""

    def __init__(self) -> None:
        self.readable = False  # whether a checkpoint was read again

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes the file, and reads the first one again.

        Raises:
            InvalidInputError: it holds an object that cannot be loaded without executing code.
        """
        checkpoint = {key: _without_numpy(value) for key, value in checkpoint.items()}
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(Path(path)) as part:
            try:
                torch.save(checkpoint, part)
            except RuntimeError as error:
                if "writ" not in str(error):
                    raise
                raise OSError(errno.EIO, "writing failed, as on a full disk", str(path)) from error
            self._check(part)

    def _check(self, file: Path) -> None:
        if self.readable:
            return
        try:
            torch.load(file, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            named = re.search(r"GLOBAL (\S+)", str(error))
            what = named[1] if named else "an object"
            raise InvalidInputError(
                f"the checkpoint would hold {what}, which is not loaded, since that could "
                "execute code: let learner, data and callbacks keep tensors, numbers and text alone."
            ) from None
        self.readable = True


def _without_numpy(value: Any) -> Any:
    """The same with NumPy's numbers as Python's, which are loaded without executing code."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {key: _without_numpy(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_without_numpy, value))
    return value


class RelocatableCheckpoint(ModelCheckpoint):
    """A ``ModelCheckpoint`` that knows what it has kept after the run's folder has been moved."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Updates the kept paths when a run resumes in its own folder; from another, Lightning drops the score."""
        state, here = checkpoint["callbacks"].get(self.state_key), Path(str(self.dirpath))
        if state and Path(str(trainer.ckpt_path)).resolve().parent == here.resolve():
            paths = {name: Path(path).name for name, path in state.items() if name.endswith("_path") and path}
            best = {str(here / Path(path).name): score for path, score in state["best_k_models"].items()}
            state |= {name: str(here / file) for name, file in paths.items()}
            state |= {"best_k_models": best, "dirpath": self.dirpath}


class BestCheckpoint(RelocatableCheckpoint):
    """Keeps the φ with the lowest val/meta_loss, or another metric that the learner monitors, as checkpoints/best.ckpt.

    A loss that is not finite never counts as the best.
    """

    def __init__(self) -> None:
        super().__init__(
            monitor=MONITOR,
            filename="best",
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether this is the best so far."""
        return current is not None and bool(current.isfinite()) and super().check_monitor_top_k(trainer, current)


class LastCheckpoint(RelocatableCheckpoint):
    """Keeps checkpoints/last.ckpt, and the one before it as previous.ckpt.

    It is written after the last meta-batch of each epoch, after each validation, and when training is interrupted
    between two meta-batches. A run that resumes from any of them goes on as if it had not stopped; in particular it
    validates where a validation was due or under way. What goes wrong elsewhere leaves the file as it is.
    """

    def __init__(self) -> None:
        super().__init__(filename="last", enable_version_counter=False, save_on_train_epoch_end=False)
        self.saved = 0  # meta-batches at the last save, or where training began
        self.due: Due = "meta-batch"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes checkpoints whole, and cleans up after a run that was killed."""
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints()
        if stage == "fit" and trainer.is_global_zero:
            remove_leftovers(Path(str(self.dirpath)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes where training begins."""
        self.saved = meta_batches(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Saves where training ends inside an epoch."""
        self.due = what_follows(trainer)
        if self.due == "meta-batch" and (trainer.fit_loop.epoch_loop._is_training_done or trainer.should_stop):
            self._save(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves before a validation, which may take long, and after the meta-batch's numbers are logged."""
        if trainer.state.fn == "fit" and self.due == "validation":
            self._save(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that the validation is over, before any checkpoint is written."""
        self.due = "meta-batch"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what the validation has changed, such as the patience of early stopping."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what is not saved yet."""
        self.due = "meta-batch"
        if self.saved < meta_batches(trainer):
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves when training was stopped between two meta-batches; inside one, φ and θ do not belong together."""
        if isinstance(exception, Interrupted | Terminated):
            self.due = what_follows(trainer)
            self._save(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes the loops' counts so that Lightning resumes with what is due, a validation from its first episode."""
        if trainer.state.fn != "fit":
            return
        loops = checkpoint["loops"]["fit_loop"]
        batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
        for part in ("total", "current"):  # of the run, and of the epoch
            counts = loops["epoch_loop.val_loop.batch_progress"][part]
            counts |= dict.fromkeys(("ready", "started", "processed"), counts["completed"])
            if self.due == "validation":
                counts |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            if self.due != "meta-batch":
                batches[part]["completed"] = batches[part]["processed"]
            if self.due == "epoch":
                epochs[part]["processed"] += 1
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] += self.due == "epoch"
        for loader in loops["state_dict"].get("combined_loader", ()):  # limit_train_batches may end an epoch early
            if "position" in loader:  # an EpisodeLoader's
                loader["position"] %= trainer.num_training_batches

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = Path(self.format_checkpoint_name({}))
        if trainer.is_global_zero and path.is_file():
            with suppress(OSError):  # file systems without hard links keep one checkpoint
                path.with_name(PREVIOUS).unlink(missing_ok=True)
                os.link(path, path.with_name(PREVIOUS))
        self._save_checkpoint(trainer, str(path))
        self.saved = meta_batches(trainer)


def meta_batches(trainer: Trainer) -> int:
    """How many meta-batches have been run, over all epochs."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]


def what_follows(trainer: Trainer) -> Due:
    """What a run that is not stopped does after the meta-batch that has just been run."""
    stops, trainer.should_stop = trainer.should_stop, False
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    validates = fetcher is not None and loop._should_check_val_fx(fetcher)
    trainer.should_stop = stops
    return "validation" if validates else "epoch" if loop.batch_progress.is_last_batch else "meta-batch"
