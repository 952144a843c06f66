"""Gradient descent with a learned rate for each coordinate."""

from collections.abc import Mapping

from torch import Tensor

from lightning_l2l.errors import require_positive
from lightning_l2l.rules.base import Layout, State
from lightning_l2l.rules.shaped import ShapedByOptimizee, coordinate_parameter, refuse_other_size, size_of, take_shape


class PerCoordinateSGD(ShapedByOptimizee):
    """Gradient descent with a learned rate for each coordinate: g = −α ⊙ ∇ (Meta-SGD, arXiv:1707.09835, equation 2).

    φ is α [P], of any sign. Meta-SGD also learns where runs start: put this rule into ``LearnedStart``.

    Args:
        learning_rate: every coordinate's α before anything is learned.
    """

    takes_phi_per_episode = True

    def __init__(self, learning_rate: float = 0.01) -> None:
        super().__init__()
        require_positive("learning_rate", learning_rate)
        self.learning_rate = learning_rate
        self.rates = coordinate_parameter()

    def bind(self, layout: Layout) -> "PerCoordinateSGD":
        """Makes the rates of the first optimizee.

        Raises:
            InvalidInputError: the optimizee has another size than the first.
        """
        size = size_of(layout)
        refuse_other_size(self, self.rates, size)
        if self.rates.numel() == 0:
            self.rates.data = self.rates.new_full((size,), self.learning_rate)
        return self

    def take_shapes(self, tensors: Mapping[str, Tensor]) -> None:
        take_shape(self.rates, tensors.get("rates"))

    def init(self, theta: Tensor) -> State:
        return ()

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, State]:
        return -self.rates * grad, state
