"""What predict writes."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_l2l.optimizees import Episodes


class Predictions(Callback):
    """Writes what predict optimized: an .npz for each batch, and a PNG for each episode whose θ is a picture.

    An .npz holds ``theta``, the optimized parameters θ_T [N, P], and ``losses``, f(θ_0) .. f(θ_T) [N, T + 1]. It is
    called as the first of its episodes.

    Args:
        folder: where to; null is the folder predictions in the run's folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self.done = 0  # episodes, in this process

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts from the first."""
        self.done = 0

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Episodes,
        *_: Any,
    ) -> None:
        """Writes the files of a batch."""
        theta, losses = outputs
        folder = self._folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        # processes are dealt the episodes in turn
        numbers = [trainer.global_rank + trainer.world_size * (self.done + n) for n in range(len(theta))]
        names = [trainer.datamodule.prediction_name(number) for number in numbers]  # type: ignore[attr-defined]
        np.savez(folder / f"{names[0]}.npz", theta=theta.cpu().numpy(), losses=losses.cpu().numpy())
        pictures = batch.pictures(theta)
        for name, picture in zip(names, pictures if pictures is not None else (), strict=False):
            to_image(picture).save(folder / f"{name}.png")
        self.done += len(theta)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says where the files are."""
        folder = self._folder(trainer)
        if trainer.is_global_zero:
            print(f"Written to {folder}")

    def _folder(self, trainer: Trainer) -> Path:
        return Path(self.folder or Path(trainer.log_dir or trainer.default_root_dir) / "predictions")


def to_image(picture: Tensor) -> Image.Image:
    """A picture [3, H, W] in 0..1 as one that can be saved."""
    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).cpu().numpy())
