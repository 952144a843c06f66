"""The starts of networks in Haiku, for comparison with results that others have published."""

import math

import torch
from torch import Tensor, nn


class TruncatedNormalStart(nn.Module):
    """A network whose linear layers and convolutions start as in Haiku.

    Weights are drawn from a normal distribution with standard deviation 1 / √fan_in, cut off at two of them; biases
    are zero (``hk.Linear``, ``hk.ConvND``).

    Args:
        network: the module.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the weights; called after each layer's own ``reset_parameters``."""
        for module in self.network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                std = 1 / math.sqrt(module.weight[0].numel())
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns what the network makes of the inputs."""
        return self.network(inputs)
