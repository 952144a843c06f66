"""How the runs of each rule in a race went, batch by batch and process by process."""

from collections.abc import Sequence
from typing import cast

import torch
from pytorch_lightning import LightningModule
from torch import Tensor


def as_one(curves: Tensor, accuracy: Tensor | None) -> Tensor:
    """An outcome as one tensor, which can be cached and gathered: [N, T + 1], or [N, T + 2] with accuracies last.

    Args:
        curves: f(θ_0) .. f(θ_T) of every episode, [N, T + 1].
        accuracy: at θ_T, [N], or None.
    """
    return curves if accuracy is None else torch.cat([curves, accuracy[:, None].to(curves)], 1)


def in_two(outcome: Tensor, horizon: int) -> tuple[Tensor, Tensor | None]:
    """Undoes ``as_one``, given the horizon T."""
    return outcome[:, : horizon + 1], outcome[:, -1] if outcome.shape[1] > horizon + 1 else None


class Outcomes:
    """Those of several rules on the same episodes, which come in batches."""

    def __init__(self) -> None:
        self.batches: list[Sequence[Tensor]] = []  # of each, the outcomes of all rules
        self.counts: list[Tensor] = []  # of each, whether an episode counts, [N]

    def add(self, count: int, outcomes: Sequence[Tensor]) -> None:
        """Adds a batch, the first ``count`` of whose episodes count; the others repeat those of other processes."""
        self.batches.append(outcomes)
        self.counts.append(torch.arange(len(outcomes[0])) < count)

    def of_all_processes(self, learner: LightningModule) -> list[Tensor]:
        """Each rule's outcomes of the episodes that count; processes take episodes in turn."""
        counts = _gathered(learner, self.counts)
        return [_gathered(learner, batches)[counts] for batches in zip(*self.batches, strict=True)]


def _gathered(learner: LightningModule, batches: Sequence[Tensor]) -> Tensor:
    """What all processes have of each episode, [N, ...]."""
    own = torch.cat(list(batches)).to(learner.device)
    found = cast(Tensor, learner.all_gather(own))
    return (found.transpose(0, 1).flatten(0, 1) if found.ndim > own.ndim else found).cpu()
