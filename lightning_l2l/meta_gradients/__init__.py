"""Estimators of the meta-gradient, by class path in ``model.stages``."""

from lightning_l2l.meta_gradients.base import MetaGradient, Plan, Truncation
from lightning_l2l.meta_gradients.evolution import ES, NRES, PES
from lightning_l2l.meta_gradients.exact import Exact
from lightning_l2l.meta_gradients.first_order import FirstOrder
from lightning_l2l.meta_gradients.imitation import Imitation
from lightning_l2l.meta_gradients.linearized import Linearized
from lightning_l2l.meta_gradients.staggered import Staggered

__all__ = [
    "ES",
    "NRES",
    "PES",
    "Exact",
    "FirstOrder",
    "Imitation",
    "Linearized",
    "MetaGradient",
    "Plan",
    "Staggered",
    "Truncation",
]
