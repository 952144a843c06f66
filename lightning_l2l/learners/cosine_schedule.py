"""How the learning rate on φ decays over meta-training."""

import math

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Timer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine_schedule(optimizer: Optimizer, trainer: Trainer, end: float) -> LambdaLR:
    """Decays a learning rate along half a cosine, to be stepped once a meta-batch.

    Args:
        optimizer: its present rate is that of the beginning.
        trainer: its epochs, ``max_steps`` or ``max_time``, whichever ends first, are the length of the decay.
        end: the last rate over the first.
    """
    return LambdaLR(optimizer, lambda meta_batch: cosine_decay(_progress(trainer, meta_batch), end))


def cosine_decay(progress: float, end: float) -> float:
    """Half a cosine from 1 at progress 0 to ``end`` at progress 1, and ``end`` from there on."""
    return end + (1 - end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def _progress(trainer: Trainer, meta_batch: int) -> float:
    """How much of meta-training is over, 0 to 1, by the limit that ends first."""
    # Lightning's own estimate would start the loader before a checkpoint can tell it where to resume
    train_batches = trainer.datamodule.train_batches(trainer.world_size)  # type: ignore[attr-defined]
    limit = trainer.limit_train_batches  # of batches, or a share of them
    train_batches = min(train_batches, limit) if isinstance(limit, int) else int(train_batches * (limit or 1.0))
    epochs = trainer.max_epochs or 1
    progress = meta_batch / max(epochs * train_batches, 1) if epochs > 0 else 0.0  # -1 sets no limit
    if trainer.max_steps > 0:
        progress = max(progress, trainer.global_step / trainer.max_steps)
    for timer in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(timer, Timer) and (remaining := timer.time_remaining()) is not None:
            elapsed = timer.time_elapsed()
            progress = max(progress, elapsed / max(elapsed + remaining, 1e-9))
    return trainer.strategy.broadcast(progress)  # clocks differ, but all processes need the same rate
