"""NTM-BFGS: a controller with a memory over pairs of coordinates (arXiv:1606.04474, appendix D)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_l2l.errors import InvalidInputError, require_positive
from lightning_l2l.rules.base import State
from lightning_l2l.rules.global_averaging import GlobalAveragingLSTM

WRITE_HEADS = 3
MOST_COORDINATES = 4096  # of θ, whose memory takes 64 MiB an episode in float32


class Heads(NamedTuple):
    """What the controller puts out in a step."""

    step: Tensor  # g_t, [N, P]
    read: Tensor  # r_t, [N, P]
    a: Tensor  # [3, N, P]
    b: Tensor  # [3, N, P]


class Pairs(NamedTuple):
    """The memory M = M_0 + Σ a bᵀ, by its terms; those not written yet are zero."""

    a: Tensor  # oldest first, [3 · memory, N, P]
    b: Tensor  # [3 · memory, N, P]


class NTMBFGSState(NamedTuple):
    controller: Any
    read: Tensor  # M_{t-1} r_{t-1}, [N, P]
    memory: Tensor | Pairs  # M_t, [N, P, P], or its terms


class NTMBFGS(GlobalAveragingLSTM):
    """NTM-BFGS: an LSTM+GAC that reads and writes a memory matrix M over coordinates (arXiv:1606.04474, appendix D).

    In each step the controller sees the gradient and what it read in the last one, and puts out eight numbers for each
    coordinate: those of the step g_t, of the read vector r_t, and of a_i and b_i of three write heads.

        read_{t+1} = M_t r_t
        M_{t+1} = M_t + a_1 b_1ᵀ + a_2 b_2ᵀ + a_3 b_3ᵀ

    M is meant for an estimate of the inverse Hessian, so it starts as BFGS's does, as a multiple of the identity: from
    zero the read would tell nothing until the heads have learned to write. The weights of all a start at zero, so
    that an untrained rule leaves M as it is.

    The paper says that one read head, three write heads and two averages suffice to simulate BFGS. They do if the
    controller multiplies and divides exactly, which an LSTM only approximates, and if θ rests in every second step,
    since M_t ∇_t arrives a step after ∇_t: then each of the two steps has two of the four inner products. On a
    quadratic function, exact line search takes a third step, which corrects the length of the one before.

    Memory takes P² numbers an episode, or 6 P for each step that ``memory`` keeps; a step takes as many operations.
    L-BFGS does not forget terms in this way: there, forgetting a pair changes the remaining terms.

    Args:
        hidden_size: number of units H in each layer of the controller.
        num_layers: number of its layers.
        averaged: how many units of each layer are averaged over coordinates, the first ones.
        memory: number of last steps whose a and b are kept; M itself is then never formed. null keeps M.
        initial: M_0 is this multiple of the identity.
        preprocessing: p of appendix A, for the gradient and the read; null feeds both raw.
        output_scale: factor of the step.

    Raises:
        InvalidInputError: a setting is out of its range, or θ has too many coordinates to keep M.
    """

    extra_inputs = 1
    extra_outputs = 1 + 2 * WRITE_HEADS

    def __init__(
        self,
        hidden_size: int = 20,
        num_layers: int = 2,
        averaged: int = 5,
        memory: int | None = None,
        initial: float = 1.0,
        preprocessing: float | None = 10.0,
        output_scale: float = 0.1,
    ) -> None:
        super().__init__(hidden_size, num_layers, averaged, preprocessing, output_scale)
        if memory is not None:
            require_positive("memory", memory)
        require_positive("initial", initial)
        self.memory = memory
        self.initial = initial
        nn.init.zeros_(self.output.weight[2 : 2 + WRITE_HEADS])

    @property
    def label(self) -> str:
        return "NTM-BFGS" if type(self) is NTMBFGS else super().label

    def init(self, theta: Tensor) -> NTMBFGSState:
        return NTMBFGSState(super().init(theta), torch.zeros_like(theta), self._first_memory(theta))

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, NTMBFGSState]:
        controller, read, memory = state
        heads, controller = self.control(grad, read, controller)
        return heads.step, NTMBFGSState(controller, self.read(memory, heads.read), self.write(memory, heads))

    def control(self, grad: Tensor, read: Tensor, state: Any) -> tuple[Heads, Any]:
        """One step of the controller: all arithmetic on the coordinates but for the memory's.

        Args:
            grad: ∇_t, [N, P].
            read: M_{t-1} r_{t-1}, [N, P].
            state: the controller's.
        """
        rows = torch.cat([self.inputs(vector, ())[0] for vector in (grad, read)])
        hidden, cell = self.layers(rows, state.hidden, state.cell)
        outputs = torch.addmm(self.output.bias[:, None], self.output.weight, hidden[-1].flatten(1))
        step, read_vector, *written = outputs.view(-1, *grad.shape).split([1, 1, WRITE_HEADS, WRITE_HEADS])
        return Heads(self.output_scale * step[0], read_vector[0], *written), state._replace(hidden=hidden, cell=cell)

    def read(self, memory: Tensor | Pairs, vector: Tensor) -> Tensor:
        """M r of every episode, [N, P]."""
        if isinstance(memory, Tensor):
            return (memory @ vector[..., None])[..., 0]
        products = (memory.b * vector).sum(-1, keepdim=True)
        return self.initial * vector + (memory.a * products).sum(0)

    def write(self, memory: Tensor | Pairs, heads: Heads) -> Tensor | Pairs:
        """M + Σ a bᵀ."""
        if isinstance(memory, Tensor):
            return memory + torch.einsum("knp,knq->npq", heads.a, heads.b)
        pairs = zip(memory, (heads.a, heads.b), strict=True)
        return Pairs(*(torch.cat([old[WRITE_HEADS:], new]) for old, new in pairs))

    def _first_memory(self, theta: Tensor) -> Tensor | Pairs:
        episodes, coordinates = theta.shape
        if self.memory is not None:
            return Pairs(*theta.new_zeros(2, WRITE_HEADS * self.memory, episodes, coordinates))
        if coordinates > MOST_COORDINATES:
            raise InvalidInputError(
                f"{self.label} would keep a matrix of {coordinates:,} x {coordinates:,} numbers for each episode: set "
                "its memory to the number of last steps whose writes to keep, such as 10."
            )
        return self.initial * torch.eye(coordinates, dtype=theta.dtype, device=theta.device).repeat(episodes, 1, 1)
