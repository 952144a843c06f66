"""The DataModule that draws episodes."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Literal, get_args

import numpy as np
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import InvalidInputError, require_not_negative, require_positive
from lightning_l2l.optimizees.companion import with_companion
from lightning_l2l.optimizees.loader import EpisodeLoader
from lightning_l2l.optimizees.origin import Origin
from lightning_l2l.optimizees.relative import UNIT_EPISODES, RelativeEpisodes, mean_first_loss
from lightning_l2l.optimizees.scaled import Scaled, scaled_at_random
from lightning_l2l.unroll import LAST

Split = Literal["train", "val", "tune", "test"]
"""Meta-training, validation, tuning of the baselines' learning rates, and test: they share no episodes."""


class EpisodeDataModule(LightningDataModule, ABC):
    """Draws episodes. An episode is a number: the dataset is a range, and the same number gives the same episode.

    So reproducing a run, sharding it over processes and resuming it come for free. Every epoch of meta-training sees
    new episodes.

    Attributes:
        variant_name: what results call this form of the optimizee, if a test races on several.
        last_steps: steps at the end of a run whose mean loss is called final. It is 1 where the loss at the horizon is
            that of other examples than the run has trained on, so that every run must reach the horizon.

    Args:
        horizon: T, the number of steps of one run.
        episodes_per_batch: N, how many episodes run side by side on one device; one meta-batch.
        train_episodes: episodes in an epoch of meta-training, over all devices.
        val_episodes: episodes that each validation runs.
        tuning_episodes: episodes on which the baselines' learning rates are tuned.
        test_episodes: fresh episodes that the test runs.
        seed: another seed gives other episodes in every split.
        random_scaling: rescale each parameter tensor of the training and validation episodes, but not of the tuning and
            test episodes, by its own factor e^u with u drawn from U[-random_scaling, random_scaling] (random scaling,
            arXiv:1703.03633). A rule that has seen gradients of all sizes does better on networks of another depth; 0,
            as in the paper, rescales nothing.
        scaled: what has a factor of its own in random scaling: tensors, or coordinates as in arXiv:1703.03633.
        companion: the number of coordinates of a convex function that is added to the losses of the training and
            validation episodes, but not of the tuning and test episodes, so that a rule learns plain descent as well
            (arXiv:1703.03633, section 4, whose authors take 20); 0 adds none.
        relative_loss: divide the losses of the training and validation episodes, but not of the tuning and test
            episodes, by the mean first loss of eight fixed runs. The meta-losses ``LogLoss`` and ``Regret`` then fit
            losses of any size. They must be positive.
    """

    variant_name = ""
    last_steps: ClassVar[int] = LAST

    def __init__(
        self,
        horizon: int = 100,
        episodes_per_batch: int = 1,
        train_episodes: int = 100,
        val_episodes: int = 20,
        tuning_episodes: int = 20,
        test_episodes: int = 100,
        seed: int = 0,
        random_scaling: float = 0.0,
        relative_loss: bool = False,
        scaled: Scaled = "tensors",
        companion: int = 0,
    ) -> None:
        super().__init__()
        self.horizon = horizon
        self.episodes_per_batch = episodes_per_batch
        self.train_episodes = train_episodes
        self.val_episodes = val_episodes
        self.tuning_episodes = tuning_episodes
        self.test_episodes = test_episodes
        self.seed = seed
        self.random_scaling = random_scaling
        self.relative_loss = relative_loss
        self.scaled: Scaled = scaled
        self.companion = companion
        self._unit: float | None = None
        splits = "train", "val", "tuning", "test"
        for key in ("horizon", "episodes_per_batch", *(f"{split}_episodes" for split in splits)):
            require_positive(f"data.{key}", getattr(self, key))
        if seed < 0:
            raise InvalidInputError(f"data.seed is {seed}, but it must not be negative: give 0 or more.")
        for key in ("random_scaling", "companion"):
            require_not_negative(f"data.{key}", getattr(self, key))
        if train_episodes % episodes_per_batch:
            raise InvalidInputError(
                f"data.train_episodes is {train_episodes}, which data.episodes_per_batch={episodes_per_batch} does not "
                "divide: make it a multiple, so that every meta-batch is full."
            )

    @property
    def variant(self) -> str:
        """What results call this form of the optimizee: the variant's name, or the description if it has none."""
        return self.variant_name or self.description

    @property
    def description(self) -> str:
        """What the episodes are made of, in words."""
        return "default"

    @property
    def origin(self) -> Origin:
        """Which data the episodes are made from, once it is loaded; by default none but what seeds draw."""
        return Origin(self.description)

    @abstractmethod
    def episodes(self, split: Split, numbers: Sequence[int]) -> Episodes:
        """Builds the episodes of a split with these numbers, drawing all that is random from ``self.random``."""

    def random(self, split: Split, number: int) -> np.random.Generator:
        """The source of all randomness of one episode: a stream that no other episode of any split shares."""
        return np.random.default_rng([self.seed, get_args(Split).index(split), number])

    def random_of_meta_batch(self, number: int) -> np.random.Generator:
        """The source of what a meta-batch draws once for all its episodes; the same in every process."""
        return np.random.default_rng([self.seed, len(get_args(Split)), number])

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", self.train_episodes)

    def val_dataloader(self) -> DataLoader:
        return self._loader("val", self.val_episodes)

    def test_dataloader(self) -> DataLoader:
        return self._loader("test", self.test_episodes)

    def predict_dataloader(self) -> DataLoader:
        """What predict optimizes: the test episodes by default."""
        return self.test_dataloader()

    def prediction_name(self, number: int) -> str:
        """The name that predict's files give the episode of this number."""
        return f"{number:04d}"

    def train_batches(self, processes: int) -> int:
        """Meta-batches in an epoch of meta-training."""
        return math.ceil(self.train_episodes / (self.episodes_per_batch * processes))

    def tuning_episodes_batch(self) -> Episodes:
        """All episodes on which learning rates are tuned, in one batch."""
        return self.episodes("tune", range(self.tuning_episodes))

    def tuning_batches(self) -> list[Episodes]:
        """The same episodes in several batches, for subclasses with episodes of different sizes."""
        return [self.tuning_episodes_batch()]

    def _loader(self, split: Split, count: int) -> DataLoader:
        return self._loader_of(range(count), self.episodes_per_batch, partial(self._collate, split))

    def _loader_of(self, numbers: range, batch_size: int, collate: Callable[[Sequence[int]], Episodes]) -> DataLoader:
        """A loader of numbers, which the processes take in turn."""
        sampler: DistributedSampler | None = None
        if self.trainer is not None and self.trainer.world_size > 1:  # in order: Lightning's own would shuffle
            processes, rank = self.trainer.world_size, self.trainer.global_rank
            sampler = DistributedSampler(numbers, processes, rank, shuffle=False)  # type: ignore[arg-type]
        return EpisodeLoader(numbers, batch_size=batch_size, sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]

    def _collate(self, split: Split, numbers: Sequence[int]) -> Episodes:
        if split == "train" and self.trainer is not None:  # an epoch's episodes follow the last epoch's
            numbers = [self.trainer.current_epoch * self.train_episodes + number for number in numbers]
        episodes = self.episodes(split, numbers)
        if split not in ("train", "val"):
            return episodes
        if self.relative_loss:
            episodes = RelativeEpisodes(episodes.theta, episodes, self._first_loss())
        scales, companions = zip(*(self.random(split, number).spawn(2) for number in numbers), strict=True)
        if self.random_scaling:
            episodes = scaled_at_random(episodes, self.random_scaling, scales, self.scaled)
        return with_companion(episodes, self.companion, companions) if self.companion else episodes

    def _first_loss(self) -> float:
        if self._unit is None:
            runs = self.episodes("tune", range(UNIT_EPISODES))
            self._unit = mean_first_loss(runs, f"data.relative_loss is true for {self.description}")
        return self._unit
