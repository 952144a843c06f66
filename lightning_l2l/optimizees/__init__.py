"""What is optimized: LightningDataModules whose loaders yield episodes."""

from lightning_l2l.episodes import Episodes
from lightning_l2l.optimizees.base import EpisodeDataModule, Split
from lightning_l2l.optimizees.few_shot import FewShot
from lightning_l2l.optimizees.fine_tuning import FineTuning
from lightning_l2l.optimizees.image_classification import ImageClassification
from lightning_l2l.optimizees.module_training import ModuleTraining
from lightning_l2l.optimizees.networks.all_conv import AllConvNet, ResidualNet
from lightning_l2l.optimizees.networks.autoencoder import Autoencoder
from lightning_l2l.optimizees.networks.characters import CharGRU, CharTransformer
from lightning_l2l.optimizees.networks.conv4 import Conv4
from lightning_l2l.optimizees.networks.convnet import ConvNet
from lightning_l2l.optimizees.networks.factors import MatrixFactors
from lightning_l2l.optimizees.networks.mlp import MLP
from lightning_l2l.optimizees.networks.truncated_start import TruncatedNormalStart
from lightning_l2l.optimizees.neural_art import NeuralArt
from lightning_l2l.optimizees.quadratic import Quadratics
from lightning_l2l.optimizees.sources.base import Examples, Source
from lightning_l2l.optimizees.sources.matrix import PhotographMatrix
from lightning_l2l.optimizees.sources.named_images import Images
from lightning_l2l.optimizees.sources.package_text import PackageText
from lightning_l2l.optimizees.sources.small_images import SmallImages
from lightning_l2l.optimizees.sources.tables import Table
from lightning_l2l.optimizees.sources.tensors import TensorExamples
from lightning_l2l.optimizees.sources.text import Text
from lightning_l2l.optimizees.suite import Part, Suite

__all__ = [
    "MLP",
    "AllConvNet",
    "Autoencoder",
    "CharGRU",
    "CharTransformer",
    "Conv4",
    "ConvNet",
    "EpisodeDataModule",
    "Episodes",
    "Examples",
    "FewShot",
    "FineTuning",
    "ImageClassification",
    "Images",
    "MatrixFactors",
    "ModuleTraining",
    "NeuralArt",
    "PackageText",
    "Part",
    "PhotographMatrix",
    "Quadratics",
    "ResidualNet",
    "SmallImages",
    "Source",
    "Split",
    "Suite",
    "Table",
    "TensorExamples",
    "Text",
    "TruncatedNormalStart",
]
