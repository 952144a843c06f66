"""The LSTM's steps with a hand-written backward pass, where meta-training without a kernel spends most of its time.

Layout: units lie in the first dimension and coordinates in the last, so that each gate is a block of long contiguous
rows. Each layer's input, hidden state and a row of ones (for the bias) are stacked in one matrix, so that a layer is
one matrix product forward and two or three backward. tanh(x) is computed as 2σ(2x) − 1, because σ is several times
faster than tanh on the CPU; for the candidate the inner 2 goes into its weights, so that one σ serves all gates.

Fresh pages of memory cost more time than the arithmetic on them, so on a CPU buffers are reused. A GPU's memory has no
such price, and a CUDA graph needs its own.
"""

from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_l2l.rules.base import State, Tape
from lightning_l2l.rules.gradient_inputs import Momentum
from lightning_l2l.rules.lstm.cell import AutogradLSTM, LSTMState, activate, double_candidate


class LayerBuffers(NamedTuple):
    """What one layer leaves behind for the backward pass, over K steps of C coordinates."""

    rows: Tensor  # input, hidden state and ones, [K, I + H + 1, C]
    gates: Tensor  # activations input, forget, output and σ(2x) of the candidate, [K, 4H, C]
    cell: Tensor  # before each step and after the last, [K + 1, H, C]
    tanh_cell: Tensor  # tanh of the cell after each step, [K, H, C]
    hidden: Tensor  # after each step, [K, H, C]


_free_buffers: defaultdict[tuple, list[list[LayerBuffers]]] = defaultdict(list)
"""Buffers that no tape is using, by their shapes."""


class LSTMTape(Tape):
    """A ``Tape`` for ``CoordinatewiseLSTM``: the same numbers as by autograd, up to rounding.

    Args:
        rule: the LSTM.
        theta: like the θ it will run on, [N, P]; C = N · P.
        steps: K.
    """

    rule: AutogradLSTM

    def __init__(self, rule: AutogradLSTM, theta: Tensor, steps: int) -> None:
        super().__init__(rule)
        self.step = 0
        self.weights = [
            double_candidate(torch.cat([weight, bias[:, None]], 1).detach())
            for weight, bias in zip(rule.weights, rule.biases, strict=True)
        ]
        widths = tuple(weight.shape[1] for weight in self.weights)
        self.key = widths, rule.hidden_size, steps, theta.numel(), theta.dtype, theta.device
        free = _free_buffers[self.key]
        self.layers = free.pop() if free else [_buffers(width, rule.hidden_size, steps, theta) for width in widths]

    @torch.no_grad()
    def update(self, grad: Tensor, state: State) -> tuple[Tensor, LSTMState]:
        """As the rule's ``update``: gradient [N, P] in, step [N, P] and next state out; called K times at most."""
        if self.step == 0:
            for layer, hidden, cell in zip(self.layers, *state[:2], strict=True):
                layer.rows[0, -1 - len(hidden) : -1] = hidden.flatten(1)
                layer.cell[0] = cell.flatten(1)
        inputs, momenta = self.rule.inputs(grad, state[2])
        rows = inputs.flatten(1)
        for layer, weight in zip(self.layers, self.weights, strict=True):
            rows = self._forward(layer, weight, rows)
        self.step += 1
        return self.rule.readout(rows).view_as(grad), self._state(grad, momenta, type(state))

    @torch.no_grad()
    def backward(self, cotangents: list[Tensor]) -> list[Tensor]:
        """As ``Tape.backward``; it gives the buffers back for the next tape."""
        output = self.rule.output.weight.T.contiguous()  # [H, 1]
        last = self.layers[-1]
        grad_weights = [torch.zeros_like(weight) for weight in self.weights]
        grad_output, grad_bias = torch.zeros_like(output), torch.zeros_like(output[0])
        grad_hidden = [torch.zeros_like(layer.cell[0]) for layer in self.layers]
        grad_cell = [torch.zeros_like(layer.cell[0]) for layer in self.layers]
        scratch = torch.empty_like(last.gates[0])
        for step in reversed(range(self.step)):
            cotangent = self.cotangent_of_readout(step, cotangents[step].reshape(1, -1))
            grad_output.addmm_(last.hidden[step], cotangent.T)
            grad_bias += cotangent.sum()
            grad_hidden[-1].addmm_(output, cotangent)
            for index in reversed(range(len(self.layers))):
                layer, weight = self.layers[index], self.weights[index]
                self.average(grad_hidden[index])
                grad_gates = _backward(layer, step, grad_hidden[index], grad_cell[index], scratch)
                grad_weights[index].addmm_(grad_gates, layer.rows[step].T)
                inputs = layer.rows.shape[1] - 1 - len(grad_hidden[index])
                torch.mm(weight[:, inputs:-1].T, grad_gates, out=grad_hidden[index])
                if index:
                    grad_hidden[index - 1].addmm_(weight[:, :inputs].T, grad_gates)
                else:
                    self.after_first_layer(step, weight[:, :inputs].T, grad_gates)
        if scratch.is_cpu:
            _free_buffers[self.key].append(self.layers)  # which must not be read from now on
        grad_weights = [double_candidate(grad) for grad in grad_weights]
        biases = [grad[:, -1] for grad in grad_weights]
        return [*(grad[:, :-1] for grad in grad_weights), *biases, grad_output.T, grad_bias]

    def cotangent_of_readout(self, step: int, cotangent: Tensor) -> Tensor:
        """The derivative with respect to what is read out before it is scaled, [1, C], from that of the step."""
        return self.rule.output_scale * cotangent

    def after_first_layer(self, step: int, weight: Tensor, grad_gates: Tensor) -> None:
        """Goes back further, where the rule has parameters before its first layer.

        Args:
            step: k, from the last one to 0.
            weight: from the first layer's gates to its inputs, [I, 4H].
            grad_gates: derivatives with respect to its gates before their activation, [4H, C].
        """

    def average(self, rows: Tensor) -> None:
        """Averages over coordinates, in place, the units of a layer that are; the paper's LSTM has none.

        An average is its own adjoint, so gradients are averaged alike.

        Args:
            rows: a layer's hidden state, or the meta-loss's gradient with respect to it, [H, C].
        """

    def _forward(self, layer: LayerBuffers, weight: Tensor, inputs: Tensor) -> Tensor:
        step = self.step
        layer.rows[step, : len(inputs)] = inputs
        torch.mm(weight, layer.rows[step], out=layer.gates[step])
        hidden = layer.hidden[step]
        activate(layer.gates[step], layer.cell[step], layer.cell[step + 1], layer.tanh_cell[step], hidden)
        self.average(hidden)
        if step + 1 < len(layer.rows):
            layer.rows[step + 1, len(inputs) : -1] = hidden
        return hidden

    def _state(self, grad: Tensor, momenta: tuple[Momentum, ...], state_type: type) -> LSTMState:
        """The state after this step; after the last one a copy, since the buffers will be used again."""
        hidden = tuple(layer.hidden[self.step - 1].view(-1, *grad.shape) for layer in self.layers)
        cell = tuple(layer.cell[self.step].view(-1, *grad.shape) for layer in self.layers)
        if self.step == len(self.layers[0].rows):
            hidden, cell = tuple(h.clone() for h in hidden), tuple(c.clone() for c in cell)
        return state_type(hidden, cell, momenta)


def _buffers(width: int, hidden_size: int, steps: int, theta: Tensor) -> LayerBuffers:
    def empty(steps: int, rows: int) -> Tensor:
        return torch.empty(steps, rows, theta.numel(), dtype=theta.dtype, device=theta.device)

    with torch.inference_mode(False):  # they are used outside of it as well
        rows = empty(steps, width)
        rows[:, -1] = 1
        h = hidden_size
        return LayerBuffers(rows, empty(steps, 4 * h), empty(steps + 1, h), empty(steps, h), empty(steps, h))


def _backward(layer: LayerBuffers, step: int, grad_hidden: Tensor, grad_cell: Tensor, grad_gates: Tensor) -> Tensor:
    """Fills ``grad_gates`` with the pre-activations' gradients, and turns ``grad_cell`` into the previous cell's."""
    gates, tanh_cell = layer.gates[step], layer.tanh_cell[step]
    input_gate, forget_gate, output_gate, candidate = gates.chunk(4)
    grad_input, grad_forget, grad_output, grad_candidate = grad_gates.chunk(4)
    torch.mul(grad_hidden, output_gate, out=grad_input)
    grad_cell += torch.ops.aten.tanh_backward.grad_input(grad_input, tanh_cell, grad_input=grad_input)
    torch.mul(grad_cell, candidate, out=grad_input).mul_(2).sub_(grad_cell)
    torch.mul(grad_cell, layer.cell[step], out=grad_forget)
    torch.mul(grad_hidden, tanh_cell, out=grad_output)
    torch.mul(grad_cell, input_gate, out=grad_candidate).mul_(2)
    grad_cell *= forget_gate
    return torch.ops.aten.sigmoid_backward.grad_input(grad_gates, gates, grad_input=grad_gates)
