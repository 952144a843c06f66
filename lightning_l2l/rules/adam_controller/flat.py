"""The controller on flat θ: all tensors of N episodes side by side."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_l2l.rules.adam_controller.network import CONTROLS, ControllerNetwork
from lightning_l2l.rules.adam_controller.orthogonal import matrix_shape, orthogonalized, spectral_factor
from lightning_l2l.rules.adam_controller.statistics import (
    SHAPE,
    SHARED,
    Means,
    Memory,
    bias_correction,
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
    orthogonal: Tensor  # O, [N, P], zeros for vectors
    controls: Tensor  # of each coordinate's tensor, [N, 6, P], until the network runs again
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
        self._on_device: dict[tuple, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def label(self) -> str:
        return self.rule.label

    def in_place(self) -> "FlatController":
        return FlatController(self.rule, self.layout, overwrite=True)

    def init(self, theta: Tensor) -> ControllerState:
        means = theta.new_zeros(5, *theta.shape).unbind()
        tensors = theta.new_zeros(len(theta), len(self.places))
        memory = Memory(tensors, tensors, theta.new_zeros(*tensors.shape, SHARED))
        return ControllerState(0, *means, theta.new_zeros(len(theta), CONTROLS, theta.shape[1]), memory)

    def update(  # type: ignore[override]
        self, grad: Tensor, state: ControllerState, theta: Tensor
    ) -> tuple[Tensor, ControllerState]:
        due = self.rule.due(state.step + 1)
        before = (state.m9.square(), grad * state.m9) if due else ()  # m9 may be overwritten
        state = self._averaged(grad, state)
        if due:
            state = self._renewed(grad, state, theta, *before)
        return self._step(grad, state), state

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

    def _renewed(
        self, grad: Tensor, state: ControllerState, theta: Tensor, last: Tensor, grad_last: Tensor
    ) -> ControllerState:
        """Runs the network, on statistics that are constants for a meta-gradient."""
        to_means, to_coordinates, shapes = self._matrices(grad)
        with torch.no_grad():
            _, m9, m99, v99, v999, *_ = state
            orthogonal = self._orthogonalized(torch.lerp(m9, grad, 0.1))
            adam = m9.square() / v99.clamp(min=torch.finfo(v99.dtype).tiny)
            products = [last, grad_last, grad.square(), theta.square(), m9.square(), m99.square(), m9 * m99, v99, v999]
            products += [adam, orthogonal.square(), m9 * orthogonal]
            means = Means(*(torch.stack(products) @ to_means).unbind())
            t = grad.new_full((1,), state.step)
            memory, own, sizes = remember(means, state.memory, t, self.rule.every)
            everyone = memory.shared.mean(-2, keepdim=True)
            inputs = features(memory.shared, everyone, own, shapes, t)
        controls = self.rule.controls(inputs, sizes) @ to_coordinates
        return state._replace(orthogonal=orthogonal, controls=controls, memory=memory)

    def _step(self, grad: Tensor, state: ControllerState) -> Tensor:
        """The step by the last controls, with bias corrections folded into few products of long tensors."""
        t = torch.tensor(float(state.step), dtype=torch.double)
        b9, b99, b999 = (bias_correction(decay, t).item() for decay in (0.9, 0.99, 0.999))
        of_m9, of_grad, of_m99, mixture, epsilon, of_orthogonal = state.controls.unbind(1)
        direction = (of_m9 * state.m9).addcmul(of_grad, grad, value=b9).addcmul(of_m99, state.m99, value=b9 / b99)
        square = torch.lerp(state.v999, state.v99 * (b999 / b99), mixture)
        root = square.clamp(min=torch.finfo(square.dtype).tiny).sqrt().add(epsilon, alpha=b999**0.5)
        return (of_orthogonal * state.orthogonal).neg().addcdiv(direction, root, value=-(b999**0.5) / b9)

    def _orthogonalized(self, mixed: Tensor) -> Tensor:
        """O of every matrix, [N, P]; matrices of one shape are computed together."""
        result = torch.zeros_like(mixed)
        if not self.rule.orthogonal:
            return result
        by_shape: dict[tuple[int, int], list[Place]] = {}
        for place in self.places:
            if shape := matrix_shape(place.shape):
                by_shape.setdefault(shape, []).append(place)
        for shape, places in by_shape.items():
            matrices = torch.stack([mixed[:, place.coordinates].unflatten(1, shape) for place in places])
            directions = orthogonalized(matrices) * spectral_factor(shape, self.rule.spectral_limit)
            for place, direction in zip(places, directions, strict=True):
                result[:, place.coordinates] = direction.flatten(1)
        return result

    def _matrices(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Matrices that take means over tensors [P, tensors], that spread numbers [tensors, P], and shapes."""
        key = like.device, like.dtype
        if key not in self._on_device:
            spread = like.new_zeros(len(self.places), like.shape[1])
            for row, place in zip(spread, self.places, strict=True):
                row[place.coordinates] = 1
            shapes = [shape_features(place.shape, self.rule.all_sides) for place in self.places]
            means = (spread / spread.sum(1, keepdim=True)).T.contiguous()
            self._on_device[key] = means, spread, like.new_tensor(shapes).view(-1, SHAPE)
        return self._on_device[key]
