"""Small transformers. Data: the sources of Python's standard library; rows of MNIST and Fashion-MNIST images."""

from typing import Any, NamedTuple

from torch import nn

from lightning_l2l.optimizees.families.base import Family, ImageFamily
from lightning_l2l.optimizees.module_training import ModuleTraining
from lightning_l2l.optimizees.networks.sequences import EachPlace, MeanOfPlaces, transformer
from lightning_l2l.optimizees.networks.stacked import Embedding, Linear, Stacked
from lightning_l2l.optimizees.sources.small_images import Name, SmallImages
from lightning_l2l.optimizees.sources.standard_library import VOCABULARY, StandardLibrary


class Model(NamedTuple):
    """One network and how it is trained."""

    length: int
    width: int
    heads: int
    blocks: int
    batch_size: int


class RowModel(NamedTuple):
    """One network on rows of images, and how it is trained."""

    images: Name
    size: int
    width: int
    heads: int
    blocks: int
    batch_size: int


MODELS = [
    Model(8, 16, 2, 1, 8),
    Model(10, 24, 2, 1, 4),
    Model(8, 16, 4, 2, 4),
    Model(16, 16, 2, 1, 4),
    Model(8, 32, 4, 1, 4),
]
ROW_MODELS = [
    RowModel("MNIST", 7, 16, 2, 1, 8),
    RowModel("MNIST", 7, 24, 2, 2, 4),
    RowModel("FashionMNIST", 7, 24, 4, 1, 8),
    RowModel("FashionMNIST", 14, 16, 2, 1, 4),
]


class CharTransformers(Family):
    """Causal attention of width 16 to 32 in one or two blocks, on 8 to 16 characters."""

    rows = MODELS
    data = (StandardLibrary().found,)

    def task(self, row: Model, **settings: Any) -> ModuleTraining:
        characters = Embedding(VOCABULARY, row.width)
        layers = transformer(characters, row.length, row.width, row.heads, row.blocks, causal=True)
        network = Stacked(*layers, Linear(row.width, VOCABULARY))
        return ModuleTraining(network, EachPlace(), StandardLibrary(row.length), row.batch_size, **settings)


class RowTransformers(ImageFamily):
    """Attention over the rows of an image, averaged before the readout."""

    rows = ROW_MODELS

    def task(self, row: RowModel, **settings: Any) -> ModuleTraining:
        rows = Stacked(nn.Unflatten(-1, (row.size, row.size)), Linear(row.size, row.width))
        layers = transformer(rows, row.size, row.width, row.heads, row.blocks, causal=False)
        network = Stacked(*layers, MeanOfPlaces(), Linear(row.width, 10))
        source = SmallImages(row.images, row.size, centred=True, root=self.root)
        return ModuleTraining(network, nn.CrossEntropyLoss(), source, row.batch_size, **settings)
