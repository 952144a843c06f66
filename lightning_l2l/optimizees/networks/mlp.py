"""The paper's small classifier (arXiv:1606.04474, section 3.2)."""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from lightning_l2l.errors import InvalidInputError

Activation = Literal["sigmoid", "relu", "tanh", "gelu"]
ACTIVATIONS = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


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
        hidden: list[nn.Module] = []
        for size, next_size in pairwise(sizes):
            hidden += [nn.Linear(size, next_size), ACTIVATIONS[activation]()]
        super().__init__(nn.Flatten(), *hidden, nn.Linear(sizes[-1], classes))

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits of a batch of images, [B, classes]."""
        return super().forward(images)
