"""The coordinatewise LSTM with its compiled kernel, in float32 on a CPU."""

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules.base import State, Tape, UpdateRule
from lightning_l2l.rules.fast.addresses import address
from lightning_l2l.rules.fast.compiler import load_kernel
from lightning_l2l.rules.fast.cores import map_on_cores
from lightning_l2l.rules.gradient_inputs import CorrectedMomentum
from lightning_l2l.rules.lstm.cell import AutogradLSTM, LSTMState

SOURCE = Path(__file__).with_name("kernel.cpp")
BLOCKS_PER_THREAD = 32  # fewer are not worth waking a thread


class BlockState(NamedTuple):
    blocks: Tensor  # hidden state and cell of a block's coordinates, [blocks, layers, 2, H, coordinates in a block]
    momenta: Tensor  # the fields of the rule's ``means``, [blocks, decays, fields, coordinates in a block]


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
        self.parameter_count = sum(parameter.numel() for parameter in rule.parameters())

    @classmethod
    def of(cls, rule: AutogradLSTM, threads: int) -> "CompiledLSTM | None":
        """Compiles the kernel for a rule's sizes; None if that is impossible."""
        macros = {
            "hidden": rule.hidden_size,
            "layers": rule.num_layers,
            "preprocessed": int(rule.preprocessing is not None),
            "momenta": len(rule.momenta),
            "relative": int(rule.means is CorrectedMomentum),
        }
        kernel = load_kernel(SOURCE, **macros)
        return None if kernel is None else cls(rule, kernel, threads)

    def init(self, theta: Tensor) -> BlockState:
        blocks = -(-theta.numel() // self.block_size)
        layers = theta.new_zeros(blocks, self.rule.num_layers, 2, self.rule.hidden_size, self.block_size)
        means = len(self.rule.momenta), len(self.rule.means._fields)
        return BlockState(layers, theta.new_zeros(blocks, *means, self.block_size))

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, BlockState]:
        after = BlockState(*map(torch.empty_like, state))
        return self.step(self.parameter_vector(), grad, state, after), after

    def step(self, parameters: Tensor, grad: Tensor, before: State, after: State) -> Tensor:
        """Returns the step [N, P] and fills ``after``, which may be ``before``."""
        grad, update = grad.contiguous(), torch.empty_like(grad, memory_format=torch.contiguous_format)
        settings, count = self._settings(parameters), grad.numel()
        from_before, to_after = self._state_addresses(before, count), self._state_addresses(after, count)
        at_grad, at_update = address(grad, count), address(update, count)

        def run(first: int, count: int) -> None:
            self.kernel.forward(
                *settings,
                ctypes.c_long(count),
                ctypes.c_void_p(at_grad + 4 * first),
                *self._state_pointers(from_before, first),
                *self._state_pointers(to_after, first),
                ctypes.c_void_p(at_update + 4 * first),
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

        Raises:
            InvalidInputError: the tensors do not fit each other.
        """
        if len(grads) != len(cotangents):
            raise InvalidInputError(
                f"there are {len(grads)} gradients, but {len(cotangents)} cotangents: give as many."
            )
        settings, count = self._settings(parameters), grads[0].numel()
        of_state = self._state_addresses(before, count)
        of_grads, of_cotangents = ([address(tensor, count) for tensor in each] for each in (grads, cotangents))

        def run(first: int, count: int) -> Tensor:
            result = torch.zeros(len(parameters), dtype=torch.float64, device="cpu")
            self.kernel.backward(
                *settings,
                ctypes.c_long(count),
                ctypes.c_long(len(grads)),
                _pointers([place + 4 * first for place in of_grads]),
                _pointers([place + 4 * first for place in of_cotangents]),
                *self._state_pointers(of_state, first),
                ctypes.c_void_p(result.data_ptr()),
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

        Raises:
            InvalidInputError: the tensors do not fit each other.
        """
        counts = [theta.numel() for theta, _, _ in work]
        kept = torch.bfloat16 if work[0][2].blocks.dtype is torch.bfloat16 else torch.float32
        addresses = [
            (address(grad, count), *self._state_addresses(state, count, kept), address(theta, count))
            for (theta, grad, state), count in zip(work, counts, strict=True)
        ]
        settings = self._settings(parameters)
        threads = max(1, min(self.threads, sum(counts) // (BLOCKS_PER_THREAD * self.block_size)))
        pieces = list(zip(counts, *zip(*addresses, strict=True), strict=True))
        if threads > 1:
            layers, momenta = self._state_sizes
            widths = 4, layers * kept.itemsize, 4 * momenta, 4  # bytes that a coordinate takes
            size = self.block_size * -(-sum(counts) // (8 * threads * self.block_size))
            pieces = sorted(split(pieces, size, widths), reverse=True)  # largest first, to balance the cores

        def run(core: int) -> None:
            counts, *addresses = zip(*pieces[core::threads], strict=True)
            self.kernel.optimize(
                *settings,
                ctypes.c_float(factor),
                ctypes.c_int(kept is torch.bfloat16),
                ctypes.c_long(len(counts)),
                (ctypes.c_long * len(counts))(*counts),
                *map(_pointers, addresses),
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
        means = len(self.rule.means._fields) * len(self.rule.momenta)
        return self.rule.num_layers * 2 * self.rule.hidden_size, means

    def _state_addresses(self, state: State, count: int, kept: torch.dtype = torch.float32) -> tuple[int, int]:
        """The addresses of both tensors of a state of so many coordinates; ``kept`` is the type of its blocks."""
        coordinates = self.block_size * -(-count // self.block_size)
        layers, momenta = self._state_sizes
        return address(state[0], layers * coordinates, kept), address(state[1], momenta * coordinates)

    def _state_pointers(self, addresses: tuple[int, int], first: int) -> Iterator[ctypes.c_void_p]:
        """Where the block that begins with coordinate ``first`` lies in both tensors of a state in float32."""
        sizes = self._state_sizes
        return (ctypes.c_void_p(place + 4 * size * first) for place, size in zip(addresses, sizes, strict=True))

    def _settings(self, parameters: Tensor) -> tuple:
        decays = (ctypes.c_double * len(self.rule.momenta))(*self.rule.momenta)
        preprocessing = ctypes.c_float(self.rule.preprocessing or 0.0)
        at_parameters = ctypes.c_void_p(address(parameters, self.parameter_count))
        return at_parameters, preprocessing, decays, ctypes.c_float(self.rule.output_scale)

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


def _pointers(places: Sequence[int]) -> ctypes.Array:
    """C's array of addresses."""
    return (ctypes.c_void_p * len(places))(*places)
