"""RNNprop, an LSTM that sees gradients relative to their size (arXiv:1703.03633)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules.base import State
from lightning_l2l.rules.gradient_inputs import CorrectedMomentum
from lightning_l2l.rules.lstm.cell import LSTMState
from lightning_l2l.rules.lstm.rule import CoordinatewiseLSTM
from lightning_l2l.rules.lstm.tape import LSTMTape

FEATURES = 2  # ∇/√v̂ and m̂/√v̂


class RNNpropTape(LSTMTape):
    """``LSTMTape``, with the layer before the LSTM and the bounded output."""

    rule: "RNNprop"

    def __init__(self, rule: "RNNprop", theta: Tensor, steps: int) -> None:
        super().__init__(rule, theta, steps)
        self.features: list[Tensor] = []  # of each step, [2, C]
        self.outputs: list[Tensor] = []  # of each step, g_t / α, [1, C]
        self.grad_encoder = [torch.zeros_like(parameter) for parameter in rule.encoder.parameters()]

    @torch.no_grad()
    def update(self, grad: Tensor, state: State) -> tuple[Tensor, LSTMState]:
        update, after = super().update(grad, state)
        (means,) = after.momenta
        self.features.append(means.relative(grad).flatten(1))
        self.outputs.append(update.reshape(1, -1) / self.rule.output_scale)
        return update, after

    def backward(self, cotangents: list[Tensor]) -> list[Tensor]:
        """As ``Tape.backward``."""
        return [*super().backward(cotangents), *self.grad_encoder]

    def cotangent_of_readout(self, step: int, cotangent: Tensor) -> Tensor:
        return super().cotangent_of_readout(step, cotangent) * (1 - self.outputs[step].square())

    def after_first_layer(self, step: int, weight: Tensor, grad_gates: Tensor) -> None:
        encoded = self.layers[0].rows[step, : len(weight)]
        grad = (weight @ grad_gates) * (1 + encoded.clamp_max(0))  # ELU's derivative
        grad_weight, grad_bias = self.grad_encoder
        grad_weight.addmm_(grad, self.features[step].T)
        grad_bias += grad.sum(1)


class RNNprop(CoordinatewiseLSTM):
    """The update rule of "Learning gradient descent: better generalization and longer horizons" (arXiv:1703.03633).

    Its inputs are those of Adam, ∇/√v̂ and m̂/√v̂, which do not depend on the loss's scale. A fully connected layer of
    as many units as the LSTM's, with ELU, comes before the LSTM, and a step is α tanh of the output, so that no
    coordinate moves further than α (section 5). Meta-train it with random scaling of each coordinate
    (``data.random_scaling`` with ``data.scaled: coordinates``) and with a convex companion (``data.companion``), as the
    paper does (section 4).

    Args:
        hidden_size: number of units in each layer.
        num_layers: number of layers of the LSTM.
        output_scale: α, the largest step of a coordinate.
        decay: β of the running means of ∇ and ∇², which are corrected for their start at zero as Adam's are.
    """

    means = CorrectedMomentum
    tape_type = RNNpropTape

    def __init__(
        self, hidden_size: int = 20, num_layers: int = 2, output_scale: float = 0.1, decay: float = 0.95
    ) -> None:
        if not 0 < decay < 1:
            raise InvalidInputError(f"decay is {decay}: give a number between 0 and 1.")
        super().__init__(hidden_size, num_layers, preprocessing=None, output_scale=output_scale, momenta=[decay])
        self.decay = decay
        self.weights[0] = nn.Parameter(torch.empty(4 * hidden_size, 2 * hidden_size))
        self.encoder = nn.Linear(FEATURES, hidden_size)
        nn.init.uniform_(self.weights[0], -1 / math.sqrt(hidden_size), 1 / math.sqrt(hidden_size))

    def inputs(self, grad: Tensor, momenta: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        means = momenta[0].after(grad, self.decay)
        features = means.relative(grad).flatten(1)
        rows = F.elu(torch.addmm(self.encoder.bias[:, None], self.encoder.weight, features))
        return rows.view(-1, *grad.shape), (means,)

    def readout(self, hidden: Tensor) -> Tensor:
        output = torch.addmm(self.output.bias[:, None], self.output.weight, hidden)
        return self.output_scale * output.tanh()
