"""The rules that the paper races against, step by step those of ``torch.optim``."""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules.base import State, UpdateRule


class HandDesignedRule(UpdateRule):
    """A rule with a learning rate and nothing to learn.

    Args:
        learning_rate: the factor of each step. A tensor [N, 1] gives each of N episodes side by side a rate of its
            own, which is how a whole grid of rates is tried in one batch.
    """

    def __init__(self, learning_rate: float | Tensor) -> None:
        super().__init__()
        rates = learning_rate if isinstance(learning_rate, Tensor) else torch.tensor(learning_rate, dtype=torch.double)
        if not bool((rates > 0).all()):
            raise InvalidInputError(f"learning_rate is {learning_rate}, but it must be positive: give a rate above 0.")
        self.register_buffer("learning_rate", rates)
        self.learning_rate: Tensor

    @abstractmethod
    def init(self, theta: Tensor) -> State: ...


class SGD(HandDesignedRule):
    """Gradient descent: g = -α ∇."""

    def init(self, theta: Tensor) -> State:
        return ()

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, State]:
        return -self.learning_rate * grad, state


class NAGState(NamedTuple):
    momentum: Tensor  # [N, P]


class NAG(HandDesignedRule):
    """Nesterov's accelerated gradient in the form of Sutskever et al. (2013), as ``torch.optim.SGD(nesterov=True)``.

    Args:
        learning_rate: see ``HandDesignedRule``.
        momentum: the share of the last velocity that is kept.
    """

    def __init__(self, learning_rate: float | Tensor, momentum: float = 0.9) -> None:
        super().__init__(learning_rate)
        self.momentum = momentum

    def init(self, theta: Tensor) -> NAGState:
        return NAGState(torch.zeros_like(theta))

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, State]:
        (momentum,) = state
        momentum = self.momentum * momentum + grad
        return -self.learning_rate * (grad + self.momentum * momentum), NAGState(momentum)


class RMSpropState(NamedTuple):
    square: Tensor  # [N, P], moving mean of ∇²


class RMSprop(HandDesignedRule):
    """RMSprop (Tieleman and Hinton, 2012), as ``torch.optim.RMSprop``.

    Args:
        learning_rate: see ``HandDesignedRule``.
        alpha: decay of the moving mean of squared gradients.
        eps: added to the denominator.
    """

    def __init__(self, learning_rate: float | Tensor, alpha: float = 0.99, eps: float = 1e-8) -> None:
        super().__init__(learning_rate)
        self.alpha = alpha
        self.eps = eps

    def init(self, theta: Tensor) -> RMSpropState:
        return RMSpropState(torch.zeros_like(theta))

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, State]:
        (square,) = state
        square = self.alpha * square + (1 - self.alpha) * grad**2
        return -self.learning_rate * grad / (square.sqrt() + self.eps), RMSpropState(square)


class AdamState(NamedTuple):
    step: int
    mean: Tensor  # [N, P], moving mean of ∇
    square: Tensor  # [N, P], moving mean of ∇²


class Adam(HandDesignedRule):
    """Adam (arXiv:1412.6980), as ``torch.optim.Adam``.

    Args:
        learning_rate: see ``HandDesignedRule``.
        beta1: decay of the moving mean of gradients.
        beta2: decay of the moving mean of squared gradients.
        eps: added to the denominator.
    """

    def __init__(
        self,
        learning_rate: float | Tensor,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(learning_rate)
        self.beta1 = beta1
        self.beta2 = beta2
        self.eps = eps

    def init(self, theta: Tensor) -> AdamState:
        return AdamState(0, torch.zeros_like(theta), torch.zeros_like(theta))

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, State]:
        step, mean, square = state
        step = step + 1
        mean = self.beta1 * mean + (1 - self.beta1) * grad
        square = self.beta2 * square + (1 - self.beta2) * grad**2
        denominator = (square / (1 - self.beta2**step)).sqrt() + self.eps
        return -self.learning_rate * mean / (1 - self.beta1**step) / denominator, AdamState(step, mean, square)
