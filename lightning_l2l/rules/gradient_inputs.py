"""The inputs that learned rules compute from a gradient."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST_SQUARE = 1e-16  # added under the root; smaller squares count as zero


def preprocess_gradient(grad: Tensor, p: float = 10.0) -> Tensor:
    """Splits a gradient into its magnitude, on a log scale, and its sign (arXiv:1606.04474, appendix A).

    Gradients differ by orders of magnitude between coordinates and over time, which a network cannot take as input.
    Where |∇| ≥ e^-p the result is (log|∇| / p, sgn ∇), elsewhere (-1, e^p ∇).

    Args:
        grad: gradient of any shape [...].
        p: the log scale covers gradients down to e^-p; the paper uses 10.

    Returns:
        The two inputs, [2, ...].
    """
    smallest = math.exp(-p)
    magnitude = grad.abs().clamp_min(smallest).log_().div_(p)  # exactly -1 below the threshold up to rounding
    direction = (grad * math.exp(p)).clamp(-1, 1)
    return torch.stack([magnitude, direction])


class Momentum(NamedTuple):
    mean: Tensor  # running mean of ∇, [N, P]
    square: Tensor  # running mean of ∇², [N, P]

    def after(self, grad: Tensor, decay: float) -> "Momentum":
        """Both means, updated by a gradient [N, P]."""
        mean = decay * self.mean + (1 - decay) * grad
        return Momentum(mean, decay * self.square + (1 - decay) * grad.square())

    def agreement(self) -> Tensor:
        """How far recent gradients agree: their mean divided by their root mean square, from -1 to 1, [N, P].

        Both running means start at zero without bias correction, so the first steps give small numbers.
        """
        return self.mean / (self.square + SMALLEST_SQUARE).sqrt()


class CorrectedMomentum(NamedTuple):
    mean: Tensor  # running mean of ∇, [N, P]
    square: Tensor  # running mean of ∇², [N, P]
    weight: Tensor  # what both are short of a mean, 1 − β^t, [N, P]

    def after(self, grad: Tensor, decay: float) -> "CorrectedMomentum":
        """The means, updated by a gradient [N, P]."""
        mean = decay * self.mean + (1 - decay) * grad
        square = decay * self.square + (1 - decay) * grad.square()
        return CorrectedMomentum(mean, square, decay * self.weight + (1 - decay))

    def relative(self, grad: Tensor) -> Tensor:
        """The gradient and its mean, both relative to the root mean square: ∇/√v̂ and m̂/√v̂, [2, N, P]."""
        size = (self.square / self.weight + SMALLEST_SQUARE).sqrt()
        return torch.stack([grad / size, self.mean / self.weight / size])
