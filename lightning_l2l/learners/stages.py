"""The stages of meta-training: how long runs are, how they are cut, and by which meta-gradient."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
        unroll: K, steps between two meta-steps; null is ``model.unroll``. If no run is longer than a row's own, a
            truncation is a whole run.
        meta_gradient: how ∂L/∂φ is estimated; null is the paper's, ``FirstOrder``.
        patience: end the stage after this many validations without a new lowest monitored metric. Its remaining epochs
            go to the later stages, in proportion to their shares; if there is none, meta-training ends. null runs all
            its epochs.
    """

    share: float = 1.0
    horizon: int | tuple[int, int] | None = None
    unroll: int | None = None
    meta_gradient: MetaGradient | None = None
    patience: int | None = None


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


class Validated(NamedTuple):
    """How the validations of a row went."""

    number: int = 0  # of the row
    lowest: float = math.inf  # metric
    in_vain: int = 0  # validations since then

    def then(self, number: int, value: float) -> "Validated":
        """After another one."""
        last = self if number == self.number else Validated(number)
        lower = value < last.lowest
        return Validated(number, value, 0) if lower else last._replace(in_vain=last.in_vain + 1)


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
            for key in ("unroll", "patience"):
                if (value := getattr(row, key)) is not None:
                    require_positive(f"model.stages[{number}].{key}", value)
        self.rows = list(rows)
        self.meta_gradients = [row.meta_gradient or FirstOrder() for row in rows]
        self.unroll = unroll
        self.meta_loss = meta_loss
        self.ended_early: dict[int, int] = {}  # by the number of a row, the first epoch after it
        self.validated = Validated()

    def at(self, epoch: int, epochs: int) -> int:
        """The number of the row that an epoch, one of ``epochs``, belongs to."""
        shares = np.cumsum([0, *(row.share for row in self.rows)])
        first = begun = 0  # the row after the last one that ended early, and its first epoch
        for number in range(len(self.rows)):
            part = (shares[number + 1] - shares[first]) / (shares[-1] - shares[first])
            end = begun + math.floor(part * (epochs - begun) + 0.5)
            if number in self.ended_early:
                end = begun = self.ended_early[number]
                first = number + 1
            if epoch < end:
                return number
        return len(self.rows) - 1

    def stalled(self, epoch: int, epochs: int, value: float) -> bool:
        """Notes a validation's metric, and ends a row whose patience is over.

        Args:
            epoch: the current one of ``epochs``.
            epochs: of meta-training.
            value: of the monitored metric; lower is better.

        Returns:
            Whether meta-training is over, since the last row has ended.
        """
        number = self.at(epoch, epochs)
        self.validated = self.validated.then(number, value)
        patience = self.rows[number].patience
        if patience is not None and self.validated.in_vain >= patience:
            self.ended_early.setdefault(number, epoch + 1)
        return self.over

    @property
    def over(self) -> bool:
        """Whether the last row has ended early."""
        return len(self.rows) - 1 in self.ended_early

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of how the rows went."""
        return {"ended_early": dict(self.ended_early), "validated": list(self.validated)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what a checkpoint kept.

        Raises:
            InvalidInputError: it has another form.
        """
        try:
            self.ended_early = {int(number): int(epoch) for number, epoch in state["ended_early"].items()}
            number, lowest, in_vain = state["validated"]
            self.validated = Validated(int(number), float(lowest), int(in_vain))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInputError(
                "--ckpt_path is a checkpoint that does not say how its stages went: give another one."
            ) from error

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
            for horizon in {cut.shortest, cut.longest}:
                self.meta_loss.check(horizon, cut.horizon_key)

    def _check_last_loss(self, cut: Cut, data: EpisodeDataModule) -> None:
        """Refuses truncations or runs that end before the only loss that counts."""
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
