"""Recurrent language models on characters. Data: the sources of Python's standard library."""

from typing import Any, Literal, NamedTuple

from lightning_l2l.optimizees.families.base import Family
from lightning_l2l.optimizees.module_training import ModuleTraining
from lightning_l2l.optimizees.networks.sequences import EachPlace, recurrent
from lightning_l2l.optimizees.sources.standard_library import VOCABULARY, StandardLibrary


class Model(NamedTuple):
    """One network and how it is trained."""

    embedding: int
    hidden: int
    layers: int
    length: int
    batch_size: int


MODELS = [
    Model(8, 16, 1, 8, 8),
    Model(8, 24, 1, 12, 4),
    Model(4, 12, 2, 8, 8),
    Model(16, 20, 1, 8, 8),
    Model(12, 32, 1, 8, 4),
    Model(6, 16, 1, 16, 4),
]


class CharRNNs(Family):
    """An embedding, one or two recurrent layers of 12 to 32 units, and a linear layer, on 8 to 16 characters.

    Args:
        cell: GRU or LSTM.
    """

    rows = MODELS
    data = (StandardLibrary().found,)

    def __init__(self, cell: Literal["GRU", "LSTM"] = "GRU") -> None:
        self.cell = cell

    def task(self, row: Model, **settings: Any) -> ModuleTraining:
        network = recurrent(VOCABULARY, row.embedding, row.hidden, row.layers, self.cell)
        return ModuleTraining(network, EachPlace(), StandardLibrary(row.length), row.batch_size, **settings)
