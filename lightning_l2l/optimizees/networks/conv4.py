"""The small convolutional classifier of few-shot learning."""

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees.networks.stacked import BatchNorm, Conv2d, Linear, Stacked


class Conv4(Stacked):
    """Four 3 × 3 convolutions, each halving the image, then a linear layer: images [B, C, H, W] in, logits out.

    Each convolution is followed by batch normalisation with the minibatch's own statistics, and a ReLU. With strides,
    64 channels and the mean over all positions it is MAML's network for Omniglot (arXiv:1703.03400, section 5.2); with
    pooling, 32 channels and all positions it is the one for MiniImagenet (Ravi and Larochelle, 2017).

    Args:
        classes: number of labels; data.ways in few-shot learning.
        width: channels of each convolution. 32 takes a third of the time of 64.
        colours: channels of the images.
        image_size: height and width of the images; used only where positions are kept.
        pool: halve by 2 × 2 max pooling, instead of by the convolution's stride.
        average: give the linear layer the mean over all positions, instead of all of them.
    """

    def __init__(
        self,
        classes: int = 5,
        width: int = 64,
        colours: int = 1,
        image_size: int = 28,
        pool: bool = False,
        average: bool = True,
    ) -> None:
        if min(classes, width, colours) <= 0 or image_size < 16:
            raise InvalidInputError(
                f"data.network has {classes} classes, width {width}, {colours} colours and image_size {image_size}: "
                "give positive numbers, and images of 16 pixels or more, since each of four layers halves them."
            )
        layers: list[nn.Module] = []
        size = image_size
        for before in (colours, width, width, width):
            layers += [Conv2d(before, width, 3, 1 if pool else 2, padding=1), BatchNorm(width), nn.ReLU()]
            layers += [Pool()] if pool else []
            size = size // 2 if pool else (size + 1) // 2
        layers.append(Mean() if average else nn.Flatten(-3))
        super().__init__(*layers, Linear(width if average else width * size**2, classes))


class Pool(nn.Module):
    """2 × 2 max pooling of images [.., C, H, W]."""

    def forward(self, inputs: Tensor) -> Tensor:
        return F.max_pool2d(inputs.flatten(0, -4), 2).unflatten(0, inputs.shape[:-3])


class Mean(nn.Module):
    """The mean over all positions of images [.., C, H, W], [.., C]."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mean((-2, -1))
