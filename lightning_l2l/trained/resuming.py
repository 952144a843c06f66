"""What holds when a run goes on from a checkpoint, or tests one: its data, optimizers, patience and random numbers."""

import copy
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.utilities import rank_zero_info
from torch.optim import Optimizer

from lightning_l2l.errors import InvalidInputError
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
        """Notes what a checkpoint was trained on; of a trained rule's data, only a description is known.

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


class SpentPatience(Callback):
    """Says when the patience of ``EarlyStopping`` is over, and ends a run at once that is resumed then.

    The patience given to a resumed run, which may be more, wins over the one that its checkpoint has kept.
    """

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Replaces the kept patience, before ``EarlyStopping`` loads its state."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, EarlyStopping) and isinstance(state, dict):
                state["patience"] = callback.patience

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the validations in vain with the patience."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.wait_count >= max(callback.patience, 1):
                trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the reason."""
        early = trainer.should_stop and trainer.current_epoch < (trainer.max_epochs or 0)
        for callback in trainer.callbacks if early else ():  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
                rank_zero_info(f"Training has ended early: {callback.stopping_reason_message}")


class RandomNumbers(Callback):
    """Seeds torch's generators for each batch, so that a resumed run draws the same numbers, as for dropout."""

    def __init__(self) -> None:
        self.seed: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Notes the seed of the command, before any batch has set another."""
        self.seed = torch.initial_seed() if self.seed is None else self.seed

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Seeds a meta-batch."""
        self._start(0, trainer.fit_loop.total_batch_idx, trainer.global_rank)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Seeds a validation batch, alike in every validation."""
        self._start(1, *batch[1:], trainer.global_rank)

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Seeds a test batch, alike in every test."""
        self._start(2, *batch[1:], trainer.global_rank)

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Seeds a batch of predictions."""
        self._start(3, *batch[1:], trainer.global_rank)

    def _start(self, *where: int) -> None:
        source = np.random.SeedSequence(self.seed, spawn_key=where)
        torch.manual_seed(int(source.generate_state(1, np.uint64)[0]))


class FittingOptimizers(Callback):
    """Refuses a checkpoint whose optimizers another program has kept: a step would fail, or take another direction."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares what the checkpoint holds with what this run's optimizers and schedules keep."""
        if not (checkpoint := trainer._checkpoint_connector._loaded_checkpoint):
            return
        schedules = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
        optimizers = [optimizer.state_dict() for optimizer in trainer.optimizers]
        wrong = other_form(checkpoint.get("lr_schedulers"), schedules, "lr_schedulers")
        wrong = wrong or other_form(checkpoint.get("optimizer_states"), optimizers, "optimizer_states")
        for number, optimizer in enumerate(trainer.optimizers if not wrong else ()):
            kept, key = checkpoint["optimizer_states"][number], f"optimizer_states.{number}"
            wrong = wrong or _other_groups(kept, optimizers[number], key) or _other_states(kept, optimizer, key)
        if wrong:
            raise InvalidInputError(
                f"--ckpt_path is {trainer.ckpt_path}, in which {wrong} is not what this run's optimizer keeps: give "
                "another checkpoint."
            )


def other_form(kept: Any, own: Any, key: str) -> str:
    """The name of the first value whose type or shape is another than that of its counterpart; empty if none is.

    Args:
        kept: nested dictionaries and lists, as a checkpoint holds them; keys that only it or ``own`` knows do not
            count, as other versions of PyTorch have others.
        own: what they are compared with; None means anything.
        key: what they are called.
    """
    if isinstance(own, dict) and isinstance(kept, dict):
        pairs = {name: (kept[name], own[name]) for name in own if name in kept}
    elif isinstance(own, list | tuple) and isinstance(kept, list | tuple) and len(own) == len(kept):
        pairs = dict(enumerate(zip(kept, own, strict=True)))
    elif isinstance(own, torch.Tensor) and isinstance(kept, torch.Tensor):
        alike = (kept.shape, kept.is_floating_point()) == (own.shape, own.is_floating_point())
        return "" if alike else key
    else:
        kinds = [float if type(value) is int else type(value) for value in (kept, own)]
        return "" if own is None or kinds[0] is kinds[1] not in (dict, list, tuple) else key
    return next(filter(None, (other_form(*pair, f"{key}.{name}") for name, pair in pairs.items())), "")


def _other_groups(kept: dict[str, Any], own: dict[str, Any], key: str) -> str:
    """The name of the first switch or list of parameters in an optimizer's groups that differs; empty if none does."""
    for number, (theirs, ours) in enumerate(zip(kept["param_groups"], own["param_groups"], strict=True)):
        for name in theirs.keys() & ours.keys() - {"foreach", "fused"}:  # which change no results
            if (name == "params" or isinstance(ours[name], bool)) and theirs[name] != ours[name]:
                return f"{key}.param_groups.{number}.{name}"
    return ""


def _other_states(kept: dict[str, Any], optimizer: Optimizer, key: str) -> str:
    """The name of the first state that has another form than a step would give it; empty if none has."""
    trial = copy.deepcopy(optimizer)
    for p in (p for group in trial.param_groups for p in group["params"]):
        p.grad = torch.zeros_like(p)
    with suppress(Exception), torch.random.fork_rng():  # one that needs a closure has states that nobody knows
        trial.step()
    for number, own in trial.state_dict()["state"].items():
        theirs, name = kept["state"].get(number, {}), f"{key}.state.{number}"
        if theirs and not own.keys() <= theirs.keys():
            return name
        if wrong := other_form(theirs, own, name):
            return wrong
    return ""
