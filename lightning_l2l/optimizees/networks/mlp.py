"""The paper's small classifier (arXiv:1606.04474, section 3.2)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from lightning_l2l.errors import InvalidInputError

Activation = Literal["sigmoid", "relu", "tanh", "gelu"]
ACTIVATIONS = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "none": nn.Identity}


class MLP(nn.Sequential):
    """A multilayer perceptron on flattened images or other examples: [B, ...] in, logits [B, classes] out.

    Args:
        inputs: numbers in one example, such as the pixels C · H · W of an image.
        hidden_sizes: units of each hidden layer; the paper trains on one layer of 20.
        classes: number of labels; or of outputs, where it is not a classifier.
        activation: sigmoid, relu, tanh or gelu.
    """

    def __init__(
        self,
        inputs: int = 784,
        hidden_sizes: tuple[int, ...] = (20,),
        classes: int = 10,
        activation: Activation = "sigmoid",
    ) -> None:
        sizes = [inputs, *hidden_sizes]
        if min(*sizes, classes) <= 0:
            raise InvalidInputError(
                f"inputs, hidden_sizes and classes are {[*sizes, classes]}, but layers need at least one unit each."
            )
        super().__init__(nn.Flatten(), *dense([*sizes, classes], activation))

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits of a batch of images, [B, classes]."""
        return super().forward(images)


def dense(sizes: Sequence[int], activation: str, linear: type[nn.Linear] = nn.Linear) -> list[nn.Module]:
    """The layers of a perceptron, with activations between them.

    Args:
        sizes: units of each layer, the inputs first and the outputs last.
        activation: one of ``ACTIVATIONS``.
        linear: the class of the layers.
    """
    layers: list[nn.Module] = []
    for size, next_size in pairwise(sizes):
        layers += [linear(size, next_size), ACTIVATIONS[activation]()]
    return layers[:-1]
