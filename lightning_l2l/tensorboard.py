"""Figures in TensorBoard."""

from matplotlib.figure import Figure
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger


def has_tensorboard(trainer: Trainer) -> bool:
    """Whether the run is logged to TensorBoard."""
    return isinstance(trainer.logger, TensorBoardLogger)


def show_figure(trainer: Trainer, tag: str, figure: Figure) -> None:
    """Puts a figure into TensorBoard, at the meta-batch that training has reached."""
    trainer.logger.experiment.add_figure(tag, figure, trainer.fit_loop.total_batch_idx + 1)  # type: ignore[union-attr]
