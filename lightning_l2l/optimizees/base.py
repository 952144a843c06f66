"""Episodes, and the DataModule that deals them out."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules import Layout

Split = Literal["train", "val", "tune", "test"]
"""Meta-training, validation, tuning of the baselines' learning rates, and test: their episodes never meet."""


@dataclass(eq=False)
class Episodes(ABC):
    """N runs side by side: where each starts, and everything its losses need.

    A subclass adds fields and writes ``loss``. A tensor field has the N episodes in its first dimension; any other
    field is shared by all of them.

    Attributes:
        theta: the parameters θ_0 at which each run starts, [N, P].
    """

    theta: Tensor

    @property
    def layout(self) -> Layout:
        """Which coordinates of θ belong to which named parameter: one of that name, where nothing else is said."""
        return {"theta": slice(0, self.theta.shape[1])}

    @abstractmethod
    def loss(self, theta: Tensor, step: int) -> Tensor:
        """Returns each episode's own loss f(θ), [N].

        Args:
            theta: parameters, [N, P]. Episode n's loss depends on row n alone.
            step: number t of the minibatch, 0 to the horizon.
        """

    def value_and_grad(self, theta: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Returns the loss of each episode, [N], and its gradient, [N, P].

        The sum's gradient holds each episode's own in its row, at its own scale: averaging over the episodes first
        would feed the update rule gradients N times too small.
        """

        differentiable = torch.is_grad_enabled()  # by φ, through θ: for meta-gradients of second order
        if torch.is_inference_mode_enabled():  # where autograd is off for good
            grad, (_, losses) = torch.func.grad_and_value(self._total_loss, has_aux=True)(theta, step)
            return losses, grad
        with torch.enable_grad():
            theta = theta if differentiable and theta.requires_grad else theta.detach().requires_grad_()
            losses = self.loss(theta, step)
            (grad,) = torch.autograd.grad(losses.sum(), theta, create_graph=differentiable)
        return losses if differentiable else losses.detach(), grad

    def hessian_product(self, theta: Tensor, step: int, vector: Tensor) -> Tensor:
        """Returns the Hessian of each episode's loss at its θ, times a vector of its own, [N, P]."""
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            grad = self.value_and_grad(theta, step)[1]
            (product,) = torch.autograd.grad(grad, theta, vector.to(grad.dtype))
        return product

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None, **_: Any) -> Self:
        """Moves every tensor, and whatever else can be moved, to a device; floating point tensors also to a type."""
        moved = {}
        for name, value in self._fields().items():
            if isinstance(value, Tensor):
                moved[name] = value.to(device, dtype if value.is_floating_point() else None)
            elif hasattr(value, "to"):
                moved[name] = value.to(device)
        return replace(self, **moved)

    def fingerprint(self) -> str:
        """A digest of these episodes, under which results that depend on nothing else can be kept.

        Tensors count by their content, all other fields as they are printed, and what is computed by the first losses
        and gradients.
        """
        digest = hashlib.sha256(f"{type(self).__module__} {type(self).__qualname__}".encode())
        with torch.random.fork_rng(devices=[self.theta.device] if self.theta.is_cuda else []):
            torch.manual_seed(0)  # a network with dropout is the same whenever it is asked
            losses_and_gradients = self.value_and_grad(self.theta, 0)
        for tensor in losses_and_gradients:
            digest.update(content(tensor).encode())
        for name, value in self._fields().items():
            digest.update(f"{name} {content(value) if isinstance(value, Tensor) else value!r}".encode())
        return digest.hexdigest()

    def repeat(self, times: int) -> Self:
        """Returns the N episodes ``times`` over, all of them and then all again: [N, ...] becomes [times · N, ...]."""
        tensors = self.tensor_fields().items()
        return replace(self, **{name: value.repeat(times, *[1] * (value.ndim - 1)) for name, value in tensors})

    def first(self, count: int) -> Self:
        """Returns the first of the episodes, ``count`` at most."""
        return replace(self, **{name: value[:count] for name, value in self.tensor_fields().items()})

    def pictures(self, theta: Tensor) -> Tensor | None:
        """How θ looks to a person, [N, 3, H, W] in 0..1; None where it is no picture.

        Args:
            theta: parameters, [N, P].
        """
        return None

    def references(self) -> dict[str, Tensor]:
        """Pictures to be seen beside those of θ, by what they are called, [N, 3, H, W] in 0..1 of any size."""
        return {}

    def tensor_fields(self) -> dict[str, Tensor]:
        """The fields that have the N episodes in their first dimension, by name."""
        return {name: value for name, value in self._fields().items() if isinstance(value, Tensor)}

    def shared_fields(self) -> dict[str, Any]:
        """The fields that all episodes share, by name."""
        return {name: value for name, value in self._fields().items() if not isinstance(value, Tensor)}

    def _total_loss(self, theta: Tensor, step: int) -> tuple[Tensor, Tensor]:
        losses = self.loss(theta, step)
        return losses.sum(), losses

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __len__(self) -> int:
        return len(self.theta)


class EpisodeDataModule(LightningDataModule, ABC):
    """Deals out episodes. An episode is a number: its dataset is a range, and the same number gives the same episode.

    That makes reproducing a run, sharding it over processes and resuming it free. Every epoch of meta-training sees
    episodes of its own.

    Attributes:
        variant_name: what results call this form of the optimizee, where a test races on several.

    Args:
        horizon: T, the number of steps of one run.
        episodes_per_batch: N, how many episodes run side by side on one device; one meta-batch.
        train_episodes: episodes in an epoch of meta-training, over all devices.
        val_episodes: episodes that each validation runs.
        tuning_episodes: episodes on which the baselines' learning rates are tuned.
        test_episodes: fresh episodes that the test runs.
        seed: another seed gives other episodes in every split.
    """

    variant_name = ""

    def __init__(
        self,
        horizon: int = 100,
        episodes_per_batch: int = 1,
        train_episodes: int = 100,
        val_episodes: int = 20,
        tuning_episodes: int = 20,
        test_episodes: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.horizon = horizon
        self.episodes_per_batch = episodes_per_batch
        self.train_episodes = train_episodes
        self.val_episodes = val_episodes
        self.tuning_episodes = tuning_episodes
        self.test_episodes = test_episodes
        self.seed = seed
        for key in (
            "horizon",
            "episodes_per_batch",
            *(f"{s}_episodes" for s in ("train", "val", "tuning", "test")),
        ):
            require_positive(f"data.{key}", getattr(self, key))
        if seed < 0:
            raise InvalidInputError(f"data.seed is {seed}, but it must not be negative: give 0 or more.")
        if train_episodes % episodes_per_batch:
            raise InvalidInputError(
                f"data.train_episodes is {train_episodes}, which data.episodes_per_batch={episodes_per_batch} does not "
                "divide: make it a multiple, so that every meta-batch is full."
            )

    @property
    def variant(self) -> str:
        """Which form of the optimizee this is, for the results: the name given to a variant, else what says most."""
        return self.variant_name or self.description

    @property
    def description(self) -> str:
        """What the episodes are made of, in words."""
        return "default"

    @abstractmethod
    def episodes(self, split: Split, numbers: Sequence[int]) -> Episodes:
        """Builds the episodes of a split with these numbers, drawing all that is random from ``self.random``."""

    def random(self, split: Split, number: int) -> np.random.Generator:
        """The source of all randomness of one episode: a stream that no other episode of any split shares."""
        return np.random.default_rng([self.seed, get_args(Split).index(split), number])

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", self.train_episodes)

    def val_dataloader(self) -> DataLoader:
        return self._loader("val", self.val_episodes)

    def test_dataloader(self) -> DataLoader:
        return self._loader("test", self.test_episodes)

    def predict_dataloader(self) -> DataLoader:
        """What predict optimizes: the episodes of the test, where nothing else is said."""
        return self.test_dataloader()

    def prediction_name(self, number: int) -> str:
        """What files call the episode of this number that predict optimized."""
        return f"{number:04d}"

    def train_batches(self, processes: int) -> int:
        """Meta-batches in an epoch of meta-training."""
        return math.ceil(self.train_episodes / (self.episodes_per_batch * processes))

    def tuning_episodes_batch(self) -> Episodes:
        """All episodes on which learning rates are tuned, in one batch."""
        return self.episodes("tune", range(self.tuning_episodes))

    def _loader(self, split: Split, count: int) -> DataLoader:
        collate = partial(self._collate, split)
        sampler: DistributedSampler | None = None
        if self.trainer is not None and self.trainer.world_size > 1:  # in turn: Lightning's own sampler would shuffle
            processes, rank = self.trainer.world_size, self.trainer.global_rank
            sampler = DistributedSampler(range(count), processes, rank, shuffle=False)  # type: ignore[arg-type]
        return EpisodeLoader(range(count), batch_size=self.episodes_per_batch, sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]

    def _collate(self, split: Split, numbers: Sequence[int]) -> Episodes:
        if split == "train" and self.trainer is not None:  # an epoch's episodes follow those of the epoch before
            numbers = [self.trainer.current_epoch * self.train_episodes + number for number in numbers]
        return self.episodes(split, numbers)


class EpisodeLoader(DataLoader):
    """A DataLoader that knows how far it is, so that a run stopped in the middle of an epoch goes on from there."""

    position = 0  # batches dealt
    resume_at = 0  # where the next epoch begins, and only that

    def __iter__(self) -> Iterator[Episodes]:  # type: ignore[override]
        self.position, self.resume_at = self.resume_at, 0
        for numbers in islice(iter(self.batch_sampler), self.position, None):  # type: ignore[arg-type]
            self.position += 1
            yield self.collate_fn([self.dataset[number] for number in numbers])

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps: the number of batches dealt; an epoch that is over counts as none."""
        return {"position": self.position % len(self)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Goes on after that many batches."""
        self.position = self.resume_at = state_dict["position"]


def content(tensor: Tensor) -> str:
    """A digest of a tensor's type, shape and numbers."""
    numbers = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()  # NumPy has no bfloat16
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(numbers).hexdigest()}"


def require_positive(key: str, value: float) -> None:
    """Raises ``InvalidInputError`` unless a setting is above zero."""
    if value <= 0:
        raise InvalidInputError(f"{key} is {value}, but it must be positive: give a value above 0.")
