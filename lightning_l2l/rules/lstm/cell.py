"""The LSTM in autograd's operations, which define what all faster ways to run it compute."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lightning_l2l.errors import InvalidInputError, require_positive, require_within
from lightning_l2l.rules.base import MOST_LAYERS, State, UpdateRule
from lightning_l2l.rules.gradient_inputs import CorrectedMomentum, Momentum, preprocess_gradient


class LSTMState(NamedTuple):
    hidden: tuple[Tensor, ...]  # one [H, N, P] a layer
    cell: tuple[Tensor, ...]  # one [H, N, P] a layer
    momenta: tuple[Any, ...]  # a Momentum, or another rule's means, for each decay


class AutogradLSTM(UpdateRule):
    """The LSTM of ``CoordinatewiseLSTM`` as autograd sees it. To change what is computed, subclass this one.

    Coordinates lie in the last dimension of every tensor, so that each gate is a long contiguous row and the gates of
    all coordinates are one matrix product.

    Args:
        hidden_size: see ``CoordinatewiseLSTM`` for all arguments.

    Attributes:
        extra_inputs: vectors [N, P] that the first layer sees besides the gradient, preprocessed like it.
        extra_outputs: vectors [N, P] that are read out from the last layer besides the step.
    """

    coordinatewise = True
    means: ClassVar[type[Momentum] | type[CorrectedMomentum]] = Momentum  # what it keeps for each decay
    extra_inputs: ClassVar[int] = 0
    extra_outputs: ClassVar[int] = 0

    def __init__(
        self,
        hidden_size: int = 20,
        num_layers: int = 2,
        preprocessing: float | None = 10.0,
        output_scale: float = 0.1,
        momenta: list[float] | None = None,
    ) -> None:
        super().__init__()
        sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "preprocessing": preprocessing}
        for name, value in sizes.items():
            if value is not None:
                require_positive(name, value)
        require_within("num_layers", num_layers, 1, MOST_LAYERS)
        if not math.isfinite(output_scale) or output_scale == 0:
            raise InvalidInputError(f"output_scale is {output_scale}: give a finite number that is not 0.")
        for decay in momenta or ():
            if not 0 < decay < 1:
                raise InvalidInputError(f"momenta has {decay}, but each is a decay: give numbers between 0 and 1.")
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.preprocessing = preprocessing
        self.output_scale = output_scale
        self.momenta = tuple(momenta or ())
        first = (1 if preprocessing is None else 2) * (1 + self.extra_inputs) + len(self.momenta)
        inputs = [first] + [hidden_size] * (num_layers - 1)
        self.weights = nn.ParameterList(torch.empty(4 * hidden_size, n + hidden_size) for n in inputs)
        self.biases = nn.ParameterList(torch.empty(4 * hidden_size) for _ in inputs)
        self.output = nn.Linear(hidden_size, 1 + self.extra_outputs)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(hidden_size), 1 / math.sqrt(hidden_size))
        for bias in (*self.biases, self.output.bias):  # else all coordinates drift alike before anything is learned
            nn.init.zeros_(bias)

    def init(self, theta: Tensor) -> State:
        zeros = tuple(theta.new_zeros(self.hidden_size, *theta.shape) for _ in range(self.num_layers))
        empty = (theta.new_zeros(len(self.means._fields), *theta.shape) for _ in self.momenta)
        return LSTMState(zeros, zeros, tuple(self.means(*tensors) for tensors in empty))

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, State]:
        *last, momenta = state
        rows, momenta = self.inputs(grad, momenta)
        hidden, cell = self.layers(rows, *last)
        return self.readout(hidden[-1].flatten(1)).view_as(grad), LSTMState(hidden, cell, momenta)

    def layers(
        self, rows: Tensor, hidden: Sequence[Tensor], cell: Sequence[Tensor]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The hidden states and cells of all layers after a step with these inputs, [inputs, N, P]."""
        after = []
        for weight, bias, last_hidden, last_cell in zip(self.weights, self.biases, hidden, cell, strict=True):
            rows, next_cell = lstm_layer(rows, last_hidden, last_cell, weight, bias)
            rows = self.outgoing(rows)
            after.append((rows, next_cell))
        next_hidden, next_cells = zip(*after, strict=True)
        return next_hidden, next_cells

    def outgoing(self, hidden: Tensor) -> Tensor:
        """What leaves a layer for the next one, and for itself at the next step: its hidden state, [H, N, P]."""
        return hidden

    def inputs(self, grad: Tensor, momenta: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        """What the first layer sees of a gradient [N, P], [inputs, N, P], and the running means with it."""
        rows = grad[None] if self.preprocessing is None else preprocess_gradient(grad, self.preprocessing)
        momenta = tuple(last.after(grad, decay) for last, decay in zip(momenta, self.momenta, strict=True))
        return torch.cat([rows, *(momentum.agreement()[None] for momentum in momenta)]), momenta

    def readout(self, hidden: Tensor) -> Tensor:
        """The step read out from the last layer's hidden state [H, C], [1, C]."""
        return self.output_scale * torch.addmm(self.output.bias[:, None], self.output.weight, hidden)


def lstm_layer(inputs: Tensor, hidden: Tensor, cell: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """One step of one layer on every coordinate (Hochreiter and Schmidhuber, 1997; no peepholes).

    The gates lie in the order input, forget, output, candidate: weight is [4H, I + H], for the stacked (input, hidden).
    """
    rows = torch.cat([inputs, hidden]).flatten(1)
    if not torch.is_grad_enabled():
        gates = torch.addmm(double_candidate(bias)[:, None], double_candidate(weight), rows)
        next_hidden, next_cell, tanh_cell = torch.empty(3, *cell.flatten(1).shape, dtype=cell.dtype, device=cell.device)
        activate(gates, cell.flatten(1), next_cell, tanh_cell, next_hidden)
        return next_hidden.view_as(hidden), next_cell.view_as(cell)
    gates = torch.addmm(bias[:, None], weight, rows).view(4, *hidden.shape)
    input_gate, forget_gate, output_gate = gates[:3].sigmoid()
    next_cell = forget_gate * cell + input_gate * gates[3].tanh()
    return output_gate * next_cell.tanh(), next_cell


def activate(gates: Tensor, cell: Tensor, next_cell: Tensor, tanh_cell: Tensor, hidden: Tensor) -> None:
    """Turns pre-activations into activations in place, and fills the last three, each [H, C]."""
    input_gate, forget_gate, output_gate, candidate = gates.sigmoid_().chunk(4)
    # candidate is σ(2x), and tanh(x) = 2σ(2x) − 1
    torch.mul(forget_gate, cell, out=next_cell).addcmul_(input_gate, candidate, value=2).sub_(input_gate)
    torch.mul(next_cell, 2, out=tanh_cell).sigmoid_().mul_(2).sub_(1)
    torch.mul(output_gate, tanh_cell, out=hidden)


def double_candidate(tensor: Tensor) -> Tensor:
    """Doubles the candidate's quarter of a weight or of its gradient, [4H, ...]."""
    candidate = tensor.shape[0] * 3 // 4
    return torch.cat([tensor[:candidate], 2 * tensor[candidate:]])
