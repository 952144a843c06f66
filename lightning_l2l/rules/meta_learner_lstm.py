"""The LSTM of "Optimization as a model for few-shot learning" (Ravi and Larochelle, ICLR 2017)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_l2l.errors import InvalidInputError, require_positive
from lightning_l2l.rules.base import State, UpdateRule
from lightning_l2l.rules.gradient_inputs import preprocess_gradient
from lightning_l2l.rules.lstm.cell import lstm_layer

SMALL = 0.01  # largest weight of a gate before anything is learned
INPUTS = 4  # the preprocessed gradient and the preprocessed loss


class MetaLearnerLSTMState(NamedTuple):
    forget: Tensor  # f_{t-1}, [N, P]
    input: Tensor  # i_{t-1}, [N, P]
    layer: tuple[Tensor, ...]  # the first layer's hidden state and cell, each [H, N, P]; none without it


class MetaLearnerLSTM(UpdateRule):
    """An LSTM whose cell is θ and whose candidate is −∇ (Ravi and Larochelle, ICLR 2017, section 3.1).

        θ_{t+1} = f_t ⊙ θ_t − i_t ⊙ ∇_t
        i_t = σ(W_I [x_t, θ_t, i_{t−1}] + b_I)
        f_t = σ(W_F [x_t, θ_t, f_{t−1}] + b_F)

    The weights are shared by all coordinates. x_t is the gradient and the loss, both preprocessed as in appendix A of
    arXiv:1606.04474, or the output of an ordinary LSTM layer that sees them, as in the paper's experiments. Both gates
    are 0 before the first step. The paper also learns where runs start: put this rule into ``LearnedStart``.

    Args:
        hidden_size: units H of the LSTM layer before the gates (the paper: 20); null lets the gates see the gradient
            and the loss themselves.
        learning_rate: the input gate i before anything is learned, between 0 and 1.
        weight_decay: what the forget gate takes from θ in a step before anything is learned, 1 − f, between 0 and 1.
    """

    coordinatewise = True
    sees = ("theta", "loss")

    def __init__(self, hidden_size: int | None = 20, learning_rate: float = 0.01, weight_decay: float = 0.001) -> None:
        super().__init__()
        if hidden_size is not None:
            require_positive("hidden_size", hidden_size)
        for name, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
            if not 0 < value < 1:
                raise InvalidInputError(
                    f"{name} is {value}, but a gate lies between 0 and 1: give a number above 0 and below 1."
                )
        self.hidden_size = hidden_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        if hidden_size is not None:
            self.layer_weight = nn.Parameter(torch.empty(4 * hidden_size, INPUTS + hidden_size))
            self.layer_bias = nn.Parameter(torch.zeros(4 * hidden_size))
            nn.init.uniform_(self.layer_weight, -1 / math.sqrt(hidden_size), 1 / math.sqrt(hidden_size))
        width = (INPUTS if hidden_size is None else hidden_size) + 2  # θ and the gate's own last value
        self.forget_weight, self.input_weight = (nn.Parameter(torch.empty(1, width)) for _ in range(2))
        for weight in (self.forget_weight, self.input_weight):
            nn.init.uniform_(weight, -SMALL, SMALL)
        self.forget_bias = nn.Parameter(torch.tensor([-logit(weight_decay)]))
        self.input_bias = nn.Parameter(torch.tensor([logit(learning_rate)]))

    def init(self, theta: Tensor) -> MetaLearnerLSTMState:
        zeros = torch.zeros_like(theta)
        layer = () if self.hidden_size is None else tuple(theta.new_zeros(2, self.hidden_size, *theta.shape))
        return MetaLearnerLSTMState(zeros, zeros, layer)

    def update(self, grad: Tensor, state: State, theta: Tensor, loss: Tensor) -> tuple[Tensor, MetaLearnerLSTMState]:
        last_forget, last_input, layer = state
        losses = preprocess_gradient(loss)[..., None].expand(-1, *grad.shape)
        rows = torch.cat([preprocess_gradient(grad), losses])
        if self.hidden_size is not None:
            hidden, cell = layer
            layer = lstm_layer(rows, hidden, cell, self.layer_weight, self.layer_bias)
            rows = layer[0]
        forget = self._before_gate(self.forget_weight, self.forget_bias, rows, theta, last_forget)
        input_gate = self._before_gate(self.input_weight, self.input_bias, rows, theta, last_input).sigmoid()
        kept = torch.sigmoid(forget)
        taken = torch.sigmoid(-forget)  # 1 − f without rounding, since f is near 1
        return -taken * theta - input_gate * grad, MetaLearnerLSTMState(kept, input_gate, layer)

    def _before_gate(self, weight: Tensor, bias: Tensor, rows: Tensor, theta: Tensor, last: Tensor) -> Tensor:
        """What enters a gate's sigmoid, [N, P]."""
        rows = torch.cat([rows, theta[None], last[None]])
        return torch.addmm(bias[:, None], weight, rows.flatten(1)).view_as(theta)


def logit(share: float) -> float:
    """The inverse of σ."""
    return math.log(share / (1 - share))
