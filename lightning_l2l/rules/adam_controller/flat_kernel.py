"""The controller on flat θ by a kernel, in float32 on a CPU: in one pass over memory, and backwards in another."""

from collections.abc import Callable
from ctypes import c_int64, c_void_p
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules.adam_controller.kernel import FIELDS, PIECE, Kernel, kernel_for
from lightning_l2l.rules.adam_controller.network import CONTROLS, ControllerNetwork
from lightning_l2l.rules.adam_controller.orthogonal import matrix_shape
from lightning_l2l.rules.adam_controller.statistics import MEMORY
from lightning_l2l.rules.base import Place
from lightning_l2l.rules.fast.addresses import address
from lightning_l2l.rules.fast.cores import map_on_cores


class KernelState(NamedTuple):
    step: int  # t
    means: Tensor  # m₉, m₉₉, v₉₉ and v₉₉₉, [N, 4, P]
    orthogonal: Tensor  # O, [N, P], until it is renewed
    controls: Tensor  # of each tensor, [N, tensors, 6], until the network runs again
    memory: Tensor  # [N, tensors, 8]


class KernelSteps:
    """The steps of ``FlatController``.

    Args:
        rule: the unbound rule.
        places: where the tensors lie in θ; none is empty.
        shapes: see ``shape_features``, [tensors, 5].
        orthogonalized: computes the new O from .9 m₉ + .1 g, the last O, both [N, P], and t.
    """

    def __init__(
        self,
        rule: ControllerNetwork,
        places: list[Place],
        shapes: Tensor,
        orthogonalized: Callable[[Tensor, Tensor, int], Tensor],
    ) -> None:
        self.rule = rule
        self.places = places
        self.shapes = shapes
        self.orthogonalized = orthogonalized
        self._offsets: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def init(self, theta: Tensor) -> KernelState:
        """The state before the first step."""
        n, tensors = len(theta), len(self.places)
        shapes = (n, 4, theta.shape[1]), theta.shape, (n, tensors, CONTROLS), (n, tensors, MEMORY)
        return KernelState(0, *(theta.new_zeros(shape) for shape in shapes))

    def update(self, grad: Tensor, state: KernelState, theta: Tensor, overwrite: bool) -> tuple[Tensor, KernelState]:
        """As the rule's; with ``overwrite``, without gradients and in the state's memory."""
        grad, theta = grad.contiguous(), theta.contiguous()
        state = state._replace(step=state.step + 1)
        due = self.rule.due(state.step)
        if due:
            state = self._renewed(grad.detach(), state, theta.detach(), overwrite)
        if overwrite:
            return self.step(grad, state, average=not due), state
        update, means = Step.apply(grad, state.means, state.controls, state, self)
        return update, state._replace(means=means)

    def _renewed(self, grad: Tensor, state: KernelState, theta: Tensor, overwrite: bool) -> KernelState:
        """Runs the network, on statistics that are constants for a meta-gradient."""
        means, memory = state.means.detach(), state.memory
        if not overwrite:
            means, memory = means.clone(), memory.clone()
        with torch.no_grad():
            sums = self.sums("average", theta, grad, means, state.orthogonal, memory)
            orthogonal = self.orthogonalized(torch.lerp(means[:, 0], grad, 0.1), state.orthogonal, state.step)
            products = self.sums("multiply", theta, grad, means, orthogonal, memory)
            rows = self.rows(theta, grad, means, orthogonal, memory)
            t = torch.full(memory.shape[:2], state.step, dtype=torch.double, device="cpu")
            inputs, sizes = kernel().describe(at(rows), sums, products, t, self.shapes, self.rule.every)
        controls = self.rule.controls(inputs, sizes).mT.contiguous()
        return state._replace(orthogonal=orthogonal, controls=controls, memory=memory)

    def sums(self, name: str, *tensors: Tensor) -> Tensor:
        """Sums over each tensor, [N · tensors, ...]."""
        rows = self.rows(*tensors)
        return torch.cat(self.on_cores(tensors[0], lambda part: kernel().sums(name, len(rows[part]), at(rows, part))))

    def step(self, grad: Tensor, state: KernelState, average: bool) -> Tensor:
        """The step from these controls, after moving the running means on if ``average``."""
        update = torch.zeros_like(grad)
        rows = self.rows(update, grad, state.means, state.orthogonal, state.memory)
        controls, t = controls_of(rows, state), torch.full((len(rows),), state.step, dtype=torch.double, device="cpu")

        def run(part: slice) -> None:
            kernel().step(len(rows[part]), at(rows, part), at(controls, part), at(t, part), 1.0, average)

        self.on_cores(grad, run)
        return update

    def backward(self, grad: Tensor, state: KernelState, of_update: Tensor, of_means: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives with respect to the gradient and to the controls; those in ``of_means`` are overwritten."""
        of_grad = torch.empty_like(grad)
        rows = self.rows(of_update, grad, state.means, state.orthogonal, state.memory)
        cotangents = self.rows(of_update, of_grad, of_means, state.orthogonal, state.memory)
        controls, t = controls_of(rows, state), torch.full((len(rows),), state.step, dtype=torch.double, device="cpu")
        of_controls = torch.empty_like(controls)

        def run(part: slice) -> None:
            parts = (at(tensor, part) for tensor in (rows, cotangents, controls, t, of_controls))
            kernel().library.backward(c_int64(len(rows[part])), *parts)

        self.on_cores(grad, run)
        return of_grad, of_controls.view_as(state.controls)

    def rows(self, theta: Tensor, grad: Tensor, means: Tensor, orthogonal: Tensor, memory: Tensor) -> Tensor:
        """The pieces that are the tensors of all episodes, as ``Kernel`` takes them, [N · tensors, 9].

        Raises:
            InvalidInputError: the tensors do not fit the layout, or each other.
        """
        offsets, addressed = self._table(*theta.shape)
        count, start = theta.numel(), address(means, 4 * theta.numel())
        bases = [0, address(theta, count), address(grad, count), start, start, start, start, address(orthogonal, count)]
        bases.append(address(memory, MEMORY * len(theta) * len(self.places)))
        return torch.addcmul(offsets, addressed, torch.tensor(bases, device="cpu"))

    def on_cores(self, like: Tensor, function: Callable[[slice], Any]) -> list:
        """Calls a function on slices of the pieces, one for each core that is worth waking."""
        count = len(like) * len(self.places)
        threads = max(min(torch.get_num_threads(), count, like.numel() // PIECE), 1)
        bounds = [count * core // threads for core in range(threads + 1)]
        return map_on_cores(threads, function, map(slice, bounds[:-1], bounds[1:]))

    def _table(self, n: int, size: int) -> tuple[Tensor, Tensor]:
        """Coordinates and offsets in bytes of each piece, and whether a row's numbers are addresses."""
        if (n, size) not in self._offsets:
            if size != (last := max((place.stop for place in self.places), default=size)):
                raise InvalidInputError(
                    f"θ has {size} coordinates, but its layout {last}: bind the rule to its layout."
                )
            table = torch.zeros(n, len(self.places), FIELDS, dtype=torch.long, device="cpu")
            episodes, four = torch.arange(n, device="cpu"), torch.arange(4, device="cpu")
            for number, place in enumerate(self.places):
                table[:, number, 0] = place.stop - place.start
                table[:, number, (1, 2, 7)] = 4 * (episodes * size + place.start)[:, None]
                table[:, number, 3:7] = 4 * ((4 * episodes[:, None] + four) * size + place.start)
                table[:, number, 8] = 4 * MEMORY * (episodes * len(self.places) + number)
            addressed = torch.ones_like(table)
            vectors = [number for number, place in enumerate(self.places) if not matrix_shape(place.shape)]
            table[:, vectors, 7] = addressed[:, vectors, 7] = 0
            self._offsets[n, size] = table.view(-1, FIELDS), addressed.view(-1, FIELDS)
        return self._offsets[n, size]


class Step(torch.autograd.Function):
    """Moves the running means on and steps. O is a constant."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, means: Tensor, controls: Tensor, state: KernelState, steps: KernelSteps
    ) -> tuple[Tensor, Tensor]:
        after = state._replace(means=means.clone(), controls=controls)
        update = steps.step(grad, after, average=True)
        ctx.save_for_backward(grad, after.means, controls, state.orthogonal, state.memory)
        ctx.step, ctx.steps = state.step, steps
        return update, after.means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_update: Tensor, of_means: Tensor) -> tuple[Tensor | None, ...]:
        grad, means, controls, orthogonal, memory = ctx.saved_tensors
        state = KernelState(ctx.step, means, orthogonal, controls, memory)
        of_means = of_means.clone(memory_format=torch.contiguous_format)
        of_grad, of_controls = ctx.steps.backward(grad, state, of_update.contiguous(), of_means)
        return of_grad, of_means, of_controls, None, None


def kernel() -> Kernel:
    """The kernel of this machine, which has one."""
    return kernel_for(torch.device("cpu"), torch.float32)  # type: ignore[return-value]


def controls_of(rows: Tensor, state: KernelState) -> Tensor:
    """The controls of each piece, [N · tensors, 6]."""
    controls = state.controls.flatten(0, 1)
    address(controls, CONTROLS * len(rows))
    return controls


def at(tensor: Tensor, part: slice = slice(0, None)) -> c_void_p:
    """The address of a part of the rows of a tensor."""
    first = address(tensor, tensor.numel(), tensor.dtype)
    return c_void_p(first + part.start * tensor.stride(0) * tensor.element_size())
