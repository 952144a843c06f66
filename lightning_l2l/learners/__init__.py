"""Learners: LightningModules that learn update rules on episodes, by class path in ``model``."""

from lightning_l2l.learners.meta_learner import MetaLearner
from lightning_l2l.learners.stages import Stage

__all__ = ["MetaLearner", "Stage"]
