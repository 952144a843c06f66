"""What is optimized: LightningDataModules whose loaders yield episodes."""

from lightning_l2l.optimizees.base import EpisodeDataModule, Split
from lightning_l2l.optimizees.convnet import ConvNet
from lightning_l2l.optimizees.episodes import Episodes
from lightning_l2l.optimizees.image_classification import ImageClassification
from lightning_l2l.optimizees.mlp import MLP
from lightning_l2l.optimizees.neural_art import NeuralArt
from lightning_l2l.optimizees.quadratic import Quadratics

__all__ = [
    "MLP",
    "ConvNet",
    "EpisodeDataModule",
    "Episodes",
    "ImageClassification",
    "NeuralArt",
    "Quadratics",
    "Split",
]
