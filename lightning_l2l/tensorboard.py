"""Runs that are logged to TensorBoard."""

from pathlib import Path

from matplotlib.figure import Figure
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger


def has_tensorboard(trainer: Trainer) -> bool:
    """Whether the run is logged to TensorBoard."""
    return isinstance(trainer.logger, TensorBoardLogger)


def show_figure(trainer: Trainer, tag: str, figure: Figure) -> None:
    """Puts a figure into TensorBoard, at the meta-batch that training has reached."""
    trainer.logger.experiment.add_figure(tag, figure, trainer.fit_loop.total_batch_idx + 1)  # type: ignore[union-attr]


def run_folder(checkpoint: Path) -> Path | None:
    """The folder of the run that a checkpoint belongs to; None if it lies elsewhere."""
    folder = checkpoint.absolute().parent.parent
    logged = any(folder.glob("events.out.tfevents.*")) and len(folder.parents) > 1
    return folder if checkpoint.absolute().parent.name == "checkpoints" and logged else None
