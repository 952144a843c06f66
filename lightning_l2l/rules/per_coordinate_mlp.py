"""A small MLP run on every coordinate, beside Adam (arXiv:2203.11860, arXiv:2209.11208)."""

import copy
import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_l2l.errors import require_positive, require_within
from lightning_l2l.rules.base import MOST_LAYERS, Layout, State, UpdateRule, layout_of
from lightning_l2l.rules.coordinate_features import (
    COUNT,
    DECAYS,
    SQUARE_DECAY,
    TIMESCALES,
    Inputs,
    SecondMoments,
    coordinate_inputs,
    root_mean_square,
)

LARGEST_FEATURE = 5.0
LARGEST_EXPONENT = 5.0  # approached smoothly
OUTPUTS = 3  # direction, its log magnitude, and that of Adam's direction
LARGEST_STEP, SMALLEST_SIZE = 0.3, 0.02  # root mean squares: a tensor's step over that of θ, and what is added to θ's


class PerCoordinateState(NamedTuple):
    step: int
    mean: Tensor  # running means of ∇, [N, 3, P]
    square: SecondMoments
    saturated: Tensor  # the share of clamped features in the last step, [N, number of tensors]


class PerCoordinateMLP(UpdateRule):
    """An MLP on features of each coordinate, beside a step of Adam, which it also scales.

    With features x of a coordinate, d, m, n = MLP(x), â Adam's direction (β = .9, .999) and squash(y) = 5 tanh(y / 5),

        g = −α (e^squash(n) · â + d · e^squash(m)).

    The step's root mean square over a tensor is bounded to .3 (RMS θ + .02). The output layer starts at zero, so an
    untrained rule is Adam. The features and d e^m follow AdafacMLP and Celo2 (arXiv:2203.11860, arXiv:2602.19142), the
    nominal term follows STAR (arXiv:2209.11208). The features are ``coordinate_features.tensor_features`` and
    tanh(t / τ) for τ = 1, 3, 10, ... 100,000 steps. Each of the former is divided by its root mean square over the
    tensor and clamped to ±5, so steps do not depend on the loss's scale.

    It keeps 4 numbers per coordinate, 3 per row and per column of a matrix, and 3 more per coordinate of a vector.

    φ may differ between the episodes: every parameter may have a further first dimension N.

    Args:
        hidden_size: number of units H in each layer.
        num_layers: number of hidden layers, which are rectified.
        learning_rate: α, Adam's rate before anything is learned.
    """

    sees = ("theta",)
    constants = ("the inputs of the MLP", "the second moments", "the factor that bounds a tensor's step")
    takes_phi_per_episode = True

    def __init__(self, hidden_size: int = 8, num_layers: int = 2, learning_rate: float = 0.003) -> None:
        super().__init__()
        require_positive("hidden_size", hidden_size)
        require_positive("num_layers", num_layers)
        require_within("num_layers", num_layers, 1, MOST_LAYERS)
        require_positive("learning_rate", learning_rate)
        self.learning_rate = learning_rate
        sizes = [COUNT + len(TIMESCALES), *[hidden_size] * num_layers, OUTPUTS]
        self.weights = nn.ParameterList(torch.empty(after, before) for before, after in pairwise(sizes))
        self.biases = nn.ParameterList(torch.zeros(size) for size in sizes[1:])
        for weight in self.weights[:-1]:
            nn.init.kaiming_uniform_(weight, nonlinearity="relu")
        nn.init.zeros_(self.weights[-1])
        self.register_buffer("decays", torch.tensor(DECAYS)[:, None], persistent=False)
        self.register_buffer("timescales", torch.tensor(TIMESCALES, dtype=torch.float32), persistent=False)
        self.decays: Tensor
        self.timescales: Tensor
        self.layout: Layout | None = None

    def bind(self, layout: Layout) -> "PerCoordinateMLP":
        """Returns a rule with the same φ that normalises by the tensors of this layout; unbound, θ is one vector."""
        bound = copy.copy(self)
        bound.layout = {name: place for name, place in layout.items() if place.stop > place.start}
        return bound

    def init(self, theta: Tensor) -> PerCoordinateState:
        layout = self._layout(theta)
        means = theta.new_zeros(len(theta), len(DECAYS), theta.shape[1])
        return PerCoordinateState(
            0, means, SecondMoments.zeros(theta, layout), theta.new_zeros(len(theta), len(layout))
        )

    def update(self, grad: Tensor, state: State, theta: Tensor) -> tuple[Tensor, PerCoordinateState]:
        step, mean, square, _ = state
        layout = self._layout(theta)
        step = step + 1
        mean = torch.lerp(grad[:, None], mean, self.decays)
        with torch.no_grad():
            square = square.after(grad, self.decays, layout)
        inputs = coordinate_inputs(grad, theta, mean, square, layout, LARGEST_FEATURE)
        correction = math.sqrt(1 - SQUARE_DECAY**step) / (1 - DECAYS[0] ** step)
        adam = correction * mean[:, 0] / inputs.root
        direction, magnitude, of_adam = self._mlp(inputs, step).unbind(1)
        update = -self.learning_rate * (of_adam.exp() * adam + direction * magnitude.exp())
        update = update * bounds(update, theta, layout)
        return update, PerCoordinateState(step, mean, square, inputs.saturated)

    def saturated(self, state: State) -> Tensor:
        return state[-1]

    def _mlp(self, inputs: Inputs, step: int) -> Tensor:
        """Direction and both exponents of every coordinate, [N, 3, P]."""
        weight, of_time = self.weights[0].split([COUNT, len(TIMESCALES)], -1)
        rows = weight @ inputs.features + (of_time @ torch.tanh(step / self.timescales) + self.biases[0])[..., None]
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            rows = weight @ rows.relu() + bias[..., None]
        return torch.cat([rows[:, :1], LARGEST_EXPONENT * torch.tanh(rows[:, 1:] / LARGEST_EXPONENT)], 1)

    def _layout(self, theta: Tensor) -> Layout:
        return layout_of({"theta": theta.shape[1:]}) if self.layout is None else self.layout


@torch.no_grad()
def bounds(update: Tensor, theta: Tensor, layout: Layout) -> Tensor:
    """The factors, at most 1, that bound the root mean square of each tensor's step, [N, P]."""
    factors = []
    for place in layout.values():
        size, of_theta = (root_mean_square(value[:, place.coordinates]) for value in (update, theta))
        factor = (LARGEST_STEP * (of_theta + SMALLEST_SIZE) / size).clamp(max=1)  # infinite for a step of zero
        factors.append(factor.expand(-1, place.stop - place.start))
    return torch.cat(factors, -1)
