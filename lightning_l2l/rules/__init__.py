"""Update rules, which turn gradients into steps: learned and hand-designed ones behind one interface."""

from lightning_l2l.rules.adam_controller.rule import AdamController
from lightning_l2l.rules.base import Layout, Place, State, Tape, UpdateRule, layout_of
from lightning_l2l.rules.fast.fastest import fastest
from lightning_l2l.rules.global_averaging import GlobalAveragingLSTM
from lightning_l2l.rules.gradient_transforms import GradientTransforms, RuleTransform
from lightning_l2l.rules.grouped import Grouped
from lightning_l2l.rules.hand_designed import NAG, SGD, Adam, AdamW, CosineAdam, HandDesignedRule, RMSprop
from lightning_l2l.rules.learned_start import LearnedStart
from lightning_l2l.rules.lstm.rnnprop import RNNprop
from lightning_l2l.rules.lstm.rule import CoordinatewiseLSTM
from lightning_l2l.rules.meta_learner_lstm import MetaLearnerLSTM
from lightning_l2l.rules.ntm_bfgs import NTMBFGS
from lightning_l2l.rules.per_coordinate_mlp import PerCoordinateMLP
from lightning_l2l.rules.per_coordinate_sgd import PerCoordinateSGD

__all__ = [
    "NAG",
    "NTMBFGS",
    "SGD",
    "Adam",
    "AdamController",
    "AdamW",
    "CoordinatewiseLSTM",
    "CosineAdam",
    "GlobalAveragingLSTM",
    "GradientTransforms",
    "Grouped",
    "HandDesignedRule",
    "Layout",
    "LearnedStart",
    "MetaLearnerLSTM",
    "PerCoordinateMLP",
    "PerCoordinateSGD",
    "Place",
    "RMSprop",
    "RNNprop",
    "RuleTransform",
    "State",
    "Tape",
    "UpdateRule",
    "fastest",
    "layout_of",
]
