"""The paper's learned update rule: one small LSTM, run on every coordinate (arXiv:1606.04474, section 2.1)."""

from typing import Any

import torch
from torch import Tensor

from lightning_l2l.rules.base import Tape
from lightning_l2l.rules.fast.stepper import Stepper
from lightning_l2l.rules.lstm.cell import AutogradLSTM
from lightning_l2l.rules.lstm.kernel import CompiledLSTM
from lightning_l2l.rules.lstm.stepper import CompiledStepper, unpack_blocks
from lightning_l2l.rules.lstm.tape import LSTMTape


class CoordinatewiseLSTM(AutogradLSTM):
    """An LSTM whose weights are shared by all coordinates while each coordinate has its own state.

    Its input is the coordinate's gradient, preprocessed or as it is, and what ``momenta`` add; its output, scaled, is
    the coordinate's step. States start at zero. It runs by a compiled kernel, or by a backward pass written out.

    Args:
        hidden_size: number of units H in each layer.
        num_layers: number of layers.
        preprocessing: p of appendix A (the paper: 10); null feeds the gradient as it is.
        output_scale: factor of the output (the paper: 0.1 on MNIST, 1 elsewhere).
        momenta: decays β of running means, each of which gives one more input: the mean of the coordinate's gradients
            by their root mean square, much as the inputs of arXiv:1703.03633. On the log scale of appendix A a mean
            over many noisy gradients is hard to come by. null is the paper's, which has none.
    """

    @property
    def label(self) -> str:
        return "LSTM" if type(self) is CoordinatewiseLSTM else super().label

    def tape(self, theta: Tensor, steps: int) -> Tape:
        """The same steps with the backward pass written out, faster than by autograd; a subclass may differ."""
        return LSTMTape(self, theta, steps) if type(self) is CoordinatewiseLSTM else super().tape(theta, steps)

    def compiled(self, theta: Tensor, threads: int) -> CompiledLSTM | None:
        """The same steps by the compiled kernel, in float32 on a CPU; a subclass may differ."""
        places = {(tensor.device.type, tensor.dtype) for tensor in (theta, self.output.weight)}
        if type(self) is CoordinatewiseLSTM and places == {("cpu", torch.float32)}:
            return CompiledLSTM.of(self, threads)
        return None

    def stepper(self, device: torch.device, dtype: torch.dtype, in_bfloat16: bool) -> Stepper | None:
        """By the kernel, on all parameters in one call."""
        kernel = self.compiled(torch.zeros(1, 1, dtype=dtype, device=device), torch.get_num_threads())
        return None if kernel is None else CompiledStepper(kernel, in_bfloat16)

    def unpacked(self, state: dict[str, Any], count: int) -> dict[str, Any]:
        """A state of the kernel's blocks as that of ``init``."""
        return unpack_blocks(state, count) if "blocks" in state else state
