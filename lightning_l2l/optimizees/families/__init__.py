"""Families of tasks for a suite, by class path."""

from lightning_l2l.optimizees.families.attention import CharTransformers, RowTransformers
from lightning_l2l.optimizees.families.autoencoders import Autoencoders
from lightning_l2l.optimizees.families.base import Family
from lightning_l2l.optimizees.families.char_rnns import CharRNNs
from lightning_l2l.optimizees.families.completions import Completions
from lightning_l2l.optimizees.families.image_cnns import ImageCNNs
from lightning_l2l.optimizees.families.image_mlps import ImageMLPs
from lightning_l2l.optimizees.families.residual_mlps import ResidualMLPs
from lightning_l2l.optimizees.families.tables import Tables
from lightning_l2l.optimizees.families.teachers import Teachers

__all__ = [
    "Autoencoders",
    "CharRNNs",
    "CharTransformers",
    "Completions",
    "Family",
    "ImageCNNs",
    "ImageMLPs",
    "ResidualMLPs",
    "RowTransformers",
    "Tables",
    "Teachers",
]
