"""What is optimized: LightningDataModules whose loaders yield episodes."""

from lightning_l2l.episodes import Episodes
from lightning_l2l.optimizees.base import EpisodeDataModule, Split
from lightning_l2l.optimizees.image_classification import ImageClassification
from lightning_l2l.optimizees.networks.convnet import ConvNet
from lightning_l2l.optimizees.networks.mlp import MLP
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
