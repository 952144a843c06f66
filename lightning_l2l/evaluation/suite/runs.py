"""Runs of candidates on problems, each of them made once."""

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.evaluation.provenance import source_of
from lightning_l2l.evaluation.result_cache import ResultCache
from lightning_l2l.evaluation.suite import training
from lightning_l2l.evaluation.suite.candidates import Candidate
from lightning_l2l.evaluation.suite.problems import Problem
from lightning_l2l.evaluation.suite.training import Training, train
from lightning_l2l.optimizees import ModuleTraining, Split


@dataclass
class Runs:
    """The runs on one problem, whose data is loaded while this object lives.

    Args:
        problem: its settings.
        lengths: steps after which candidates are compared. One without a cosine runs once, for the longest.
        folder: where records are kept; None keeps nothing.
        published: whether to record losses as published curves have them.

    Raises:
        InvalidInputError: its data is missing or does not fit its network, or its loss is not positive at the start.
    """

    problem: Problem
    lengths: Sequence[int]
    folder: Path | None = None
    published: bool = False

    def __post_init__(self) -> None:
        self.data: ModuleTraining = copy.deepcopy(self.problem.data)
        self.data.prepare_data()
        self.data.setup("test")
        start = self._training("test", 0, max(self.lengths))
        first = start.mean_loss(start.fixed["train"])
        if not 0 < first < torch.inf:
            raise InvalidInputError(
                f"data.loss is {first:.3g} before the first step, but losses are compared by their ratios: give a loss "
                "that is positive."
            )
        self.records: dict[Hashable, Tensor] = {}  # by what a run depends on, or by its candidate
        self.fingerprints: dict[tuple[Split, int, int], str] = {}

    def record(self, candidate: Candidate, seed: int, length: int, split: Split = "test", stop: int = 0) -> Tensor:
        """The record of a run up to a length, [M, 6]; see ``Mark``.

        Args:
            candidate: the optimizer.
            seed: number of the run in its split.
            length: the horizon of a candidate with a cosine, and the last step of the record.
            split: test, or tune for the tuning of rates.
            stop: the last step instead, of a run that is given up early.
        """
        lengths = [length] if candidate.cosine else sorted(self.lengths)
        last = stop or max(lengths)
        depends_on = self._depends_on(candidate, seed, max(lengths), split)
        described = repr((depends_on, lengths, last, self.published))
        key = described if depends_on else (candidate, split, seed, max(lengths), last)  # where that cannot be told
        if key not in self.records:

            def run() -> Tensor:
                begin = self._training(split, seed, max(lengths))
                return train(begin, candidate, lengths, last, self.published)

            self.records[key] = ResultCache(self.folder if depends_on else None).get(run, described)
        record = self.records[key]
        return record[record[:, 0] <= (stop or length)]

    def _training(self, split: Split, seed: int, steps: int) -> Training:
        return training.training(self.data, split, seed, steps)

    def _depends_on(self, candidate: Candidate, seed: int, steps: int, split: Split) -> tuple[object, ...] | None:
        """What a run depends on; None if that cannot be told."""
        where = split, seed, steps
        if where not in self.fingerprints:
            self.fingerprints[where] = self._training(*where).episodes.fingerprint()
        data = self.data
        assert data.examples is not None
        ranges = sorted(data.examples.ranges.items())  # of validation and held-out examples, too
        source = source_of(data, data.network, data.loss, data.examples, Training)
        own = candidate.depends_on()
        return (torch.__version__, self.fingerprints[where], where, ranges, source, own) if source and own else None


def load(problem: Problem, lengths: Sequence[int], folder: Path | None, published: bool = False) -> Runs | str:
    """Loads a problem's data, or says why it is skipped."""
    try:
        return Runs(problem, lengths, folder, published)
    except InvalidInputError as error:
        return str(error)
