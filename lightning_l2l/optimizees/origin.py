"""What episodes are made from, by which a checkpoint knows its data again."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_l2l.digests import row_digests
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees.sources.base import Examples

KEPT = "trained_on"  # key of a checkpoint
SAMPLE = 4_096  # digests of training rows that are kept: the smallest, so that two samples have the same rows in common
MOST_ROWS = 200_000  # that are digested, evenly spaced
SEEN = 0.01  # share of the test's rows above which they count as seen; data sets hold some rows twice


@dataclass(frozen=True)
class Origin:
    """The data behind a DataModule's episodes.

    Attributes:
        source: which data, in words.
        examples: what episodes draw from; their test parts must not have been trained on.
        others: digests of whatever else the episodes depend on, beside their settings.
    """

    source: str
    examples: Sequence[Examples] = ()
    others: Sequence[str] = ()

    @property
    def digest(self) -> str:
        """Of all data; empty if there is none but what seeds draw."""
        parts = [*(f"{one.digest} {sorted(one.ranges.items())}" for one in self.examples), *self.others]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16] if parts else ""

    def kept(self) -> dict[str, Any]:
        """What a checkpoint keeps: the source, the digest, and digests of training rows, [4,096 at most]."""
        return {"source": self.source, "digest": self.digest, "rows": self._rows("train").unique()[:SAMPLE]}

    def refuse_other(self, kept: dict[str, Any]) -> None:
        """Refuses to go on from a checkpoint of other data.

        Args:
            kept: what the checkpoint has kept.

        Raises:
            InvalidInputError: names both.
        """
        own, theirs = (self.source, self.digest), (kept["source"], kept["digest"])
        if own != theirs:
            here, there = (f"{source} ({digest or 'drawn'})" for source, digest in (own, theirs))
            raise InvalidInputError(
                f"data is {here}, but the checkpoint was trained on {there}: give that data, or start anew without "
                "--ckpt_path."
            )

    def refuse_seen(self, kept: dict[str, Any]) -> None:
        """Refuses a test on rows that a checkpoint was trained on.

        Args:
            kept: what the checkpoint has kept.

        Raises:
            InvalidInputError: says how many there are.
        """
        if not len(kept["rows"]) or self.digest == kept["digest"]:  # the same data has the same parts
            return
        rows = self._rows("test")
        if len(kept["rows"]) == SAMPLE:
            rows = rows[rows <= kept["rows"].max()]
        share = torch.isin(rows, kept["rows"]).double().mean().item() if len(rows) else 0.0
        if share > SEEN:
            raise InvalidInputError(
                f"data is {self.source}, but {share:.0%} of its test part is training data of the checkpoint "
                f"({kept['source']}): test on that data, or on other data."
            )

    def _rows(self, part: str) -> Tensor:
        """Digests of the rows of a part, as networks see them, [M]."""
        found = [torch.empty(0, dtype=torch.int64)]
        for one in self.examples:
            rows = one.part(part)
            rows = rows[:: max(1, -(-len(rows) // MOST_ROWS))]
            chunks = np.array_split(rows, max(1, len(rows) // SAMPLE))
            found += [row_digests(one.minibatch(torch.from_numpy(chunk), torch.float32)[0]) for chunk in chunks]
        return torch.cat(found)


def is_kept(value: Any) -> bool:
    """Whether a checkpoint's entry is what ``Origin.kept`` returns."""
    if not isinstance(value, dict) or value.keys() != {"source", "digest", "rows"}:
        return False
    rows = value["rows"]
    return isinstance(rows, Tensor) and rows.dtype == torch.int64 and rows.ndim == 1
