"""Tables that scikit-learn carries, as regressions and classifications."""

from typing import Literal, get_args

import torch

from lightning_l2l.errors import InvalidInputError, first_line
from lightning_l2l.optimizees.sources.base import Source
from lightning_l2l.optimizees.sources.tensors import TensorExamples

Name = Literal["diabetes", "california", "breast_cancer", "wine", "digits", "iris", "linnerud"]
REGRESSIONS = ("diabetes", "california", "linnerud")


class Table(Source):
    """A table of scikit-learn's: two thirds of its rows to train on, a sixth each for validation and test.

    Inputs are standardised by the training rows, column by column, and so are the targets of a regression, [M, E].
    Those of a classification are the numbers of the classes, [M].

    Args:
        name: diabetes and california are regressions on 10 and 8 columns, and linnerud is one of 3 targets on 3;
            breast_cancer (30 columns), wine (13), digits (64) and iris (4) are classifications with 2, 3, 10 and 3
            classes. california is taken from scikit-learn's folder of data, and never downloaded.
    """

    def __init__(self, name: Name) -> None:
        if name not in get_args(Name):
            raise InvalidInputError(
                f"data.source has the table {name}, which is unknown: choose {', '.join(get_args(Name))}."
            )
        self.name = name

    def load(self) -> TensorExamples:
        """Reads the table.

        Raises:
            InvalidInputError: california is not on this machine.
        """
        columns, answers = self._read()
        inputs = torch.as_tensor(columns, dtype=torch.float64)
        targets = torch.as_tensor(answers, dtype=torch.float64).view(len(inputs), -1)
        if self.name not in REGRESSIONS:
            targets = torch.as_tensor(answers, dtype=torch.int64)
        table = TensorExamples(inputs, targets, {}, self.name).in_sixths()
        assert table.targets is not None
        train = slice(*table.ranges["train"])
        table.inputs = _standardised(table.inputs, train)
        if table.targets.is_floating_point():
            table.targets = _standardised(table.targets, train)
        return table

    def _read(self) -> tuple:
        from sklearn import datasets  # slow to import, and needed only for tables

        if self.name != "california":
            return getattr(datasets, f"load_{self.name}")(return_X_y=True)
        try:
            return datasets.fetch_california_housing(return_X_y=True, download_if_missing=False)
        except OSError as error:
            raise InvalidInputError(
                f"data.source has the table {self.name}, which is not on this machine ({first_line(error)}): fetch it "
                "by scikit-learn's fetch_california_housing(), or choose another table."
            ) from error


def _standardised(values: torch.Tensor, train: slice) -> torch.Tensor:
    """Columns minus the training rows' mean, divided by their standard deviation; constant columns become zero."""
    mean, std = values[train].mean(0), values[train].std(0, correction=0)
    return ((values - mean) / torch.where(std > 0, std, 1)).float()
