"""What is optimized: LightningDataModules whose loaders yield episodes."""

from lightning_l2l.episodes import Episodes
from lightning_l2l.optimizees.base import EpisodeDataModule, Split
from lightning_l2l.optimizees.image_classification import ImageClassification
from lightning_l2l.optimizees.module_training import ModuleTraining
from lightning_l2l.optimizees.networks.autoencoder import Autoencoder
from lightning_l2l.optimizees.networks.characters import CharGRU, CharTransformer
from lightning_l2l.optimizees.networks.convnet import ConvNet
from lightning_l2l.optimizees.networks.mlp import MLP
from lightning_l2l.optimizees.neural_art import NeuralArt
from lightning_l2l.optimizees.quadratic import Quadratics
from lightning_l2l.optimizees.sources.base import Examples, Source
from lightning_l2l.optimizees.sources.tables import Table
from lightning_l2l.optimizees.sources.tensors import TensorExamples
from lightning_l2l.optimizees.sources.text import Text

__all__ = [
    "MLP",
    "Autoencoder",
    "CharGRU",
    "CharTransformer",
    "ConvNet",
    "EpisodeDataModule",
    "Episodes",
    "Examples",
    "ImageClassification",
    "ModuleTraining",
    "NeuralArt",
    "Quadratics",
    "Source",
    "Split",
    "Table",
    "TensorExamples",
    "Text",
]
