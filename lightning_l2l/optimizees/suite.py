"""A mixture of tasks on which a rule for everyday problems is meta-trained."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_l2l.digests import content
from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import InvalidInputError, require_positive
from lightning_l2l.optimizees.base import EpisodeDataModule, Split
from lightning_l2l.optimizees.families.base import Family
from lightning_l2l.optimizees.origin import Origin
from lightning_l2l.optimizees.reference import read_reference
from lightning_l2l.optimizees.relative import UNIT_EPISODES, RelativeEpisodes, mean_first_loss
from lightning_l2l.optimizees.trained_starts import draw_steps, trained

GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples, modulo 1, fill 0..1 evenly
DRAW, BEFORE = 5, 6  # distinguish the streams of a meta-batch from those of ``EpisodeDataModule``
SMALLEST_UNIT = 0.01  # of a trained start, in units of the task, so that converged runs do not outweigh all others


@dataclass
class Part:
    """A row of the mixture.

    Args:
        family: the tasks, by class path.
        weight: share of the meta-batches of training, relative to the other rows. 0 holds the family out: validation
            runs on such families alone, or on all if there is none.
        batch_factor: by which the batch sizes of the family's tasks are multiplied. Its own are small, since small ones
            take less time; with larger ones a rule can take larger steps.
    """

    family: Family
    weight: float = 1.0
    batch_factor: int = 1


@dataclass(eq=False)
class SuiteEpisodes(RelativeEpisodes):
    """Episodes of one task, with losses in units of the task's mean first loss, so that tasks can be compared.

    Attributes:
        numbers: of the episodes, [N].
        reached: what a stored Adam reaches after steps 1 to T, in these units, [T], or what a trained start has
            reached; None if there is no table.
        draw: makes the episodes of any numbers.
    """

    numbers: Tensor
    reached: np.ndarray | None
    draw: Callable[[Sequence[int]], "SuiteEpisodes"]

    def reference(self, step: int, count: int) -> Tensor | None:
        if self.reached is None:
            return None
        return torch.from_numpy(self.reached[step : step + count]).to(self.theta)[:, None].expand(-1, len(self))

    def accuracy(self, theta: Tensor) -> None:
        """None, since not every task has classes, and a mean over those that have would say little."""

    def shared_fields(self) -> dict[str, Any]:
        return {name: value for name, value in super().shared_fields().items() if name != "draw"}

    def kept(self) -> dict[str, Tensor]:
        """The numbers alone, from which ``restored`` draws the episodes anew, even those of another task."""
        return {"numbers": self.numbers}

    def restored(self, kept: Mapping[str, Tensor]) -> "SuiteEpisodes":
        return self.draw(kept["numbers"].tolist()).to(self.theta.device, self.theta.dtype)


class Suite(EpisodeDataModule):
    """Draws each meta-batch from one task of one family, so that tasks of one shape run side by side.

    The numbers of the episodes alone decide which task it is. Training takes families by their weights, and tasks of a
    family at random. Validation goes through all tasks of the families held out, tuning and test through those of all
    families. Losses are in units of the task's mean first loss, so that they can be compared across tasks.

    Args:
        families: the mixture, by names of your choice.
        horizon: T, the number of steps of one run.
        episodes_per_batch: N, how many training episodes run side by side on one device; one meta-batch.
        train_episodes: episodes in an epoch of meta-training, over all devices.
        episodes_per_task: episodes of each task in validation, tuning and test, which also run side by side.
        seed: another seed gives other episodes in every split.
        random_scaling: the largest |u| by which a training or validation run reparametrises each tensor, θ = e^u θ'
            (see ``EpisodeDataModule``).
        reference: a table of what Adam reaches on each task, with which meta-losses compare: the path of an .npz that
            ``python -m lightning_l2l reference`` made, or the name of one of the package's own. null compares with
            nothing.
        trained_starts: share of the meta-batches of training whose runs begin with trained parameters, those of Adam
            after 20 to 1500 steps. Their losses are in units of the first one, and compare with it where there is a
            table.
    """

    def __init__(
        self,
        families: dict[str, Part],
        horizon: int = 500,
        episodes_per_batch: int = 32,
        train_episodes: int = 320,
        episodes_per_task: int = 8,
        seed: int = 0,
        random_scaling: float = 0.0,
        reference: str | None = None,
        trained_starts: float = 0.0,
    ) -> None:
        require_positive("data.episodes_per_task", episodes_per_task)
        if not 0 <= trained_starts <= 1:
            raise InvalidInputError(f"data.trained_starts is {trained_starts}: give a share from 0 to 1.")
        self.trained_starts = trained_starts
        self.families = families
        self.episodes_per_task = episodes_per_task
        self._check_parts()
        with torch.random.fork_rng(devices=[]):  # networks draw parameters, which no episode uses
            self.tasks = {
                f"{name}: {task}": data
                for name, part in families.items()
                for task, data in part.family.tasks(part.batch_factor, horizon=horizon, seed=seed).items()
            }
        every = episodes_per_task * len(self.tasks)
        super().__init__(
            horizon,
            episodes_per_batch,
            train_episodes,
            episodes_per_task * len(self._tasks_of("val")),
            tuning_episodes=every,
            test_episodes=every,
            seed=seed,
            random_scaling=random_scaling,
        )
        self.reached: dict[str, np.ndarray] = {}
        if reference is not None:
            self.reached = read_reference(reference, list(self.tasks), horizon, self.description)
        self._units: dict[str, float] = {}

    def _check_parts(self) -> None:
        for name, part in self.families.items():
            require_positive(f"data.families.{name}.batch_factor", part.batch_factor)
            if not 0 <= part.weight < math.inf:
                raise InvalidInputError(
                    f"data.families.{name}.weight is {part.weight}: give a positive number, or 0 to hold it out."
                )
        if not any(part.weight for part in self.families.values()):
            raise InvalidInputError("data.families has no family with a weight above 0: give one to train on.")

    def setup(self, stage: str | None = None) -> None:
        """Logs which data the tasks use."""
        rank_zero_info(f"{len(self.tasks)} tasks in {len(self.families)} families, on {self.description}.")

    @property
    def description(self) -> str:
        """Which data the tasks use."""
        return ", ".join(dict.fromkeys(data for part in self.families.values() for data in part.family.data))

    @property
    def origin(self) -> Origin:
        """The images of all families, and the reference losses."""
        images = {one.source: one for part in self.families.values() for one in part.family.images()}
        reached = [content(torch.from_numpy(losses)) for losses in self.reached.values()]
        return Origin(self.description, list(images.values()), reached)

    def task(self, split: Split, number: int) -> str:
        """The name of the task that the episode of this number belongs to."""
        batch = number // self._side_by_side(split)
        if split != "train":
            tasks = self._tasks_of(split)
            return tasks[batch % len(tasks)]
        random = np.random.default_rng([self.seed, DRAW, batch])
        names, weights = zip(*((name, part.weight) for name, part in self.families.items()), strict=True)
        ends = np.cumsum(weights) / sum(weights)
        family = names[int(np.searchsorted(ends, (batch + 1) * GOLDEN % 1, side="right"))]
        tasks = [task for task in self.tasks if task.startswith(f"{family}: ")]
        return tasks[random.integers(len(tasks))]

    def _tasks_of(self, split: Split) -> list[str]:
        held_out = [name for name, part in self.families.items() if not part.weight]
        if split != "val" or not held_out:
            return list(self.tasks)
        return [task for task in self.tasks if task.partition(": ")[0] in held_out]

    def _side_by_side(self, split: Split) -> int:
        return self.episodes_per_batch if split == "train" else self.episodes_per_task

    def episodes(self, split: Split, numbers: Sequence[int]) -> SuiteEpisodes:
        """Builds the episodes with these numbers, all of one task."""
        tasks = {self.task(split, number) for number in numbers}
        if len(tasks) != 1:
            raise InvalidInputError(
                f"Episodes {list(numbers)} belong to {len(tasks)} tasks, but only those of one can run side by side: "
                f"give some of {self._side_by_side(split)} consecutive ones."
            )
        (task,) = tasks
        inner = self.tasks[task].episodes(split, numbers)
        draw = partial(self.episodes, split)
        episodes = SuiteEpisodes(
            inner.theta, inner, self.unit(task), torch.tensor(numbers), self.reached.get(task), draw
        )
        if split != "train" or not self.trained_starts:
            return episodes
        random = np.random.default_rng([self.seed, BEFORE, numbers[0] // self.episodes_per_batch])
        steps = draw_steps(self.trained_starts, self.horizon, random)
        return self._trained(episodes, steps) if steps else episodes

    def _trained(self, episodes: SuiteEpisodes, steps: int) -> SuiteEpisodes:
        """The same episodes from where Adam is after some steps."""
        theta = trained(episodes, steps)
        first = float(episodes.loss(theta, 0).mean())
        unit = max(first, SMALLEST_UNIT)
        reached = None if episodes.reached is None else np.full(self.horizon, first / unit)
        return replace(episodes, theta=theta, unit=episodes.unit * unit, reached=reached)

    def unit(self, task: str) -> float:
        """The mean loss of the task at the start of a few fixed runs, by which its losses are divided."""
        if task not in self._units:
            episodes = self.tasks[task].episodes("tune", range(UNIT_EPISODES))
            self._units[task] = mean_first_loss(episodes, f"data.families has the task {task}")
        return self._units[task]

    def tuning_batches(self) -> list[Episodes]:
        """One batch for each task."""
        size = self.episodes_per_task
        return [self.episodes("tune", range(first, first + size)) for first in range(0, self.tuning_episodes, size)]

    def _loader(self, split: Split, count: int) -> DataLoader:
        """Splits whole batches between the processes, since the episodes of a batch share a task."""
        size = self._side_by_side(split)

        def collate(batches: Sequence[int]) -> Episodes:
            return self._collate(split, range(batches[0] * size, (batches[0] + 1) * size))

        loader = self._loader_of(range(count // size), 1, collate)
        loader.episodes_per_item = size
        return loader
