"""Coordinates in slices: a coordinatewise rule run on parts small enough for the cache, or for the memory."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lightning_l2l.rules.base import State, UpdateRule
from lightning_l2l.rules.cores import map_on_cores
from lightning_l2l.rules.tape import Tape


class Sliced(UpdateRule):
    """The same rule as ``rule``, which must be coordinatewise, on slices of the coordinates of all episodes together.

    Its state is a tuple of the slices' states.

    Args:
        rule: a rule for which ``rule.coordinatewise`` holds.
        slices: how many.
        threads: how many slices run side by side.
        replay: keep nothing of a step but its gradient, and take the steps of one slice after the other again when the
            meta-gradient is wanted: memory stays flat, at the price of a second forward pass.
    """

    coordinatewise = True

    def __init__(self, rule: UpdateRule, slices: int, threads: int = 1, replay: bool = False) -> None:
        super().__init__()
        self.rule = rule
        self.slices = slices
        self.threads = threads
        self.replay = replay

    def init(self, theta: Tensor) -> State:
        return tuple(self.rule.init(part) for part in self.split(theta))

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, State]:
        return self.update_with([self.rule] * self.slices, grad, state)

    def update_with(self, rules: Iterable[UpdateRule | Tape], grad: Tensor, state: State) -> tuple[Tensor, State]:
        """As ``update``, with a rule or tape for each slice."""
        stepped = map_on_cores(self.threads, lambda rule, *step: rule.update(*step), rules, self.split(grad), state)
        updates, states = zip(*stepped, strict=True)
        return torch.cat(updates, dim=1).view_as(grad), states

    def tape(self, theta: Tensor, steps: int) -> Tape:
        """One tape a slice: they go backward side by side, too."""
        return ReplayTape(self) if self.replay else SlicedTape(self, theta, steps)

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Cuts [N, P] into [1, slice] for every slice."""
        return tensor.reshape(1, -1).tensor_split(self.slices, dim=1)


class SlicedTape(Tape):
    """The tapes of all slices as one."""

    def __init__(self, sliced: Sliced, theta: Tensor, steps: int) -> None:
        super().__init__(sliced)
        self.sliced = sliced
        self.tapes = [sliced.rule.tape(part, steps) for part in sliced.split(theta)]

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, State]:
        return self.sliced.update_with(self.tapes, grad, state)

    def backward(self, cotangents: list[Tensor]) -> list[Tensor]:
        return self.sum_over_slices(lambda tape, part: tape.backward(list(part)), self.tapes, cotangents)

    def sum_over_slices(self, function: Callable, of_slices: Iterable, *lists: list[Tensor]) -> list[Tensor]:
        """Calls the function with what belongs to each slice, and adds up what it returns for each parameter."""
        lists_of_slices = [zip(*map(self.sliced.split, tensors), strict=True) for tensors in lists]
        results = map_on_cores(self.sliced.threads, function, of_slices, *lists_of_slices)
        return [torch.stack(grads).sum(0) for grads in zip(*results, strict=True)]


class ReplayTape(SlicedTape):
    """Remembers the gradients alone, and runs each slice again before it goes back through it."""

    def __init__(self, sliced: Sliced) -> None:
        Tape.__init__(self, sliced)
        self.sliced = sliced
        self.state: State = ()
        self.inputs: list[Tensor] = []

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, State]:
        if not self.inputs:
            self.state = state
        self.inputs.append(grad)
        return self.sliced.update(grad, state)

    def backward(self, cotangents: list[Tensor]) -> list[Tensor]:
        def replay(state: State, inputs: list[Tensor], cotangents: list[Tensor]) -> list[Tensor]:
            tape = self.sliced.rule.tape(inputs[0], len(inputs))
            for grad in inputs:
                _, state = tape.update(grad, state)
            return tape.backward(list(cotangents))

        return self.sum_over_slices(replay, self.state, self.inputs, cotangents)
