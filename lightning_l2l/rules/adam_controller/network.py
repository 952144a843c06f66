"""The controller's network: from features of a tensor to the numbers by which it is stepped."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lightning_l2l.errors import InvalidInputError, require_positive
from lightning_l2l.rules.adam_controller.statistics import FEATURES, FIRST, Sizes
from lightning_l2l.rules.base import UpdateRule

Direction = Literal["gradient", "slow_mean", "orthogonal"]
OUTPUTS = {
    "rate": 1.5,
    "gradient": 1.0,
    "slow_mean": 1.0,
    "mixture": 2.0,
    "epsilon": 2.0,
    "mean": 1.0,
    "orthogonal": 1.0,
}
"""The network's outputs, in order, each with its factor."""

CONTROLS = 6  # numbers by which a tensor is stepped until the network runs again
RATE = 0.003  # learning rate of the untrained rule
LARGEST = 0.3  # root mean square of m₉'s part of a step, about, relative to that of θ and a little more
SMALLEST_SIZE = 0.02  # that little more, so that zeros can move


class ControllerNetwork(UpdateRule):
    """The meta-parameters of ``AdamController``, and what is computed from them.

    Args:
        directions: see ``AdamController`` for all arguments.
    """

    scales: Tensor  # of the outputs

    def __init__(
        self,
        directions: list[Direction] | None = None,
        hidden: int = 8,
        every: int = 4,
        all_sides: bool = False,
        warm_up: int = 1,
        fade_orthogonal: bool = False,
        spectral_limit: int | None = None,
        block: int | None = 128,
    ) -> None:
        super().__init__()
        positive = dict(hidden=hidden, every=every, warm_up=warm_up, spectral_limit=spectral_limit, block=block)
        for name, value in positive.items():
            if value is not None:
                require_positive(name, value)
        known = get_args(Direction)
        chosen = list(known if directions is None else directions)
        if len(set(chosen)) != len(chosen) or not set(chosen) <= set(known):
            raise InvalidInputError(f"directions is {chosen}: give some of {', '.join(known)}, each once.")
        self.outputs = [name for name in OUTPUTS if name not in known or name in chosen]
        self.orthogonal = "orthogonal" in chosen
        self.every = every
        self.all_sides = all_sides
        self.warm_up = warm_up
        self.fade_orthogonal = fade_orthogonal
        self.spectral_limit = spectral_limit
        self.block = block
        self.W1 = nn.Parameter(torch.randn(FEATURES, hidden) / math.sqrt(FEATURES))
        self.b1 = nn.Parameter(torch.zeros(hidden))
        self.W2 = nn.Parameter(torch.zeros(hidden, len(self.outputs)))
        self.b2 = nn.Parameter(torch.zeros(len(self.outputs)))
        self.Wl = nn.Parameter(torch.zeros(FEATURES, len(self.outputs)))
        self.register_buffer("scales", torch.tensor([OUTPUTS[name] for name in self.outputs]), persistent=False)

    def due(self, t: int) -> bool:
        """Whether the network runs at step t, counted from 1."""
        return t <= FIRST or t % self.every == 0

    def renews(self, t: int, shape: tuple[int, int]) -> bool:
        """Whether a matrix's O is renewed at step t; half as often where it is split into blocks, as it costs most."""
        split = self.block is not None and min(shape) > self.block
        return t <= FIRST or t % (self.every * (2 if split else 1)) == 0

    def controls(self, inputs: Tensor, sizes: Sizes) -> Tensor:
        """Runs the network.

        Args:
            inputs: features, [..., tensors, 22].
            sizes: what its outputs refer to.

        Returns:
            For each tensor the factors of m₉, g and m₉₉, the share of v₉₉ beside v₉₉₉, what is added to √v, and the
            factor of O, [..., 6, tensors].
        """
        hidden = torch.tanh(inputs @ self.W1 + self.b1.unsqueeze(-2))
        numbers = (hidden @ self.W2 + inputs @ self.Wl + self.b2.unsqueeze(-2)) * self.scales
        out = dict(zip(self.outputs, numbers.unbind(-1), strict=True))
        zero = torch.zeros_like(sizes.theta)
        mean = out["mean"].clamp(-6, 1).exp()
        gradient, slow_mean = out.get("gradient", zero), out.get("slow_mean", zero)
        orthogonal = out.get("orthogonal", zero)
        length = mean + gradient.abs() + slow_mean.abs() + 0.3 * orthogonal.abs()
        bound = LARGEST * (sizes.theta + SMALLEST_SIZE) / sizes.adam.clamp(min=1e-6) / length
        rate = torch.minimum(RATE * out["rate"].clamp(-6, 5).exp(), bound) * (sizes.t / self.warm_up).clamp(max=1)
        strength = sizes.strength if self.fade_orthogonal else (sizes.strength > 0).to(zero.dtype)
        epsilon = (out["epsilon"] - 5).clamp(-12, 3).exp()
        factor = rate * (1 + epsilon)
        return torch.stack(
            [
                factor * mean,
                factor * gradient,
                factor * slow_mean,
                out["mixture"].sigmoid(),
                epsilon * sizes.grad,
                rate * orthogonal * strength,
            ],
            dim=-2,
        )
