"""The paper's learned update rule: one small LSTM, run on every coordinate (arXiv:1606.04474, section 2.1)."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_l2l.rules.base import Tape
from lightning_l2l.rules.fast import machine
from lightning_l2l.rules.fast.stepper import Stepper
from lightning_l2l.rules.lstm.cell import AutogradLSTM
from lightning_l2l.rules.lstm.kernel import CompiledLSTM
from lightning_l2l.rules.lstm.stepper import CompiledStepper, unpack_blocks
from lightning_l2l.rules.lstm.tape import LSTMTape


class CoordinatewiseLSTM(AutogradLSTM):
    """An LSTM whose weights are shared by all coordinates while each coordinate has its own state.

    Its inputs are the coordinate's gradient, preprocessed or raw, and those that ``momenta`` adds; its output, scaled,
    is the coordinate's step. States start at zero. It runs on a compiled kernel, or with a hand-written backward pass.

    Args:
        hidden_size: number of units H in each layer.
        num_layers: number of layers.
        preprocessing: p of appendix A (the paper: 10); null feeds the raw gradient.
        output_scale: factor of the output (the paper: 0.1 on MNIST, 1 elsewhere).
        momenta: decays β of running means, each of which adds one input: the mean of the coordinate's gradients divided
            by their root mean square, similar to the inputs of arXiv:1703.03633. From the log scale of appendix A the
            LSTM can hardly compute a mean over many noisy gradients itself. null adds none, as in the paper.
    """

    tape_type: ClassVar[type[LSTMTape]] = LSTMTape  # of this class alone, since a subclass may differ

    @property
    def label(self) -> str:
        return "LSTM" if type(self) is CoordinatewiseLSTM else super().label

    def tape(self, theta: Tensor, steps: int) -> Tape:
        """The same steps with a hand-written, faster backward pass."""
        return self.tape_type(self, theta, steps) if self._has_own_tape else super().tape(theta, steps)

    def compiled(self, theta: Tensor, threads: int) -> CompiledLSTM | None:
        """The same steps by the compiled kernel, in float32 on a CPU."""
        places = {(tensor.device.type, tensor.dtype) for tensor in (theta, self.output.weight)}
        return CompiledLSTM.of(self, threads) if self._has_own_tape and places == {("cpu", torch.float32)} else None

    def stepper(self, device: torch.device, dtype: torch.dtype, in_bfloat16: bool) -> Stepper | None:
        """Steps all parameters in one call of the kernel."""
        theta = torch.zeros(1, 1, dtype=dtype, device=device)
        kernel = self.compiled(theta, torch.get_num_threads()) if machine.compiled() else None
        return None if kernel is None else CompiledStepper(kernel, in_bfloat16)

    def unpacked(self, state: dict[str, Any], count: int) -> dict[str, Any]:
        """Converts a state in the kernel's blocks to the form that ``init`` returns."""
        return unpack_blocks(state, count, self.means) if "blocks" in state else state

    @property
    def _has_own_tape(self) -> bool:
        return "tape_type" in vars(type(self))
