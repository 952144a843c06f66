"""The controller on flat θ: all tensors of N episodes side by side."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_l2l.rules.adam_controller.flat_kernel import KernelState, KernelSteps
from lightning_l2l.rules.adam_controller.kernel import kernel_for
from lightning_l2l.rules.adam_controller.network import CONTROLS, ControllerNetwork
from lightning_l2l.rules.adam_controller.orthogonal import matrix_shape, orthogonalize_
from lightning_l2l.rules.adam_controller.statistics import (
    SHAPE,
    SHARED,
    Means,
    Memory,
    bias_corrections,
    features,
    remember,
    shape_features,
)
from lightning_l2l.rules.base import Layout, Place, UpdateRule


class ControllerState(NamedTuple):
    step: int  # t
    m9: Tensor  # [N, P]
    m99: Tensor  # [N, P]
    v99: Tensor  # [N, P]
    v999: Tensor  # [N, P]
    orthogonal: Tensor  # O, [N, P], until it is renewed
    controls: tuple[Tensor, ...]  # six numbers of each coordinate's tensor, each [N, P], until the network runs again
    memory: Memory


class FlatController(UpdateRule):
    """``AdamController`` on optimizees of one layout.

    Args:
        rule: the unbound rule.
        layout: the optimizee's.
        overwrite: whether running means are overwritten.
    """

    sees = ("theta",)
    constants = ("the statistics of each tensor", "the orthogonal directions O")
    takes_phi_per_episode = True

    def __init__(self, rule: ControllerNetwork, layout: Layout, overwrite: bool = False) -> None:
        super().__init__()
        self.rule = rule
        self.layout = layout
        self.overwrite = overwrite
        self.places = [place for place in layout.values() if place.stop > place.start]
        self.sizes = [place.stop - place.start for place in self.places]
        self._on_device: dict[tuple, Tensor] = {}
        self._kernel_steps: KernelSteps | None = None

    @property
    def label(self) -> str:
        return self.rule.label

    def in_place(self) -> "FlatController":
        return FlatController(self.rule, self.layout, overwrite=True)

    def init(self, theta: Tensor) -> ControllerState | KernelState:
        if kernel_for(theta.device, theta.dtype) is not None:
            return self._by_kernel(theta).init(theta)
        m9, m99, v99, v999, orthogonal = theta.new_zeros(5, *theta.shape).unbind()
        tensors = theta.new_zeros(len(theta), len(self.places))
        memory = Memory(tensors, tensors.clone(), theta.new_zeros(*tensors.shape, SHARED))
        controls = theta.new_zeros(CONTROLS, *theta.shape).unbind()
        return ControllerState(0, m9, m99, v99, v999, orthogonal, controls, memory)

    def update(  # type: ignore[override]
        self, grad: Tensor, state: ControllerState | KernelState, theta: Tensor
    ) -> tuple[Tensor, ControllerState | KernelState]:
        if isinstance(state, KernelState):
            return self._by_kernel(theta).update(grad, state, theta, self.overwrite)
        due = self.rule.due(state.step + 1)
        last = state.m9.clone() if due and self.overwrite else state.m9
        state = self._averaged(grad, state)
        if due:
            state = self._renewed(grad, state, theta, last)
        return self._step(grad, state), state

    def _by_kernel(self, like: Tensor) -> KernelSteps:
        if self._kernel_steps is None:
            self._kernel_steps = KernelSteps(self.rule, self.places, self._shapes(like), self._orthogonalized)
        return self._kernel_steps

    def _averaged(self, grad: Tensor, state: ControllerState) -> ControllerState:
        lerp = Tensor.lerp_ if self.overwrite else torch.lerp
        square = grad.square()
        return state._replace(
            step=state.step + 1,
            m9=lerp(state.m9, grad, 0.1),
            m99=lerp(state.m99, grad, 0.01),
            v99=lerp(state.v99, square, 0.01),
            v999=lerp(state.v999, square, 0.001),
        )

    def _renewed(self, grad: Tensor, state: ControllerState, theta: Tensor, last: Tensor) -> ControllerState:
        """Runs the network, on statistics that are constants for a meta-gradient."""
        with torch.no_grad():
            orthogonal = self._orthogonalized(torch.lerp(state.m9, grad, 0.1), state.orthogonal, state.step)
            means = self._means(last, grad, theta, state, orthogonal)
            t = grad.new_full((1,), state.step)
            memory, own, sizes = remember(means, state.memory, t, self.rule.every)
            everyone = memory.shared.mean(-2, keepdim=True)
            inputs = features(memory.shared, everyone, own, self._shapes(grad), t)
        controls = self._spread(self.rule.controls(inputs, sizes)).unbind()
        return state._replace(orthogonal=orthogonal, controls=controls, memory=memory)

    def _step(self, grad: Tensor, state: ControllerState) -> Tensor:
        """The step by the last controls, with bias corrections folded into few products of long tensors."""
        b9, b99, b999 = bias_corrections(state.step)
        of_m9, of_grad, of_m99, mixture, epsilon, of_orthogonal = state.controls
        direction = of_m9 * state.m9
        direction.addcmul_(of_grad, grad, value=b9).addcmul_(of_m99, state.m99, value=b9 / b99)
        root = torch.lerp(state.v999, state.v99 * (b999 / b99), mixture)
        tiny = torch.finfo(root.dtype).tiny
        if self.overwrite:
            root.clamp_(min=tiny).sqrt_().add_(epsilon, alpha=b999**0.5)
        else:
            root = root.clamp(min=tiny).sqrt().add(epsilon, alpha=b999**0.5)
        return torch.addcdiv(-of_orthogonal * state.orthogonal, direction, root, value=-(b999**0.5) / b9)

    def _means(self, last: Tensor, grad: Tensor, theta: Tensor, state: ControllerState, orthogonal: Tensor) -> Means:
        """Takes means over each tensor's coordinates."""
        _, m9, m99, v99, v999, *_ = state
        factors = [(last, last), (grad, last), (grad, grad), (theta, theta), (m9, m9), (m9, m99), (m9, orthogonal)]
        factors += [(m99, m99), (orthogonal, orthogonal)]
        products = grad.new_empty(len(Means._fields), *grad.shape)
        for product, (first, second) in zip(products, factors, strict=False):
            torch.mul(first, second, out=product)
        products[-3], products[-2] = v99, v999
        torch.div(products[4], v99.clamp(min=torch.finfo(v99.dtype).tiny), out=products[-1])
        sums = [product.sum(-1) for product in products.split(self.sizes, -1)]
        means = torch.stack(sums, -1) / products.new_tensor(self.sizes) if sums else products
        return Means(*means.unbind())

    def _spread(self, controls: Tensor) -> Tensor:
        """Repeats each tensor's controls [N, 6, tensors] for its coordinates, [6, N, P]."""
        columns = controls.movedim(0, 1).split(1, -1)  # one of no tensors, too
        parts = [column.expand(-1, -1, size) for column, size in zip(columns, self.sizes or [0], strict=True)]
        return torch.cat(parts, -1)

    def _orthogonalized(self, mixed: Tensor, last: Tensor, t: int) -> Tensor:
        """O of every matrix at step t, [N, P], or the last one; matrices of one shape are computed together."""
        result = last.clone()
        if not self.rule.orthogonal:
            return result
        by_shape: dict[tuple[int, int], list[Place]] = {}
        for place in self.places:
            shape = matrix_shape(place.shape)
            if shape and self.rule.renews(t, shape):
                by_shape.setdefault(shape, []).append(place)
        for shape, places in by_shape.items():
            matrices = torch.cat([mixed[:, place.coordinates].unflatten(1, shape) for place in places])
            directions = orthogonalize_(matrices, self.rule.spectral_limit, self.rule.block)
            for place, direction in zip(places, directions.split(len(mixed)), strict=True):
                result[:, place.coordinates] = direction.flatten(1)
        return result

    def _shapes(self, like: Tensor) -> Tensor:
        """Features of all tensors' shapes, [tensors, 5]."""
        key = like.device, like.dtype
        if key not in self._on_device:
            shapes = [shape_features(place.shape, self.rule.all_sides) for place in self.places]
            self._on_device[key] = like.new_tensor(shapes).view(-1, SHAPE)
        return self._on_device[key]
