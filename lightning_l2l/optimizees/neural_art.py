"""Neural art: painting a picture in the style of another (arXiv:1606.04474, section 3.4; Gatys et al., 1508.06576)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_l2l.digests import content
from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import InvalidInputError, require_not_negative
from lightning_l2l.optimizees.art_loss import ArtLoss
from lightning_l2l.optimizees.base import EpisodeDataModule, Split
from lightning_l2l.optimizees.loader import EpisodeLoader
from lightning_l2l.optimizees.networks.vgg import MEAN, STD, VGG, load_vgg, torchvision_weights
from lightning_l2l.optimizees.origin import Origin
from lightning_l2l.optimizees.sources.picture_files import open_picture, read_picture
from lightning_l2l.optimizees.sources.pictures import (
    CARRIED,
    SMALLEST,
    Picture,
    carried_contents,
    carried_picture,
    file_sizes,
    folder_contents,
    pictures_in,
    shrink,
    square,
)


def normalize(picture: Image.Image) -> Tensor:
    """An RGB picture as VGG takes it: colours in 0..1, standardised by ImageNet's mean and deviation, [3, H, W]."""
    colours = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    return (colours - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def to_colours(pictures: Tensor) -> Tensor:
    """Normalized pictures [N, 3, H, W] as colours in 0..1; values outside are clamped."""
    mean, std = (torch.tensor(values).to(pictures)[:, None, None] for values in (MEAN, STD))
    return (pictures * std + mean).clamp(0, 1)


@dataclass(eq=False)
class NeuralArtEpisodes(Episodes):
    """Pictures to be painted. θ holds normalized pixels, [N, 3 · H · W]: their natural step is about 0.1, which an LSTM
    takes without an output scale, and the network needs no further scaling.

    Attributes:
        images: the content images, normalized, [N, 3, H, W].
        target: their features, [N, C, h, w].
        objective: the loss, shared.
    """

    images: Tensor
    target: Tensor
    objective: ArtLoss

    def loss(self, theta: Tensor, step: int) -> Tensor:
        return self.objective(theta.view_as(self.images), self.target)

    def pictures(self, theta: Tensor) -> Tensor:
        return to_colours(theta.view_as(self.images))

    def references(self) -> dict[str, Tensor]:
        style = to_colours(self.objective.style[None]).expand(len(self), -1, -1, -1)
        return {"content": to_colours(self.images), "style": style}


class NeuralArt(EpisodeDataModule):
    """Each episode paints one content image in the style of another image.

    Meta-training goes through the content images in an order that changes with each pass. The baselines' learning rates
    are tuned on the last images of the train folder, which meta-training leaves out, so that validation and test images
    serve no other purpose.

    Args:
        content: folder with the folders train, val and test of content images; null uses crops of pictures that
            installed packages carry.
        style: path of the style image; or flower, china or hopper, which installed packages carry.
        size: pixels of a side of the pictures, which are cut to squares; 16 or more.
        start: where the pixels start: at the content image, or at noise.
        content_weight: α, of the squared difference of features (relu2_2) from the content image's.
        style_weight: β, of the squared difference of Gram matrices (relu1_2, relu2_2, relu3_3) from the style's.
        variation_weight: γ, of the squared difference of neighbouring pixels.
        features: auto takes torchvision's VGG16, downloaded where it is not yet cached; a path gives its weights as a
            state dict or an .npz; random uses untrained weights, only to try things out.
        predict: path of a picture, or of a folder of them, that the command predict paints at their own size; null
            paints the test images.
        predict_size: pixels of the shorter side to which those are resized; null leaves them as they are.
        kwargs: see ``EpisodeDataModule``.
    """

    def __init__(
        self,
        content: str | None = None,
        style: str = "flower",
        size: int = 64,
        start: Literal["content", "noise"] = "content",
        content_weight: float = 20.0,
        style_weight: float = 100.0,
        variation_weight: float = 10.0,
        features: str = "auto",
        predict: str | None = None,
        predict_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for key, value in {"size": size, "predict_size": predict_size}.items():
            if value is not None and value < SMALLEST:
                raise InvalidInputError(f"data.{key} is {value}, which is too small: give {SMALLEST} or more.")
        weights = {"content_weight": content_weight, "style_weight": style_weight, "variation_weight": variation_weight}
        for key, weight in weights.items():
            require_not_negative(f"data.{key}", weight)
        if not any(weights.values()):
            raise InvalidInputError("data.content_weight and both other weights are 0: give one that is not.")
        self.content = content
        self.style = style
        self.size = size
        self.start = start
        self.weights = (content_weight, style_weight, variation_weight)
        self.features = features
        self.predict = predict
        self.predict_size = predict_size
        self._loaded: tuple[dict[str, Sequence[Picture]], Image.Image, VGG] | None = None
        self._losses: dict[int, ArtLoss] = {}  # for the most recent size

    def prepare_data(self) -> None:
        """Fetches torchvision's weights, in one process, if the pictures to paint can be read."""
        if self.trainer is not None and self.trainer.predicting:
            self._check_own_pictures()
        if self.features == "auto":
            torchvision_weights()

    def setup(self, stage: str | None = None) -> None:
        """Finds the pictures, checks them and loads the network."""
        if self._loaded is not None:
            return
        contents = carried_contents() if self.content is None else folder_contents(Path(self.content))
        if self.style in CARRIED:
            style = carried_picture(self.style)
        else:
            style = read_picture(Path(self.style), f"data.style is {self.style}, which", SMALLEST)
        self._check_counts(contents)
        self._loaded = contents, style, load_vgg(self.features)
        counts = " / ".join(f"{len(pictures):,}" for pictures in contents.values())
        rank_zero_info(f"Pictures: {counts} of {self.content or 'those carried'}; {self.variant}.")

    def _check_counts(self, contents: dict[str, Sequence[Picture]]) -> None:
        """Checks that every split has pictures of its own, and that a validation or test uses none twice."""
        limits = {"tuning": len(contents["train"]) - 1, "val": len(contents["val"]), "test": len(contents["test"])}
        for key, most in limits.items():
            wanted = getattr(self, f"{key}_episodes")
            if wanted > most:
                raise InvalidInputError(
                    f"data.{key}_episodes is {wanted}, but data.content has pictures for {most}: give that or less, or "
                    "more pictures."
                )

    @property
    def variant(self) -> str:
        """The style and size, or the variant's name; and whether the network is untrained."""
        return super().variant + (", random features" if self.features == "random" else "")

    @property
    def description(self) -> str:
        """The style and the size."""
        return f"{Path(self.style).stem} {self.size} x {self.size}"

    @property
    def origin(self) -> Origin:
        """The names and sizes of the pictures' files, the style and the network."""
        _, style, features = self._ready()
        files = [] if self.content is None else file_sizes(Path(self.content))
        tensors = [normalize(style), *features.state_dict().values()]
        source = self.variant if self.content is None else f"{self.content}, {self.variant}"
        return Origin(source, others=[*files, *map(content, tensors)])

    def episodes(self, split: Split, numbers: Sequence[int]) -> NeuralArtEpisodes:
        """Builds the pictures to paint with these numbers."""
        images = [normalize(square(self._picture(split, number), self.size)) for number in numbers]
        return self._paint(images, [self.random(split, number) for number in numbers])

    def _picture(self, split: Split, number: int) -> Image.Image:
        contents, _, _ = self._ready()
        if split in ("val", "test"):
            return contents[split][number % len(contents[split])]()
        train, tune = contents["train"][: -self.tuning_episodes], contents["train"][-self.tuning_episodes :]
        if split == "tune":
            return tune[number % len(tune)]()
        passes, place = divmod(number, len(train))
        return train[self.random("train", passes).permutation(len(train))[place]]()

    def _paint(self, images: Sequence[Tensor], randoms: Sequence[np.random.Generator]) -> NeuralArtEpisodes:
        objective = self._objective(min(images[0].shape[1:]))
        stacked = torch.stack(list(images)).to(objective.scale)
        theta = stacked
        if self.start == "noise":
            noise = [random.standard_normal(stacked.shape[1:], dtype=np.float32) for random in randoms]
            theta = torch.from_numpy(np.stack(noise)).to(stacked)
        return NeuralArtEpisodes(theta.flatten(1), stacked, objective.content(stacked), objective)

    def _objective(self, shorter: int) -> ArtLoss:
        """The loss for pictures of this shorter side, to which the style is resized as well."""
        _, style, features = self._ready()
        if shorter not in self._losses:
            self._losses = {shorter: ArtLoss(features, normalize(shrink(style, shorter)), self.weights)}
        return self._losses[shorter]

    def _ready(self) -> tuple[dict[str, Sequence[Picture]], Image.Image, VGG]:
        if self._loaded is None:
            self.prepare_data()
            self.setup()
        assert self._loaded is not None
        return self._loaded

    def predict_dataloader(self) -> DataLoader:
        """The pictures of ``predict``, one at a time, since each may have another size."""
        if self.predict is None:
            return super().predict_dataloader()
        self._check_own_pictures()  # before the first is painted
        paths = self._own_pictures
        collate = partial(self._collate_own, paths)
        return EpisodeLoader(range(len(paths)), batch_size=1, collate_fn=collate)  # type: ignore[arg-type]

    def prediction_name(self, number: int) -> str:
        """The name of the picture's file."""
        if self.predict is None:
            return super().prediction_name(number)
        paths = self._own_pictures
        stems = [path.stem for path in paths]
        return stems[number] if stems.count(stems[number]) == 1 else paths[number].name

    @cached_property
    def _own_pictures(self) -> list[Path]:
        assert self.predict is not None
        path = Path(self.predict)
        return pictures_in(path, f"data.predict is {path}, which") if path.is_dir() else [path]

    def _check_own_pictures(self) -> None:
        for path in self._own_pictures if self.predict is not None else ():
            open_picture(path, self._subject(path), SMALLEST).close()

    def _subject(self, path: Path) -> str:
        return f"data.predict is {self.predict}, where {path.name}"

    def _collate_own(self, paths: Sequence[Path], numbers: Sequence[int]) -> NeuralArtEpisodes:
        (number,) = numbers
        picture = read_picture(paths[number], self._subject(paths[number]), SMALLEST)
        if self.predict_size is not None:
            picture = shrink(picture, self.predict_size)
        return self._paint([normalize(picture)], [self.random("test", number)])
