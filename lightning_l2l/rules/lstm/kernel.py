"""The coordinatewise LSTM with its compiled kernel, in float32 on a CPU."""

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_l2l.rules.base import State, Tape, UpdateRule
from lightning_l2l.rules.fast.compiler import load_kernel
from lightning_l2l.rules.fast.cores import map_on_cores
from lightning_l2l.rules.lstm.cell import AutogradLSTM, LSTMState

SOURCE = Path(__file__).with_name("kernel.cpp")
BLOCKS_PER_THREAD = 32  # fewer are not worth waking a thread


class BlockState(NamedTuple):
    blocks: Tensor  # hidden state and cell of a block's coordinates, [blocks, layers, 2, H, coordinates in a block]
    momenta: Tensor  # running means of their ∇ and ∇², [blocks, decays, 2, coordinates in a block]


class CompiledLSTM(UpdateRule):
    """Takes the same steps as ``rule``, up to rounding; its tape differentiates them, autograd cannot.

    Args:
        rule: the LSTM whose parameters are used, in float32 on the CPU.
        kernel: the library made of kernel.cpp for its sizes.
        threads: how many cores work on one step.
    """

    coordinatewise = True

    def __init__(self, rule: AutogradLSTM, kernel: ctypes.CDLL, threads: int) -> None:
        super().__init__()
        self.rule = rule
        self.kernel = kernel
        self.threads = threads
        self.block_size = kernel.block_size()

    @classmethod
    def of(cls, rule: AutogradLSTM, threads: int) -> "CompiledLSTM | None":
        """Compiles the kernel for a rule's sizes; None if that is impossible."""
        macros = {
            "hidden": rule.hidden_size,
            "layers": rule.num_layers,
            "preprocessed": int(rule.preprocessing is not None),
            "momenta": len(rule.momenta),
        }
        kernel = load_kernel(SOURCE, **macros)
        return None if kernel is None else cls(rule, kernel, threads)

    def init(self, theta: Tensor) -> BlockState:
        blocks = -(-theta.numel() // self.block_size)
        layers = theta.new_zeros(blocks, self.rule.num_layers, 2, self.rule.hidden_size, self.block_size)
        return BlockState(layers, theta.new_zeros(blocks, len(self.rule.momenta), 2, self.block_size))

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, BlockState]:
        after = BlockState(*map(torch.empty_like, state))
        return self.step(self.parameter_vector(), grad, state, after), after

    def step(self, parameters: Tensor, grad: Tensor, before: State, after: State) -> Tensor:
        """Returns the step [N, P] and fills ``after``, which may be ``before``."""
        grad, update = grad.contiguous(), torch.empty_like(grad, memory_format=torch.contiguous_format)

        def run(first: int, count: int) -> None:
            self.kernel.forward(
                *self._settings(parameters),
                ctypes.c_long(count),
                _address(grad, first),
                *self._addresses(before, first),
                *self._addresses(after, first),
                _address(update, first),
            )

        map_on_cores(self._threads(grad), run, *zip(*self._parts(grad), strict=True))
        return update

    def meta_gradient(self, parameters: Tensor, grads: list[Tensor], cotangents: list[Tensor], before: State) -> Tensor:
        """Repeats K steps and backpropagates through them; returns the gradient of all parameters, flat, float64.

        Args:
            parameters: φ, flat.
            grads: ∇_t .. ∇_{t+K-1}, each [N, P] and contiguous.
            cotangents: G_t .. G_{t+K-1} of the steps, likewise.
            before: the state h_t.
        """

        def addresses(tensors: list[Tensor], first: int) -> ctypes.Array:
            return (ctypes.c_void_p * len(tensors))(*(_address(tensor, first).value for tensor in tensors))

        def run(first: int, count: int) -> Tensor:
            result = torch.zeros(len(parameters), dtype=torch.float64)
            self.kernel.backward(
                *self._settings(parameters),
                ctypes.c_long(count),
                ctypes.c_long(len(grads)),
                addresses(grads, first),
                addresses(cotangents, first),
                *self._addresses(before, first),
                _address(result),
            )
            return result

        parts = zip(*self._parts(grads[0]), strict=True)
        return torch.stack(map_on_cores(self._threads(grads[0]), run, *parts)).sum(0)

    def optimize(self, parameters: Tensor, work: Sequence[tuple[Tensor, Tensor, BlockState]], factor: float) -> None:
        """Takes one step of each of many θ in place, θ ← θ + factor · g, with one call for each core.

        Args:
            parameters: φ, flat.
            work: θ and ∇_t, [P], float32 and contiguous, and the state of each, as ``init`` returns it or with the
                same ``blocks`` in bfloat16 (all of them in one type), which is overwritten.
            factor: of the step.
        """
        counts = [theta.numel() for theta, _, _ in work]
        addresses = [
            (grad.data_ptr(), state.blocks.data_ptr(), state.momenta.data_ptr(), theta.data_ptr())
            for theta, grad, state in work
        ]
        threads = max(1, min(self.threads, sum(counts) // (BLOCKS_PER_THREAD * self.block_size)))
        pieces = list(zip(counts, *zip(*addresses, strict=True), strict=True))
        if threads > 1:
            layers, momenta = self._state_sizes
            widths = 4, layers * work[0][2].blocks.element_size(), 4 * momenta, 4  # bytes that a coordinate takes
            size = self.block_size * -(-sum(counts) // (8 * threads * self.block_size))
            pieces = sorted(split(pieces, size, widths), reverse=True)  # largest first, to balance the cores

        def run(core: int) -> None:
            counts, *addresses = zip(*pieces[core::threads], strict=True)
            self.kernel.optimize(
                *self._settings(parameters),
                ctypes.c_float(factor),
                ctypes.c_int(work[0][2].blocks.dtype == torch.bfloat16),
                ctypes.c_long(len(counts)),
                (ctypes.c_long * len(counts))(*counts),
                *((ctypes.c_void_p * len(counts))(*each) for each in addresses),
            )

        map_on_cores(threads, run, range(threads))

    def to_blocks(self, state: LSTMState) -> BlockState:
        """Converts a state of the uncompiled rule to the form that ``init`` returns."""
        layers = torch.stack([torch.stack(pair) for pair in zip(state.hidden, state.cell, strict=True)])
        momenta = [torch.stack(momentum) for momentum in state.momenta]
        no_momenta = layers.new_empty(0, 2, *layers.shape[3:])
        return BlockState(self._cut(layers), self._cut(torch.stack(momenta) if momenta else no_momenta))

    def _cut(self, rows: Tensor) -> Tensor:
        """Cuts [..., N, P] into blocks, [blocks, ..., coordinates in a block], the last one filled with zeros."""
        rows = rows.flatten(-2)
        blocks = -(-rows.shape[-1] // self.block_size)
        padded = torch.nn.functional.pad(rows, (0, blocks * self.block_size - rows.shape[-1]))
        return padded.unflatten(-1, (blocks, self.block_size)).movedim(-2, 0).contiguous()

    def tape(self, theta: Tensor, steps: int) -> Tape:
        """Keeps only the gradients: repeating a block costs less than fetching its activations from memory."""
        return CompiledTape(self)

    def in_place(self) -> Tape:
        """Saves memory bandwidth when the states of many coordinates do not fit in the cache."""
        return CompiledTape(self, remember=False)

    def parameter_vector(self) -> Tensor:
        """φ, flat, in the order of ``parameters()``."""
        return torch.cat([parameter.detach().flatten() for parameter in self.rule.parameters()])

    @property
    def _state_sizes(self) -> tuple[int, int]:
        """Numbers per coordinate in each tensor of the state."""
        return self.rule.num_layers * 2 * self.rule.hidden_size, 2 * len(self.rule.momenta)

    def _addresses(self, state: State, first: int) -> Iterator[ctypes.c_void_p]:
        """The addresses of the block that begins with coordinate ``first``, one for each tensor of the state."""
        return (_address(tensor, size * first) for tensor, size in zip(state, self._state_sizes, strict=True))

    def _settings(self, parameters: Tensor) -> tuple:
        decays = (ctypes.c_double * len(self.rule.momenta))(*self.rule.momenta)
        preprocessing = ctypes.c_float(self.rule.preprocessing or 0.0)
        return _address(parameters), preprocessing, decays, ctypes.c_float(self.rule.output_scale)

    def _threads(self, grad: Tensor) -> int:
        return max(1, min(self.threads, grad.numel() // (BLOCKS_PER_THREAD * self.block_size)))

    def _parts(self, grad: Tensor) -> Iterator[tuple[int, int]]:
        """First coordinate and number of coordinates of each thread's part: whole blocks."""
        size = self.block_size * -(-grad.numel() // (self.block_size * self._threads(grad)))
        for first in range(0, grad.numel(), size):
            yield first, min(size, grad.numel() - first)


class CompiledTape(Tape):
    """Records the gradients and the first state, from which the kernel's backward pass repeats the steps."""

    rule: CompiledLSTM

    def __init__(self, rule: CompiledLSTM, remember: bool = True) -> None:
        super().__init__(rule)
        self.remember = remember
        self.parameters = rule.parameter_vector()
        self.inputs: list[Tensor] = []
        self.first = self.last = BlockState(torch.empty(0), torch.empty(0))

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, BlockState]:
        if self.remember and not self.inputs:  # backward needs the first state again; others are overwritten
            self.first, self.last = BlockState(*state), BlockState(*map(torch.empty_like, state))
        elif not self.remember:
            self.last = BlockState(*state)
        self.inputs += [grad.contiguous()] * self.remember
        return self.rule.step(self.parameters, grad, state, self.last), self.last

    def backward(self, cotangents: list[Tensor]) -> list[Tensor]:
        cotangents = [cotangent.contiguous() for cotangent in cotangents]
        flat = self.rule.meta_gradient(self.parameters, self.inputs, cotangents, self.first).to(self.parameters.dtype)
        parameters = list(self.rule.parameters())
        return [
            part.view_as(p) for part, p in zip(flat.split([p.numel() for p in parameters]), parameters, strict=True)
        ]


def split(pieces: Sequence[tuple[int, ...]], size: int, widths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yields pieces of at most ``size`` coordinates.

    Args:
        pieces: for each piece its number of coordinates, and their addresses in several tensors.
        size: the largest number of coordinates in a yielded piece.
        widths: bytes that a coordinate takes in each of those tensors.
    """
    for count, *places in pieces:
        for first in range(0, count, size):
            moved = (place + first * width for place, width in zip(places, widths, strict=True))
            yield min(size, count - first), *moved


def join_blocks(blocks: Tensor, count: int) -> Tensor:
    """Joins blocks [blocks, ..., coordinates in a block] to rows of ``count`` coordinates, [..., 1, P]."""
    return blocks.movedim(0, -2).flatten(-2)[..., None, :count]


def _address(tensor: Tensor, offset: int = 0) -> ctypes.c_void_p:
    """The address of an element, counted from the tensor's first one."""
    return ctypes.c_void_p(tensor.data_ptr() + offset * tensor.element_size())
