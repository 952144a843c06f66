"""What holds when a run goes on from a checkpoint, or tests one: its data, and the flags of callbacks."""

import inspect
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info

from lightning_l2l.optimizees import EpisodeDataModule
from lightning_l2l.optimizees.origin import KEPT
from lightning_l2l.rules.files import PRETRAINED


class SameData(Callback):
    """Keeps in each checkpoint what it was trained on; a run goes on with that alone, and is tested on other rows."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] | None = None  # by the checkpoint that is given
        self.to_say = ""
        self.own: dict[str, Any] | None = None

    def take(self, checkpoint: dict[str, Any], path: str) -> None:
        """Notes what a checkpoint was trained on, or a trained rule, of which nothing but words is known.

        Args:
            checkpoint: as ``read_checkpoint`` or ``read_pretrained`` returned it.
            path: its file, or ``pretrained:NAME``.
        """
        self.kept = checkpoint.get(KEPT)
        if path.startswith(PRETRAINED):
            self.to_say = f"{path} was trained on {checkpoint['data'] or 'data that its file does not name'}."

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compares the data."""
        if self.to_say:
            rank_zero_info(self.to_say)
            self.to_say = ""
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit" and self.kept is not None:
            datamodule.origin.refuse_other(self.kept)
        if stage == "test":
            self.check_test(datamodule)

    def check_test(self, datamodule: EpisodeDataModule) -> None:
        """Refuses a test on what the checkpoint was trained on.

        Raises:
            InvalidInputError: says how much of it that is.
        """
        if self.kept is not None:
            datamodule.origin.refuse_seen(self.kept)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the data, which is digested once."""
        self.own = self.own or trainer.datamodule.origin.kept()  # type: ignore[attr-defined]
        checkpoint[KEPT] = self.own


class GivenFlags(Callback):
    """Lets the flags of a resumed run's callbacks win over those that its checkpoint has kept, such as a patience."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Replaces settings in the callbacks' states, before any callback loads its own."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(state, dict):
                settings = inspect.signature(type(callback).__init__).parameters.keys() - {"dirpath"}  # a place
                state |= {name: getattr(callback, name) for name in settings & state.keys() if hasattr(callback, name)}
