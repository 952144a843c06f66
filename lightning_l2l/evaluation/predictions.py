"""What predict writes."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.whole_files import replacing


class Predictions(Callback):
    """Writes what predict optimized: an .npz for each batch, and a PNG for each episode whose θ is a picture.

    An .npz holds ``theta``, the optimized parameters θ_T [N, P], and ``losses``, f(θ_0) .. f(θ_T) [N, T + 1]. It is
    named after its first episode.

    Args:
        folder: where to write; null is the folder predictions in the run's folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self.place = Path()
        self.done = 0  # episodes, in this process

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the folder, in all processes together, and counts from the first episode.

        Raises:
            InvalidInputError: the folder is the one that the pictures are read from.
        """
        self.place = Path(self.folder or Path(trainer.log_dir or trainer.default_root_dir) / "predictions")
        source = getattr(trainer.datamodule, "predict", None)  # type: ignore[attr-defined]
        read_from = source and (Path(source) if Path(source).is_dir() else Path(source).parent)
        if read_from and read_from.resolve() == self.place.resolve():
            raise InvalidInputError(
                f"predictions.folder is {self.folder}, where data.predict lies, which must not be overwritten: give "
                "another folder."
            )
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
        loader: Any = trainer.predict_dataloaders
        size = getattr(loader, "episodes_per_item", 1)  # a fork's loader may be any
        count = len(loader.dataset) * size
        # items are distributed over processes in turn; the first ones repeat if they do not divide evenly
        places = [divmod(self.done + n, size) for n in range(len(theta))]
        numbers = [(trainer.global_rank + trainer.world_size * item) * size + n for item, n in places]
        names = [trainer.datamodule.prediction_name(n) for n in numbers if n < count]  # type: ignore[attr-defined]
        self.done += len(theta)
        if not names:
            return
        theta, losses = theta[: len(names)], losses[: len(names)]
        self.place.mkdir(parents=True, exist_ok=True)
        with replacing(self.place / f"{names[0]}.npz") as part:
            np.savez(part, theta=theta.cpu().numpy(), losses=losses.cpu().numpy())
        pictures = batch.first(len(names)).pictures(theta)
        for name, picture in zip(names, pictures if pictures is not None else (), strict=False):
            to_image(picture).save(self.place / f"{name}.png")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints where the files are."""
        if trainer.is_global_zero:
            print(f"Written to {self.place}")


def to_image(picture: Tensor) -> Image.Image:
    """Converts a picture [3, H, W] in 0..1 to an image that can be saved."""
    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).cpu().numpy())
