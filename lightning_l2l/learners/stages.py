"""The stages of meta-training: how long runs are, how they are cut, and by which meta-gradient."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lightning_l2l.errors import InvalidInputError, require_positive
from lightning_l2l.meta_gradients import FirstOrder, MetaGradient
from lightning_l2l.meta_gradients.base import Plan
from lightning_l2l.meta_losses import MetaLoss
from lightning_l2l.optimizees import EpisodeDataModule


@dataclass
class Stage:
    """One row of the table of stages.

    Args:
        share: of the epochs, relative to the shares of the other rows.
        horizon: steps of a run; null is the data's horizon. Two numbers are a range, from which each meta-batch draws
            its horizon log-uniformly, rounded to a multiple of ``unroll``.
        unroll: K, steps between two meta-steps; null is ``model.unroll``. If no run is longer, a truncation is a whole
            run.
        meta_gradient: how ∂L/∂φ is estimated; null is the paper's, ``FirstOrder``.
    """

    share: float = 1.0
    horizon: int | tuple[int, int] | None = None
    unroll: int | None = None
    meta_gradient: MetaGradient | None = None


class Cut(NamedTuple):
    """A row's numbers, with other settings filling its gaps, and the keys that the numbers come from."""

    shortest: int  # horizon
    longest: int
    unroll: int
    horizon_key: str
    unroll_key: str

    @property
    def whole(self) -> bool:
        """Whether each truncation is a whole run."""
        return self.unroll == self.longest


class Stages:
    """The table of stages.

    Args:
        rows: the stages, in their order.
        unroll: K, for rows that do not set it.
        meta_loss: what all stages minimise.
    """

    def __init__(self, rows: Sequence[Stage], unroll: int, meta_loss: MetaLoss) -> None:
        if not rows:
            raise InvalidInputError("model.stages is [], but it needs at least one row: give null for the default.")
        for number, row in enumerate(rows):
            require_positive(f"model.stages[{number}].share", row.share)
            if row.unroll is not None:
                require_positive(f"model.stages[{number}].unroll", row.unroll)
        self.rows = list(rows)
        self.meta_gradients = [row.meta_gradient or FirstOrder() for row in rows]
        self.unroll = unroll
        self.meta_loss = meta_loss

    def at(self, epoch: int, epochs: int) -> int:
        """The number of the row that an epoch, one of ``epochs``, belongs to."""
        shares = np.cumsum([row.share for row in self.rows])
        ends = [math.floor(end / shares[-1] * epochs + 0.5) for end in shares]
        return next((number for number, end in enumerate(ends) if epoch < end), len(ends) - 1)

    def plan(self, number: int, data: EpisodeDataModule, meta_batch: int) -> Plan:
        """How a row cuts the runs of a meta-batch; the same in every process."""
        cut = self._cut(number, data)
        horizon = cut.longest
        if cut.shortest < cut.longest:
            ratio = math.log(cut.longest / cut.shortest)
            drawn = cut.shortest * math.exp(data.random_of_meta_batch(meta_batch).random() * ratio)
            unit = 1 if cut.whole else cut.unroll
            horizon = unit * min(max(round(drawn / unit), 1), cut.longest // unit)
        return Plan(self.meta_loss, horizon, min(cut.unroll, horizon))

    def check(self, data: EpisodeDataModule) -> None:
        """Refuses rows that the data's horizon does not allow.

        Raises:
            InvalidInputError: names the first such row.
        """
        for number in range(len(self.rows)):
            cut = self._cut(number, data)
            for horizon in (cut.shortest, cut.longest):
                if not 0 < cut.shortest <= horizon <= data.horizon:
                    raise InvalidInputError(
                        f"{cut.horizon_key} is {horizon}, but data.horizon is {data.horizon}: give a positive number "
                        "that is not above it, or two, the smaller one first."
                    )
                if horizon % cut.unroll and not cut.whole:
                    raise InvalidInputError(
                        f"{cut.horizon_key} is {horizon}, which {cut.unroll_key}={cut.unroll} does not divide: make "
                        "the horizon a multiple of the unroll."
                    )
            self._check_last_loss(cut, data)

    def _check_last_loss(self, cut: Cut, data: EpisodeDataModule) -> None:
        """Refuses truncations, or runs, that the loss which counts alone lies beyond."""
        if self.meta_loss.last_only and not cut.whole:
            raise InvalidInputError(
                f"{cut.unroll_key} is {cut.unroll} and {cut.horizon_key} {cut.longest}, but model.loss_weights counts "
                "the last step alone, so that all truncations but the last have a meta-gradient of zero: set "
                f"{cut.unroll_key} to {cut.longest}."
            )
        if data.last_steps == 1 and cut.shortest < data.horizon:
            raise InvalidInputError(
                f"{cut.horizon_key} is {cut.shortest}, but only after {data.horizon} steps, data.horizon, is the loss "
                "that of the query sets: leave out the stage's horizon."
            )

    def _cut(self, number: int, data: EpisodeDataModule) -> Cut:
        row, key = self.rows[number], f"model.stages[{number}]"
        horizons, horizon_key = row.horizon, f"{key}.horizon"
        if horizons is None:
            horizons, horizon_key = data.horizon, "data.horizon"
        shortest, longest = (horizons, horizons) if isinstance(horizons, int) else horizons
        if row.unroll is None:
            return Cut(shortest, longest, self.unroll, horizon_key, "model.unroll")
        return Cut(shortest, longest, min(row.unroll, longest), horizon_key, f"{key}.unroll")
