"""Few-shot classification, as an optimizee."""

import random
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_l2l.errors import InvalidInputError, require_positive
from lightning_l2l.extras import learn2learn
from lightning_l2l.optimizees.base import Split
from lightning_l2l.optimizees.module_episodes import ModuleEpisodes, holding, unflatten
from lightning_l2l.optimizees.module_training import ModuleTraining
from lightning_l2l.optimizees.networks.conv4 import Conv4
from lightning_l2l.optimizees.sources.base import Examples, Source
from lightning_l2l.optimizees.sources.image_classes import (
    load_image_classes,
    prepare_omniglot,
    split_classes,
    with_rotations,
)
from lightning_l2l.optimizees.sources.images import LabelledImages

STACKED = 500  # images at most for networks side by side: more are faster network by network, in a CPU's cache
NEEDED_BY = "data.class_path FewShot"
ROTATED = {"none": (), "train": ("train",), "all": ("train", "val", "test")}  # the parts that get rotated classes


@dataclass(eq=False)
class FewShotEpisodes(ModuleEpisodes):
    """Cross-entropy of a network on a task's support set before the horizon, and on its query set at the horizon.

    Attributes:
        indices: the images of each task, class by class, [N, ways, shots + queries].
        shots: how many of a class, the first ones, are the support set's.
        horizon: T, the step at which the loss is the query set's.
    """

    shots: int = 1
    horizon: int = 1

    def minibatch(self, theta: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Returns the images [N, ways · k, C, H, W] and labels [N, ways · k] of the support set, or of the query set.

        Labels number the classes of a task, whatever their labels in the data set.
        """
        rows = self.indices[:, :, : self.shots] if step < self.horizon else self.indices[:, :, self.shots :]
        return self._labelled(rows)

    def every_image(self) -> tuple[Tensor, Tensor]:
        """Returns both sets class by class, in each of them the support set first, like ``minibatch``."""
        return self._labelled(self.indices)

    def loss(self, theta: Tensor, step: int) -> Tensor:
        count, ways, size = self.indices.shape
        images = count * ways * (self.shots if step < self.horizon else size - self.shots)
        apart = self.batching == "stacked" and theta.is_cpu and images > STACKED
        return ModuleEpisodes.loss(replace(self, batching="none") if apart else self, theta, step)

    def value_and_grad(self, theta: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """As for all episodes; where a graph is built, the query loss's own gradient is left out, and NaN.

        No step follows it, and a meta-gradient that builds a graph differentiates the loss alone. For 15 queries a
        class, this gradient and its graph would take a third of the time of MAML.
        """
        if step == self.horizon and torch.is_grad_enabled() and theta.requires_grad:
            return self.loss(theta, step), torch.full_like(theta, torch.nan)
        return super().value_and_grad(theta, step)

    @torch.no_grad()
    def accuracy(self, theta: Tensor) -> Tensor:
        """Returns the share of the query set that each θ classifies rightly, without dropout, [N].

        A query set is one minibatch for batch normalization, as in its loss. Outputs that are NaN count as wrong.
        """
        from torchmetrics.functional.classification import multiclass_accuracy  # the core needs torch only

        images, labels = self.minibatch(theta, self.horizon)
        outputs = replace(self, network=deepcopy(self.network).eval())._outputs(theta, images)
        classes = outputs.shape[-1]  # one more stands for what is not a number
        predicted = outputs.argmax(-1).where(~outputs.isnan().any(-1), classes)
        found = multiclass_accuracy(predicted, labels, classes + 1, average="micro", multidim_average="samplewise")
        return found.to(theta.dtype)

    def _labelled(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images, and the numbers of their classes, for rows [N, ways, k]."""
        count, ways, size = rows.shape
        images = self.examples.minibatch(rows.flatten(1), self.theta.dtype)[0]
        return images, torch.arange(ways, device=rows.device).repeat_interleave(size).expand(count, -1)

    def _outputs(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """The logits of each network, [N, B, classes]."""
        side_by_side = self.batching == "stacked"
        outputs = []
        for one, images in [(theta, inputs)] if side_by_side else zip(theta, inputs, strict=True):
            with holding(self.network, unflatten(one, self.network)):
                outputs.append(self.network(images))
        return outputs[0] if side_by_side else torch.stack(outputs)


class FewShot(ModuleTraining):
    """Each episode learns to tell a few new classes apart by a few images of each (arXiv:1606.04080).

    Its task has ``ways`` classes, drawn at random. The loss before the horizon is that of the support set, ``shots``
    images of each class; at the horizon it is that of the query set, ``queries`` other images of each. So the last loss
    alone (``loss_weights: last``) with the exact meta-gradient of a whole run and a learned start is MAML
    (arXiv:1703.03400), and with the first-order meta-gradient FOMAML.

    Meta-training, validation and test have classes of their own; the learning rates of the baselines are tuned on those
    of validation, for the query loss at the horizon. Tasks are drawn by learn2learn, which is not installed by default:
    ``uv sync --extra learn2learn``.

    Args:
        network: images [B, C, H, W] in, logits [B, ways] out; null is MAML's for Omniglot, ``Conv4``.
        source: Omniglot is read from ``root``, else downloaded, and shrunk to 28 × 28. A path names an .npz with
            ``images``, [M, H, W] or [M, H, W, C], and ``labels``, [M], or a folder with one folder of images for each
            class.
        root: folder of datasets.
        ways: classes of a task.
        shots: images of each class to learn from.
        queries: images of each class to be tested on. On one query a class, batch normalization by the query set's own
            statistics flatters the accuracy by about 4 points.
        classes: numbers of classes for meta-training, validation and test, drawn at random, but always the same; null
            gives a sixth each to validation and test.
        rotations: add each image turned by 90, 180 and 270 degrees as further classes: in train, in all parts or in
            none. They take three times the memory of the images again.
        invert: swap black and white, so that zero padding continues the paper around dark ink.
        init_std: standard deviation of θ_0 ~ N(0, init_std²), weights and biases alike; null initialises each module of
            the network by its ``reset_parameters``.
        kwargs: see ``EpisodeDataModule``.
    """

    last_steps: ClassVar[int] = 1

    def __init__(
        self,
        network: nn.Module | None = None,
        source: Source | str = "Omniglot",
        root: str = "data",
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        classes: tuple[int, int, int] | None = None,
        rotations: Literal["none", "train", "all"] = "train",
        invert: bool = False,
        init_std: float | None = None,
        **kwargs: Any,
    ) -> None:
        if ways < 2:
            raise InvalidInputError(f"data.ways is {ways}, but a task needs classes to tell apart: give 2 or more.")
        if rotations not in ROTATED:
            raise InvalidInputError(f"data.rotations is {rotations}: give one of {', '.join(ROTATED)}.")
        require_positive("data.shots", shots)
        require_positive("data.queries", queries)
        super().__init__(
            network=network or Conv4(ways),
            loss=nn.CrossEntropyLoss(),
            source=source,
            batch_size=ways * shots,
            init_std=init_std,
            reconstruct=False,
            **kwargs,
        )
        self.root = Path(root)
        self.ways = ways
        self.shots = shots
        self.queries = queries
        self.classes = classes
        self.rotations = rotations
        self.invert = invert
        self._tasksets: dict[Split, Any] = {}

    def prepare_data(self) -> None:
        """Downloads and shrinks Omniglot, in one process."""
        learn2learn(NEEDED_BY)  # before any download
        if self.source == "Omniglot":
            prepare_omniglot(self.root)

    def _load(self) -> LabelledImages:
        learn2learn(NEEDED_BY)
        images = split_classes(self._read(), self.classes)
        if self.invert:
            images = replace(images, images=(255 if images.images.dtype == torch.uint8 else 1) - images.images)
        images = with_rotations(images, ROTATED[self.rotations])
        self._check_classes(images)
        return images

    def _read(self) -> LabelledImages:
        if isinstance(self.source, str):
            path = prepare_omniglot(self.root) if self.source == "Omniglot" else Path(self.source)
            if not path.is_dir() and path.suffix != ".npz":
                raise InvalidInputError(
                    f"data.source is {path}: give Omniglot, an .npz file, or a folder with a folder for each class."
                )
            return load_image_classes(path)
        images = self.source.load()
        if not isinstance(images, LabelledImages):
            raise InvalidInputError(f"data.source is {images.source}, which has no labelled images: give some.")
        return images

    def _check_classes(self, images: LabelledImages) -> None:
        """Refuses parts with too few classes, or with classes of too few images."""
        for part in images.ranges:
            labels, sizes = images.labels[images.part(part)].unique(return_counts=True)
            if len(labels) < self.ways:
                raise InvalidInputError(
                    f"data.ways is {self.ways}, but {part} has {len(labels)} classes of {images.source}: give fewer "
                    "ways, or other data.classes."
                )
            if sizes.min() < self.shots + self.queries:
                raise InvalidInputError(
                    f"data.shots and data.queries are {self.shots} and {self.queries}, but a class of {images.source} "
                    f"has {int(sizes.min())} images: give fewer of them."
                )

    def _check_outputs(self, outputs: Any, inputs: Tensor, examples: Examples) -> None:
        """Refuses outputs that are not one logit for each way."""
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        if shape != (len(inputs), self.ways):
            raise InvalidInputError(
                f"data.network makes {shape} of {len(inputs)} images, but data.ways is {self.ways}: give a network "
                f"that returns logits, [{len(inputs)}, {self.ways}]."
            )

    def _episodes(self, split: Split, numbers: Sequence[int], examples: Examples, rows: np.ndarray) -> FewShotEpisodes:
        randoms = [self.random(split, number) for number in numbers]
        return FewShotEpisodes(
            indices=self._tasks(split, examples, randoms),  # first, so that no network changes them
            theta=torch.stack([self._start(own) for own in randoms]),
            examples=examples,
            network=self.network,
            criterion=self.loss,
            batching=self.batching,
            fused=self.fused,
            channels_last=self.channels_last,
            shots=self.shots,
            horizon=self.horizon,
        )

    def _held_out(self, split: Split, numbers: Sequence[int]) -> None:
        """None beside the query sets."""

    def _tasks(self, split: Split, examples: Examples, randoms: Sequence[np.random.Generator]) -> Tensor:
        """Draws the images of one task from each episode's own stream, [N, ways, shots + queries]."""
        if split not in self._tasksets:
            assert isinstance(examples, LabelledImages)
            self._tasksets[split] = self._taskset(examples, examples.part("val" if split == "tune" else split))
        tasks = []
        with isolate_rng(include_cuda=False):
            for own in randoms:
                random.seed(int(own.integers(2**63)))  # which is what learn2learn draws from
                tasks.append([image.index for image in self._tasksets[split].sample_task_description()])
        return torch.tensor(tasks).view(len(tasks), self.ways, -1)

    def _taskset(self, images: LabelledImages, rows: np.ndarray) -> Any:
        """What learn2learn draws a part's tasks from."""
        data = learn2learn(NEEDED_BY).data
        label_of = dict(enumerate(images.labels.tolist()))
        rows_of: dict[int, list[int]] = {}  # which learn2learn would find by reading every image
        for row, label in label_of.items():
            rows_of.setdefault(label, []).append(row)
        classes = data.MetaDataset(TensorDataset(images.labels), labels_to_indices=rows_of, indices_to_labels=label_of)
        own = images.labels[rows].unique().tolist()
        draw = data.transforms.FusedNWaysKShots(classes, n=self.ways, k=self.shots + self.queries, filter_labels=own)
        return data.Taskset(classes, [draw])

    @property
    def description(self) -> str:
        """Which images these are, and the size of a task."""
        return f"{super().description}, {self.ways}-way {self.shots}-shot"
