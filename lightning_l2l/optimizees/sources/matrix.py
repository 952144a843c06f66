"""The entries of a matrix, which is to be factorised."""

from typing import Literal

import torch

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees.sources.base import Source
from lightning_l2l.optimizees.sources.tensors import TensorExamples

Photograph = Literal["china", "flower"]


class PhotographMatrix(Source):
    """Grey values of a photograph that scikit-learn carries, each an example: its row and column, and its value.

    Values are standardised. Entries are split at random: a sixth each for validation and test, so that the held-out
    loss is that of completing the matrix.

    Args:
        name: china or flower, both [427, 640].
    """

    def __init__(self, name: Photograph = "china") -> None:
        if name not in ("china", "flower"):
            raise InvalidInputError(f"data.source has the photograph {name}, which is unknown: choose china or flower.")
        self.name = name

    def load(self) -> TensorExamples:
        """Reads the photograph."""
        from sklearn.datasets import load_sample_image  # slow to import, and needed only here

        grey = torch.from_numpy(load_sample_image(f"{self.name}.jpg").mean(2)).float()
        places = torch.cartesian_prod(*map(torch.arange, grey.shape))
        values = ((grey - grey.mean()) / grey.std()).reshape(-1)
        source = f"scikit-learn's photograph {self.name}, {tuple(grey.shape)}"
        return TensorExamples(places, values, {}, source).in_sixths()
