"""What the rest of the package asks a learner. Any LightningModule that runs on episodes may answer.

A learner's ``training_step``, ``validation_step``, ``test_step`` and ``predict_step`` are given ``Episodes``. The rest
is optional:

- ``monitor``: the metric that early stopping and the best checkpoint watch, lower is better; by default val/meta_loss.
  ``validation_step`` logs it.
- ``rule``: the update rule that it learns. It is shown on sheets of pictures, exported, and loaded from
  ``pretrained:``.
- ``label``: what tables and figures call what it learned; by default the rule's label, or the learner's class.
- ``check(datamodule)``: raises ``InvalidInputError`` for data that it cannot run on, before any slow work.
- ``validation_step`` and ``test_step`` return learning curves, f(θ_0) .. f(θ_T) of every episode, [N, T + 1], which
  enter the race against the baselines, or a mapping that has them as ``curves``, and ``Episodes.accuracy`` at θ_T as
  ``accuracy``. Without curves there is no race.
  Under several processes the last episodes of a batch may be repetitions; see ``counted``.
- ``predict_step`` returns the optimized θ_T, [N, P], and the learning curves, which are written to files.
"""

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from lightning_l2l.episodes import Episodes
from lightning_l2l.optimizees import EpisodeDataModule
from lightning_l2l.optimizees.loader import EpisodeLoader
from lightning_l2l.rules import UpdateRule

MONITOR = "val/meta_loss"


def monitor_of(learner: LightningModule) -> str:
    """The metric that decides which of its checkpoints is best."""
    return getattr(learner, "monitor", MONITOR)


def rule_of(learner: LightningModule) -> UpdateRule | None:
    """The update rule that it learns; None if it does not say which."""
    rule = getattr(learner, "rule", None)
    return rule if isinstance(rule, UpdateRule) else None


def label_of(learner: LightningModule) -> str:
    """What tables and figures call what it learned."""
    rule = rule_of(learner)
    return getattr(learner, "label", None) or (rule.label if rule else type(learner).__name__)


def dtype_of(learner: LightningModule) -> torch.dtype:
    """The floating-point type in which it runs episodes."""
    dtype = learner.dtype
    assert isinstance(dtype, torch.dtype)
    return dtype


def check(learner: LightningModule, datamodule: EpisodeDataModule) -> None:
    """Lets the learner refuse data.

    Raises:
        InvalidInputError: raised by the learner.
    """
    if callable(own := getattr(learner, "check", None)):
        own(datamodule)


def counted(trainer: Trainer, episodes: Episodes, batch_idx: int) -> int:
    """How many episodes of a batch, its first ones, count in a validation's or a test's means.

    All do, unless several processes share the episodes and do not divide them: then the others are repetitions.
    """
    loader = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    share = loader.share_counted(batch_idx) if isinstance(loader, EpisodeLoader) else 1.0
    return round(share * len(episodes))


def log_counted(
    learner: LightningModule, metrics: Mapping[str, Tensor], episodes: Episodes, batch_idx: int
) -> dict[str, Tensor]:
    """Logs the means of metrics, each [N], over the episodes that count, and returns them."""
    count = counted(learner.trainer, episodes, batch_idx)
    means = {name: each[:count].mean() if count else each.new_zeros(()) for name, each in metrics.items()}
    # Lightning divides the sum of the counts by the number of processes, and rounds down
    learner.log_dict(means, batch_size=count * learner.trainer.world_size, sync_dist=True)
    return means


def evaluated(outputs: Any, episodes: Episodes, horizon: int) -> tuple[Tensor, Tensor | None] | None:
    """The learning curves, [N, T + 1], and accuracies, [N] or None, of a validation or test step; None without them."""
    found = outputs if isinstance(outputs, Mapping) else {"curves": outputs}
    curves, accuracy = found.get("curves"), found.get("accuracy")
    if not isinstance(curves, Tensor) or curves.shape != (len(episodes), horizon + 1):
        return None
    return curves, accuracy if isinstance(accuracy, Tensor) and accuracy.shape == (len(episodes),) else None
