"""Rules with nothing to learn, with the same steps as ``torch.optim``'s: the paper's four baselines and two more."""

import math
from abc import abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from lightning_l2l.errors import (
    InvalidInputError,
    require_not_negative,
    require_positive,
    require_share,
    require_within,
)
from lightning_l2l.rules.base import State, UpdateRule


class HandDesignedRule(UpdateRule):
    """A rule with a learning rate and nothing to learn.

    Attributes:
        tuned_with: further settings that a race tunes together with the learning rate, each with the values to try.

    Args:
        learning_rate: the factor of each step. A tensor [N, 1] gives each of N episodes side by side its own rate,
            which is how a whole grid of rates is tried in one batch. A race replaces it with the tuned rate.
    """

    tuned_with: ClassVar[dict[str, tuple[float, ...]]] = {}

    def __init__(self, learning_rate: float | Tensor = 0.01) -> None:
        super().__init__()
        if isinstance(learning_rate, Tensor):
            rates = learning_rate
            require_positive("learning_rate", rates.min().item())
            require_positive("learning_rate", rates.max().item())
        else:
            rates = torch.tensor(learning_rate, dtype=torch.double)
            require_positive("learning_rate", learning_rate)
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

    def __init__(self, learning_rate: float | Tensor = 0.01, momentum: float = 0.9) -> None:
        super().__init__(learning_rate)
        require_within("momentum", momentum, 0, 1)
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

    def __init__(self, learning_rate: float | Tensor = 0.01, alpha: float = 0.99, eps: float = 1e-8) -> None:
        super().__init__(learning_rate)
        require_share("alpha", alpha)
        require_not_negative("eps", eps)
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
        learning_rate: float | Tensor = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(learning_rate)
        require_share("beta1", beta1)
        require_share("beta2", beta2)
        require_not_negative("eps", eps)
        self.beta1 = beta1
        self.beta2 = beta2
        self.eps = eps

    def init(self, theta: Tensor) -> AdamState:
        return AdamState(0, torch.zeros_like(theta), torch.zeros_like(theta))

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, State]:
        return self.step_at(self.learning_rate, grad, state)

    def step_at(self, rate: Tensor, grad: Tensor, state: State) -> tuple[Tensor, AdamState]:
        """As ``update``, at another learning rate."""
        step, mean, square = state
        step = step + 1
        mean = self.beta1 * mean + (1 - self.beta1) * grad
        square = self.beta2 * square + (1 - self.beta2) * grad**2
        denominator = (square / (1 - self.beta2**step)).sqrt() + self.eps
        return -rate * mean / (1 - self.beta1**step) / denominator, AdamState(step, mean, square)


class AdamW(Adam):
    """Adam with decoupled weight decay (arXiv:1711.05101), as ``torch.optim.AdamW``. A race tunes its decay, too.

    Args:
        learning_rate: see ``HandDesignedRule``.
        beta1: decay of the moving mean of gradients.
        beta2: decay of the moving mean of squared gradients.
        eps: added to the denominator.
        weight_decay: λ; each step also shrinks θ by the share α λ.
    """

    sees = ("theta",)
    tuned_with: ClassVar[dict[str, tuple[float, ...]]] = {"weight_decay": (0.0, 0.001, 0.01, 0.1)}

    def __init__(
        self,
        learning_rate: float | Tensor = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, eps)
        require_not_negative("weight_decay", weight_decay)
        self.weight_decay = weight_decay

    def update(self, grad: Tensor, state: State, theta: Tensor) -> tuple[Tensor, State]:  # type: ignore[override]
        update, state = self.step_at(self.learning_rate, grad, state)
        return update - self.learning_rate * self.weight_decay * theta, state


class CosineAdam(Adam):
    """Adam whose learning rate falls to zero along half a cosine (arXiv:1608.03983, without restarts).

    At step t of T the rate is α (1 + cos(π t / T)) / 2, as by ``torch.optim.Adam`` with ``CosineAnnealingLR``; it stays
    zero after T. A race tunes its rate and β₁ together.

    Args:
        learning_rate: α, the rate at the first step; see ``HandDesignedRule``.
        beta1: decay of the moving mean of gradients.
        beta2: decay of the moving mean of squared gradients.
        eps: added to the denominator.
        horizon: T; null is the number of steps of the race.

    Raises:
        InvalidInputError: it is run without a horizon.
    """

    tuned_with: ClassVar[dict[str, tuple[float, ...]]] = {"beta1": (0.8, 0.9, 0.95, 0.99)}

    def __init__(
        self,
        learning_rate: float | Tensor = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        horizon: int | None = None,
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, eps)
        if horizon is not None:
            require_positive("horizon", horizon)
        self.horizon = horizon

    def init(self, theta: Tensor) -> AdamState:
        if self.horizon is None:
            raise InvalidInputError("CosineAdam's horizon is null, which only a race fills in: give a number of steps.")
        return super().init(theta)

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, State]:
        assert self.horizon is not None
        progress = min(1.0, state[0] / self.horizon)
        return self.step_at(self.learning_rate * ((1 + math.cos(math.pi * progress)) / 2), grad, state)
