"""A small autoencoder."""

from torch import Tensor, nn

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees.networks.mlp import Activation, dense


class Autoencoder(nn.Module):
    """An MLP to a narrow code and back: [B, ...] in, a reconstruction of the same shape out.

    Args:
        inputs: numbers in one example.
        hidden_sizes: units of the layers down to the code, whose size is the last; the way back mirrors them.
        activation: of all layers but the last: sigmoid, relu, tanh or gelu.
        sigmoid_output: squash the reconstruction into 0..1, where images lie.
    """

    def __init__(
        self,
        inputs: int = 784,
        hidden_sizes: tuple[int, ...] = (32, 8),
        activation: Activation = "tanh",
        sigmoid_output: bool = False,
    ) -> None:
        super().__init__()
        if not hidden_sizes or min(inputs, *hidden_sizes) <= 0:
            raise InvalidInputError(
                f"inputs and hidden_sizes are {[inputs, *hidden_sizes]}, but layers need at least one unit each, and "
                "there must be a code: give positive sizes."
            )
        sizes = [inputs, *hidden_sizes, *hidden_sizes[-2::-1], inputs]
        layers = dense(sizes, activation)
        self.layers = nn.Sequential(*layers, *([nn.Sigmoid()] if sigmoid_output else []))

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the reconstruction, in the shape of the inputs."""
        return self.layers(inputs.flatten(1)).view_as(inputs)
