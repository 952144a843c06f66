"""Steps parameters in place by the LSTM's kernel."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_l2l.rules.fast.stepper import KeptState, Stepper, Work, named_leaves
from lightning_l2l.rules.lstm.cell import LSTMState
from lightning_l2l.rules.lstm.kernel import BlockState, CompiledLSTM, join_blocks

NO_MOMENTA = torch.empty(0, dtype=torch.float32, device="cpu")
ALIGNMENT = 64  # bytes, as torch's own tensors have, and as the kernel's vectors need


class CompiledStepper(Stepper):
    """A ``Stepper`` that steps all θ in one call of the LSTM's kernel. Its states are those of ``CompiledLSTM``.

    Args:
        kernel: the compiled rule.
        in_bfloat16: whether states are kept in bfloat16 from one step to the next.
    """

    def __init__(self, kernel: CompiledLSTM, in_bfloat16: bool = False) -> None:
        super().__init__(kernel.rule, torch.device("cpu"), torch.float32, in_bfloat16)
        self.kernel = kernel
        self.parameters = kernel.parameter_vector()
        self.names_without_kernel = self.names
        self.names = ["blocks", "momenta"] if kernel.rule.momenta else ["blocks"]
        one = self.init(torch.zeros(1, device="cpu"))
        self.forms = [(value.shape[1:], value.dtype) for value in one.values()]

    def init(self, theta: Tensor) -> KeptState:
        state = self.kernel.init(theta.new_empty(len(theta), dtype=self.kept_dtype))
        return self._named(state._replace(momenta=state.momenta.to(self.dtype)))

    def step(self, work: Sequence[Work], factor: float, loss: float | Tensor | None = None, decay: float = 0.0) -> None:
        self.fit(work)
        direct = []
        for theta, grad, state in work:
            if theta.dtype == grad.dtype == self.dtype and not (theta.is_neg() or grad.is_neg()):
                if decay:
                    theta.mul_(1 - decay)
                direct.append((theta, grad, self._opened(state)))
                torch.autograd.graph.increment_version(theta)  # overwritten behind autograd's back
                continue
            width = self.kernel.block_size
            for part in self.parts(theta):
                computed = theta[part].to(self.dtype) * (1 - decay)
                own = slice(part.start // width, -(-part.stop // width))
                blocks = BlockState(*(tensor[own] for tensor in self._opened(state)))
                numbers = grad[part].to(self.dtype).resolve_neg()
                self.kernel.optimize(self.parameters, [(computed, numbers, blocks)], factor)
                theta[part] = computed  # rounded once
        if direct:
            self.kernel.optimize(self.parameters, direct, factor)

    def holds(self, state: KeptState, theta: Tensor) -> bool:
        if list(state) != self.names:
            return False
        blocks = -(-len(theta) // self.kernel.block_size)
        for value, (shape, dtype) in zip(state.values(), self.forms, strict=True):
            form = isinstance(value, Tensor) and (value.shape, value.dtype) == ((blocks, *shape), dtype)
            if not (form and value.is_cpu and value.is_contiguous() and value.data_ptr() % ALIGNMENT == 0):
                return False
        return True

    def adopt(self, state: KeptState, theta: Tensor) -> KeptState:
        if state.keys() == set(self.names_without_kernel):
            leaves = [state[name] for name in self.names_without_kernel]
            state = self._named(self.kernel.to_blocks(pytree.tree_unflatten(leaves, self.structure)))
        return self.copy(state, self.init(theta))

    def _named(self, state: BlockState) -> KeptState:
        return {name: getattr(state, name) for name in self.names}

    def _opened(self, state: KeptState) -> BlockState:
        return BlockState(state["blocks"], state.get("momenta", NO_MOMENTA))


def unpack_blocks(state: KeptState, count: int, means: Callable[..., Any]) -> KeptState:
    """Converts a ``CompiledStepper``'s state of ``count`` coordinates to the form that the LSTM's ``init`` returns.

    A state of another number of coordinates is returned unchanged.

    Args:
        state: the blocks.
        count: P.
        means: makes the means that the LSTM keeps for each decay.
    """
    if len(state["blocks"]) != -(-count // state["blocks"].shape[-1]):
        return state
    layers, *momenta = (join_blocks(blocks, count) for blocks in state.values())
    kept = tuple(means(*tensors) for tensors in momenta[0]) if momenta else ()
    return named_leaves(LSTMState(tuple(layers[:, 0]), tuple(layers[:, 1]), kept))
