"""Episodes made from other episodes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from lightning_l2l.episodes import Episodes
from lightning_l2l.rules import Layout

INNER = "episodes."  # prefix of the names of the inner episodes' fields


@dataclass(eq=False)
class WrappedEpisodes(Episodes):
    """Asks other episodes for everything that a subclass does not change.

    Attributes:
        episodes: the inner episodes, of the same layout.
    """

    episodes: Episodes

    @property
    def layout(self) -> Layout:
        return self.episodes.layout

    def reference(self, step: int, count: int) -> Tensor | None:
        return self.episodes.reference(step, count)

    def accuracy(self, theta: Tensor) -> Tensor | None:
        return self.episodes.accuracy(theta)

    def pictures(self, theta: Tensor) -> Tensor | None:
        return self.episodes.pictures(theta)

    def references(self) -> dict[str, Tensor]:
        return self.episodes.references()

    def tensor_fields(self) -> dict[str, Tensor]:
        return super().tensor_fields() | _prefixed(self.episodes.tensor_fields())

    def shared_fields(self) -> dict[str, Any]:
        own = {name: value for name, value in super().shared_fields().items() if name != "episodes"}
        return own | _prefixed(self.episodes.shared_fields())

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        own, inner = _parted(tensors)
        return replace(self, **own, episodes=self.episodes.with_tensors(inner))

    def kept(self) -> dict[str, Tensor]:
        return super().tensor_fields() | _prefixed(self.episodes.kept())

    def restored(self, kept: Mapping[str, Tensor]) -> Self:
        own, inner = _parted(kept)
        return replace(self, **own, episodes=self.episodes.restored(inner))


def _prefixed(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {INNER + name: value for name, value in fields.items()}


def _parted(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The wrapper's own tensors, and those of the inner episodes."""
    inner = {name.removeprefix(INNER): value for name, value in tensors.items() if name.startswith(INNER)}
    return {name: value for name, value in tensors.items() if not name.startswith(INNER)}, inner
