"""A controller of Adam, which sees more of a parameter tensor than single coordinates."""

from typing import ClassVar

import torch
from torch import Tensor

from lightning_l2l.rules.adam_controller.flat import FlatController
from lightning_l2l.rules.adam_controller.network import ControllerNetwork
from lightning_l2l.rules.adam_controller.stepper import ControllerStepper
from lightning_l2l.rules.base import Layout, State, UpdateRule, layout_of
from lightning_l2l.rules.fast.stepper import Stepper


class AdamController(ControllerNetwork):
    """Adam whose settings a small network chooses anew for each parameter tensor, from statistics of its gradients.

    With running means m₉ and m₉₉ of g (decays .9 and .99) and v₉₉ and v₉₉₉ of g² (decays .99 and .999), all with
    Adam's bias corrections, the step of a tensor is

        −lr (1 + ε) (eᵃ m₉ + a_g g + a₉₉ m₉₉) / (√v + ε √mean v₉₉) − lr a_O O,  v = σ(w) v₉₉ + (1 − σ(w)) v₉₉₉.

    O, for matrices (and convolutions as matrices [out, rest]), is .9 m₉ + .1 g orthogonalised as by Muon (K. Jordan,
    2024), of root mean square .3. The network, one layer of tanh beside a linear path, sees 22 features of the tensor:
    sizes, signal-to-noise ratios and cosines of these means, the time, the shape, and means over all tensors. Its
    outputs are lr, the weights a, a_g, a₉₉ and a_O, the mixture w, and ε. With s the root mean square of m₉ / √v₉₉ over
    the tensor, lr is at most .3 (RMS θ + .02) / (s (eᵃ + |a_g| + |a₉₉| + .3 |a_O|)), so that m₉'s part of a step moves
    θ by about .3 (RMS θ + .02) at most. The network runs, and O is renewed, at the first eight steps and at every
    ``every``-th one after. The last layer starts at zero, so the untrained rule takes Adam-like steps with a learning
    rate of .003. Multiplying the loss by a number changes nothing: no learning rate is left to tune.

    In a second-order meta-gradient the features, the sizes that bound lr and scale ε, and O are constants; gradients
    flow through g, m and v to the step, and to φ through the network. K should be at least ``every``: steps before the
    network first runs do not depend on φ.

    Its parameters may have a leading dimension of N, for a φ of its own in each episode.

    Args:
        directions: which of gradient, slow_mean and orthogonal to mix with Adam's own; null takes all.
        hidden: units of the network's layer.
        every: steps from one run of the network to the next.
        all_sides: show the network a matrix's larger side and its number of columns too, not only its smaller side.
        warm_up: steps over which lr rises to what the network says: at its first step, a rule cannot tell fresh weights
            from trained ones, which a large step would ruin.
        fade_orthogonal: scale O down where the gradient is less than half as large as √v₉₉. Between rare large
            gradients most are, and full steps along O would lead away. Without it, O is 0 only where the gradient has
            vanished.
        spectral_limit: the larger side from which on O's spectral norm no longer grows; null: O's size is the same in
            all matrices, so that its spectral norm grows with the root of the larger side.
        block: a matrix whose smaller side is larger is split along that side into parts as even as possible, which are
            orthogonalised separately and renewed half as often: O's cost is then proportional to the matrix's size.
            null never splits.

    Raises:
        InvalidInputError: a setting is not positive, or a direction is unknown or given twice.
    """

    sees = ("theta",)
    constants = FlatController.constants
    takes_phi_per_episode: ClassVar[bool] = True
    tensorwise: ClassVar[bool] = True

    def bind(self, layout: Layout) -> UpdateRule:
        """Returns the rule that knows where each tensor lies in θ."""
        return FlatController(self, layout)

    def init(self, theta: Tensor) -> State:
        """The state where all of θ is one tensor, as long as no layout is bound."""
        return self.bind(layout_of({"theta": theta.shape[1:]})).init(theta)

    def update(self, grad: Tensor, state: State, theta: Tensor) -> tuple[Tensor, State]:
        return self.bind(layout_of({"theta": theta.shape[1:]})).update(grad, state, theta=theta)

    def stepper(self, device: torch.device, dtype: torch.dtype, in_bfloat16: bool) -> Stepper:
        """Steps the tensors of a group together, each with a state and a clock of its own."""
        return ControllerStepper(self, device, dtype)
