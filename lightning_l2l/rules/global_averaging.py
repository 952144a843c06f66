"""The LSTM with global averaging cells (arXiv:1606.04474, appendix D)."""

import torch
from torch import Tensor

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules.base import Tape
from lightning_l2l.rules.lstm.cell import AutogradLSTM
from lightning_l2l.rules.lstm.tape import LSTMTape


class GlobalAveragingLSTM(AutogradLSTM):
    """LSTM+GAC: some cells of each layer are averaged over coordinates (arXiv:1606.04474, appendix D).

    The LSTM of ``CoordinatewiseLSTM``, but what the first units of a layer send to the next layer, and to their own
    layer at the next step, is their mean over the P coordinates of each episode. Coordinates thus share what their own
    gradients do not show, such as the whole gradient's L2 norm, to clip by it. A cell itself stays its coordinate's
    own, and episodes do not mix. In ``Grouped`` rules means are over the coordinates of a group, in
    ``LearnedOptimizer`` over those of a param group.

    It runs with a hand-written backward pass, which takes about as long as the plain LSTM's. There is no compiled
    kernel for it, and no slices that bound its memory: with K steps between two meta-gradients it keeps about
    36 H K bytes of each coordinate and layer.

    Args:
        hidden_size: number of units H in each layer.
        num_layers: number of layers.
        averaged: how many units of each layer are averaged, the first ones; with 0 it is the plain LSTM.
        preprocessing: p of appendix A (the paper: 10); null feeds the raw gradient.
        output_scale: factor of the output.
        momenta: see ``CoordinatewiseLSTM``.

    Raises:
        InvalidInputError: a setting is out of its range.
    """

    coordinatewise = False

    def __init__(
        self,
        hidden_size: int = 20,
        num_layers: int = 2,
        averaged: int = 5,
        preprocessing: float | None = 10.0,
        output_scale: float = 0.1,
        momenta: list[float] | None = None,
    ) -> None:
        super().__init__(hidden_size, num_layers, preprocessing, output_scale, momenta)
        if not 0 <= averaged <= hidden_size:
            raise InvalidInputError(
                f"averaged is {averaged}, but a layer has {hidden_size} units: give a number from 0 to {hidden_size}."
            )
        self.averaged = averaged

    @property
    def label(self) -> str:
        return "LSTM+GAC" if type(self) is GlobalAveragingLSTM else super().label

    def outgoing(self, hidden: Tensor) -> Tensor:
        """The hidden state [H, N, P] of a layer, the first units averaged over each episode's coordinates."""
        means = hidden[: self.averaged].mean(-1, keepdim=True)
        return torch.cat([means.expand(-1, *hidden.shape[1:]), hidden[self.averaged :]])

    def tape(self, theta: Tensor, steps: int) -> Tape:
        """The same steps with a hand-written, faster backward pass; not for subclasses, which may differ."""
        exact = type(self) is GlobalAveragingLSTM
        return GlobalAveragingTape(self, theta, steps) if exact else super().tape(theta, steps)


class GlobalAveragingTape(LSTMTape):
    """The LSTM's tape, with averages."""

    rule: GlobalAveragingLSTM

    def __init__(self, rule: GlobalAveragingLSTM, theta: Tensor, steps: int) -> None:
        super().__init__(rule, theta, steps)
        self.shape = theta.shape

    def average(self, rows: Tensor) -> None:
        averaged = rows[: self.rule.averaged].view(-1, *self.shape)
        averaged.copy_(averaged.mean(-1, keepdim=True).expand_as(averaged))
