"""The first layers of VGG16 (Simonyan and Zisserman, arXiv:1409.1556), frozen: features of pictures."""

import pickle
import zipfile
import zlib
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import VGG16_Weights

from lightning_l2l.errors import InvalidInputError, first_line
from lightning_l2l.optimizees.sources.downloads import downloading
from lightning_l2l.optimizees.sources.npz import read_npz
from lightning_l2l.rules.files import check_finite

# channels of conv1_1 to conv3_3, by torchvision's numbers of the layers; pooling comes before 5 and 10
LAYERS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256)}
UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    pickle.PickleError,
)
TAPPED = (3, 8, 15)  # relu1_2, relu2_2, relu3_3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours in 0..1; VGG16 takes normalized inputs


class VGG(nn.Module):
    """VGG16 from conv1_1 to conv3_3. Its weights are frozen: gradients reach only the picture.

    Args:
        state: weights by torchvision's names, ``features.0.weight`` and so on; other names are ignored. None draws
            random weights, always the same ones, at the scale that preserves the features' (He et al.,
            arXiv:1502.01852).
    """

    def __init__(self, state: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, channels in LAYERS.items():
            if number in (5, 10):
                layers.append(nn.MaxPool2d(2))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(number)
                convolution = nn.Conv2d(*channels, kernel_size=3, padding=1)
                nn.init.kaiming_normal_(convolution.weight)
                nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            layers += [convolution, nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        if state is not None:
            self.load_state_dict({name: state[name].float() for name in self.state_dict()})
        self.requires_grad_(False)
        self.to(memory_format=torch.channels_last)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Returns relu1_2, relu2_2 and relu3_3: [N, 64, H, W], [N, 128, H/2, W/2] and [N, 256, H/4, W/4].

        Args:
            pictures: normalized by ImageNet's mean and standard deviation, [N, 3, H, W]; halves are rounded down.
        """
        tapped = []
        outputs = pictures.contiguous(memory_format=torch.channels_last)
        for number, layer in enumerate(self.features):
            outputs = layer(outputs)
            if number in TAPPED:
                tapped.append(outputs)
        return tapped


def load_vgg(features: str) -> VGG:
    """Loads VGG16's first layers.

    Args:
        features: auto takes torchvision's weights, from its cache or downloaded; random uses untrained weights; a path
            names a state dict of torchvision's vgg16, or an .npz with the same names of its first layers.

    Raises:
        InvalidInputError: the weights cannot be loaded, or are not those of VGG16.
    """
    if features == "random":
        return VGG()
    if features == "auto":
        return VGG(torchvision_weights())
    path = Path(features)
    try:
        state = load_npz_weights(path) if path.suffix == ".npz" else load_state_dict(path)
    except UNREADABLE as e:
        reason = "is not there" if isinstance(e, FileNotFoundError) else "cannot be read as weights"
        raise InvalidInputError(
            f"data.features is {features}, which {reason}: give auto, random, the file of torchvision's vgg16, or an "
            ".npz of its first layers."
        ) from e
    check_finite(state, f"data.features is {features}")
    for name, tensor in VGG().state_dict().items():
        found = tuple(state[name].shape) if name in state else None
        if found != tuple(tensor.shape):
            raise InvalidInputError(
                f"data.features is {features}, in which {name} "
                f"{f'has shape {found} instead of' if found else 'is missing; it has shape'} {tuple(tensor.shape)}: "
                "give weights of torchvision's vgg16, or an .npz of its first layers."
            )
    return VGG(state)


def load_npz_weights(path: Path) -> dict[str, Tensor]:
    """Reads arrays by their names, without executing anything in the file."""
    arrays = read_npz(path, (), list(VGG().state_dict()), "data.features")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads what ``torch.save`` wrote of a module, without executing anything in the file."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path} is not a state dict")
    return state


@cache  # half a gigabyte, of which a hundredth is kept
def torchvision_weights() -> dict[str, Tensor]:
    """Torchvision's VGG16, trained on ImageNet: from its cache, else downloaded.

    Raises:
        InvalidInputError: neither is possible.
    """
    weights = VGG16_Weights.IMAGENET1K_V1
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        with downloading(folder):
            state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise InvalidInputError(
            f"data.features is auto, but VGG16's weights could not be loaded ({first_line(error)[:60]}): give "
            f"data.features=random, or a file's path, or put {weights.url} into {folder}."
        ) from error
    return {name: state[name].clone() for name in VGG().state_dict()}
