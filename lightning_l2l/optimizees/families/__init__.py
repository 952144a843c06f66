"""Families of tasks for a suite, by class path."""

from lightning_l2l.optimizees.families.base import Family
from lightning_l2l.optimizees.families.image_mlps import ImageMLPs

__all__ = ["Family", "ImageMLPs"]
