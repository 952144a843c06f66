"""What a suite draws its tasks from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees.base import EpisodeDataModule
from lightning_l2l.optimizees.sources.images import LabelledImages
from lightning_l2l.optimizees.sources.small_images import all_images, found_images


class Family(ABC):
    """A finite list of tasks of one kind.

    Attributes:
        rows: the settings of each task, named tuples that ``describe`` gives different names.
        data: the data sets that it uses, in words.
    """

    rows: Sequence[Any] = ()
    data: tuple[str, ...] = ()

    def tasks(self, batch_factor: int = 1, **settings: Any) -> dict[str, EpisodeDataModule]:
        """Makes the tasks by name; examples are loaded when episodes are drawn.

        Args:
            batch_factor: by which the ``batch_size`` of each row is multiplied, where it is not 1.
            settings: of ``EpisodeDataModule``: a horizon and a seed.

        Raises:
            InvalidInputError: the rows have no batch size to multiply.
        """
        rows = self.rows
        if batch_factor != 1:
            if not all("batch_size" in row._fields for row in rows):
                raise InvalidInputError(
                    f"data.families has {type(self).__name__} with a batch_factor of {batch_factor}, but its tasks "
                    "have no batch_size: leave the factor out."
                )
            rows = [row._replace(batch_size=batch_factor * row.batch_size) for row in rows]
        return {describe(row): self.task(row, **settings) for row in rows}

    def images(self) -> tuple[LabelledImages, ...]:
        """The images that its tasks are made from, if any, at their own size."""
        return ()

    @abstractmethod
    def task(self, row: Any, **settings: Any) -> EpisodeDataModule:
        """Makes one task, such as a ``ModuleTraining``.

        Args:
            row: its own settings.
            settings: see ``tasks``.
        """


class ImageFamily(Family):
    """Tasks on MNIST and Fashion-MNIST, or what stands in for them.

    Args:
        root: folder of datasets (see ``SmallImages``).
    """

    def __init__(self, root: str = "data") -> None:
        self.root = root
        self.data = found_images(root)

    def images(self) -> tuple[LabelledImages, ...]:
        return all_images(self.root)


def describe(task: NamedTuple) -> str:
    """Names a task by its settings in words, without those that are false."""
    words = []
    for field, value in task._asdict().items():
        if isinstance(value, bool):
            words += [field] if value else []
        elif isinstance(value, tuple):
            words.append("-".join(map(str, value)) or "linear")
        else:
            words.append(value if isinstance(value, str) else f"{field.replace('_', ' ')} {value}")
    return ", ".join(words)
