"""The paper's convolutional classifier (arXiv:1606.04474, section 3.3)."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_l2l.errors import InvalidInputError


class OffsetNorm(nn.Module):
    """Batch normalization by the minibatch's own statistics, with an offset and no scale (Ioffe and Szegedy, 2015).

    Args:
        channels: size of the second dimension.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(channels))

    def reset_parameters(self) -> None:
        """Starts without an offset."""
        nn.init.zeros_(self.offset)

    def forward(self, inputs: Tensor) -> Tensor:
        scale = torch.ones_like(self.offset)  # without one PyTorch cannot differentiate twice
        return F.batch_norm(inputs, None, None, scale, self.offset, training=True)


class ConvNet(nn.Sequential):
    """Convolutions, each normalized, pooled by 2 × 2 and rectified, and then fully connected layers.

    Parameters are named ``conv1.weight``, ``conv1.bias``, ``conv1_norm.offset``, ``fc1.weight`` and so on, so that
    patterns can select groups of them.

    Args:
        image_size: height and width of the images.
        colours: channels of the images.
        channels: of each convolution.
        kernel_size: of each convolution; its output is as large as its input.
        hidden_sizes: units of each fully connected layer but the last.
        classes: number of labels.
    """

    def __init__(
        self,
        image_size: int = 32,
        colours: int = 3,
        channels: tuple[int, ...] = (16, 16, 16),
        kernel_size: int = 5,
        hidden_sizes: tuple[int, ...] = (32,),
        classes: int = 10,
    ) -> None:
        if min(image_size >> len(channels), colours, *channels, kernel_size, *hidden_sizes, classes) <= 0:
            raise InvalidInputError(
                f"image_size {image_size} is halved by each of {len(channels)} convolutions, and all sizes must be "
                "positive: give fewer channels, or larger sizes."
            )
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        width = colours
        for number, size in enumerate(channels, 1):
            layers[f"conv{number}"] = nn.Conv2d(width, size, kernel_size, padding="same")
            layers[f"conv{number}_norm"] = OffsetNorm(size)
            layers[f"pool{number}"] = nn.MaxPool2d(2)  # same result, but the ReLU then sees a quarter of the values
            layers[f"relu{number}"] = nn.ReLU()
            width = size
        layers["flatten"] = nn.Flatten()
        width *= (image_size >> len(channels)) ** 2
        for number, size in enumerate(hidden_sizes, 1):
            layers[f"fc{number}"] = nn.Linear(width, size)
            layers[f"fc{number}_norm"] = OffsetNorm(size)
            layers[f"fc{number}_relu"] = nn.ReLU()
            width = size
        layers[f"fc{len(hidden_sizes) + 1}"] = nn.Linear(width, classes)
        super().__init__(layers)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits of a batch of images, [B, classes]."""
        return super().forward(images)
