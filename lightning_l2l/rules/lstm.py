"""The paper's learned update rule: one small LSTM, run on every coordinate (arXiv:1606.04474, section 2.1)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules.base import State, UpdateRule
from lightning_l2l.rules.compiled_lstm import CompiledLSTM
from lightning_l2l.rules.lstm_tape import LSTMTape, activate, double_candidate
from lightning_l2l.rules.tape import Tape

SMALLEST_SQUARE = 1e-16  # of a gradient that is told from none


def preprocess_gradient(grad: Tensor, p: float = 10.0) -> Tensor:
    """Splits a gradient into its magnitude, on a log scale, and its sign (arXiv:1606.04474, appendix A).

    Gradients differ by orders of magnitude between coordinates and over time, which a network cannot take as input.
    Where |∇| ≥ e^-p the result is (log|∇| / p, sgn ∇), elsewhere (-1, e^p ∇).

    Args:
        grad: gradient of any shape [...].
        p: how small a gradient is still seen on the log scale; the paper uses 10.

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
        """Both moved on by a gradient [N, P]."""
        mean = decay * self.mean + (1 - decay) * grad
        return Momentum(mean, decay * self.square + (1 - decay) * grad.square())

    def agreement(self) -> Tensor:
        """How far gradients agreed lately: their mean by their root mean square, from -1 to 1, [N, P].

        Both start at zero and neither is corrected for it, so that the first steps give small numbers.
        """
        return self.mean / (self.square + SMALLEST_SQUARE).sqrt()


class LSTMState(NamedTuple):
    hidden: tuple[Tensor, ...]  # one [H, N, P] a layer
    cell: tuple[Tensor, ...]  # one [H, N, P] a layer
    momenta: tuple[Momentum, ...]  # one a decay


class CoordinatewiseLSTM(UpdateRule):
    """An LSTM whose weights are shared by all coordinates while each coordinate has its own state.

    Its input is the coordinate's gradient, preprocessed or as it is, and what ``momenta`` add; its output, scaled, is
    the coordinate's step. States start at zero. Coordinates lie in the last dimension of every tensor, so that each
    gate is a long contiguous row and the gates of all coordinates are one matrix product.

    Args:
        hidden_size: number of units H in each layer.
        num_layers: number of layers.
        preprocessing: p of appendix A (the paper: 10); null feeds the gradient as it is.
        output_scale: factor of the output (the paper: 0.1 on MNIST, 1 elsewhere).
        momenta: decays β of running means, each of which gives one more input: the mean of the coordinate's gradients
            by their root mean square, much as the inputs of arXiv:1703.03633. On the log scale of appendix A a mean
            over many noisy gradients is hard to come by. null is the paper's, which has none.
    """

    coordinatewise = True

    def __init__(
        self,
        hidden_size: int = 20,
        num_layers: int = 2,
        preprocessing: float | None = 10.0,
        output_scale: float = 0.1,
        momenta: list[float] | None = None,
    ) -> None:
        super().__init__()
        for name, value in {
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "preprocessing": preprocessing,
        }.items():
            if value is not None and value <= 0:
                raise InvalidInputError(f"{name} is {value}, but it must be positive: give a value above 0.")
        for decay in momenta or ():
            if not 0 < decay < 1:
                raise InvalidInputError(f"momenta has {decay}, but each is a decay: give numbers between 0 and 1.")
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.preprocessing = preprocessing
        self.output_scale = output_scale
        self.momenta = tuple(momenta or ())
        inputs = [(1 if preprocessing is None else 2) + len(self.momenta)] + [hidden_size] * (num_layers - 1)
        self.weights = nn.ParameterList(torch.empty(4 * hidden_size, n + hidden_size) for n in inputs)
        self.biases = nn.ParameterList(torch.empty(4 * hidden_size) for _ in inputs)
        self.output = nn.Linear(hidden_size, 1)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(hidden_size), 1 / math.sqrt(hidden_size))
        for bias in (
            *self.biases,
            self.output.bias,
        ):  # else all coordinates drift alike before anything is learned
            nn.init.zeros_(bias)

    @property
    def label(self) -> str:
        return "LSTM" if type(self) is CoordinatewiseLSTM else super().label

    def init(self, theta: Tensor) -> LSTMState:
        zeros = tuple(theta.new_zeros(self.hidden_size, *theta.shape) for _ in range(self.num_layers))
        return LSTMState(zeros, zeros, tuple(Momentum(*theta.new_zeros(2, *theta.shape)) for _ in self.momenta))

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, LSTMState]:
        *last, momenta = state
        rows, momenta = self.inputs(grad, momenta)
        hidden, cell = [], []
        for weight, bias, last_hidden, last_cell in zip(self.weights, self.biases, *last, strict=True):
            rows, next_cell = _lstm_layer(rows, last_hidden, last_cell, weight, bias)
            hidden.append(rows)
            cell.append(next_cell)
        return self.readout(rows.flatten(1)).view_as(grad), LSTMState(tuple(hidden), tuple(cell), momenta)

    def inputs(self, grad: Tensor, momenta: tuple[Momentum, ...]) -> tuple[Tensor, tuple[Momentum, ...]]:
        """What the first layer sees of a gradient [N, P], [inputs, N, P], and the running means with it."""
        rows = grad[None] if self.preprocessing is None else preprocess_gradient(grad, self.preprocessing)
        momenta = tuple(last.after(grad, decay) for last, decay in zip(momenta, self.momenta, strict=True))
        return torch.cat([rows, *(momentum.agreement()[None] for momentum in momenta)]), momenta

    def readout(self, hidden: Tensor) -> Tensor:
        """The step that the last layer's hidden state [H, C] stands for, [1, C]."""
        return self.output_scale * torch.addmm(self.output.bias[:, None], self.output.weight, hidden)

    def tape(self, theta: Tensor, steps: int) -> Tape:
        """The same steps with the backward pass written out, faster than by autograd; a subclass may differ."""
        return LSTMTape(self, theta, steps) if type(self) is CoordinatewiseLSTM else super().tape(theta, steps)

    def compiled(self, theta: Tensor, threads: int) -> UpdateRule | None:
        """The same steps by the compiled kernel, in float32 on a CPU; a subclass may differ."""
        places = {(tensor.device.type, tensor.dtype) for tensor in (theta, self.output.weight)}
        if type(self) is CoordinatewiseLSTM and places == {("cpu", torch.float32)}:
            return CompiledLSTM.of(self, threads)
        return None


def _lstm_layer(inputs: Tensor, hidden: Tensor, cell: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
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
