"""What the rest of the package asks a learner. Any LightningModule that runs on episodes may answer.

A learner's ``training_step``, ``validation_step``, ``test_step`` and ``predict_step`` are given ``Episodes``. All else
is optional:

- ``monitor``: the metric that early stopping and the best checkpoint watch, lower is better; by default val/meta_loss.
- ``rule``: the update rule that it learns. It is raced on pictures' sheets, exported, and taken from ``pretrained:``.
- ``label``: what tables and figures call what it learned; by default the rule's label, or the learner's class.
- ``check(datamodule)``: refuses data that it cannot run on, by ``InvalidInputError``, before anything takes time.
- ``validation_step`` and ``test_step`` return learning curves, f(θ_0) .. f(θ_T) of every episode, [N, T + 1]: they are
  raced against the baselines. Without them there is no race.
- ``predict_step`` returns the optimized θ_T, [N, P], and the learning curves: they are written to files.
"""

from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from lightning_l2l.optimizees import EpisodeDataModule
from lightning_l2l.rules import UpdateRule

MONITOR = "val/meta_loss"


def monitor_of(learner: LightningModule) -> str:
    """The metric that decides which of its checkpoints is best."""
    return getattr(learner, "monitor", MONITOR)


def rule_of(learner: LightningModule) -> UpdateRule | None:
    """The update rule that it learns, if it says which."""
    rule = getattr(learner, "rule", None)
    return rule if isinstance(rule, UpdateRule) else None


def label_of(learner: LightningModule) -> str:
    """What tables and figures call what it learned."""
    rule = rule_of(learner)
    return getattr(learner, "label", None) or (rule.label if rule else type(learner).__name__)


def dtype_of(learner: LightningModule) -> torch.dtype:
    """The floating point type in which it runs episodes."""
    dtype = learner.dtype
    assert isinstance(dtype, torch.dtype)
    return dtype


def check(learner: LightningModule, datamodule: EpisodeDataModule) -> None:
    """Lets it refuse data.

    Raises:
        InvalidInputError: by the learner.
    """
    if callable(own := getattr(learner, "check", None)):
        own(datamodule)


def curves_in(outputs: Any) -> Tensor | None:
    """The learning curves that a step of a validation or test returned, if it did, [N, T + 1]."""
    return outputs if isinstance(outputs, Tensor) and outputs.ndim == 2 else None
