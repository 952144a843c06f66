"""Runs a coordinatewise rule on slices of the coordinates that are small enough for the cache, or for memory."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lightning_l2l.rules.base import State, Tape, UpdateRule
from lightning_l2l.rules.fast.cores import map_on_cores


class Sliced(UpdateRule):
    """The same rule as ``rule``, which must be coordinatewise, on slices of the coordinates of all episodes together.

    Its state is a tuple of the slices' states.

    Args:
        rule: a rule for which ``rule.coordinatewise`` holds.
        slices: number of slices.
        threads: number of slices that run side by side.
        replay: keep only the gradient of each step, and repeat the steps of one slice after the other for the
            meta-gradient: memory hardly grows with the unroll, at the price of a second forward pass.
    """

    coordinatewise = True

    def __init__(self, rule: UpdateRule, slices: int, threads: int = 1, replay: bool = False) -> None:
        super().__init__()
        self.rule = rule
        self.sees = rule.sees
        self.slices = slices
        self.threads = threads
        self.replay = replay

    def start(self, theta: Tensor) -> Tensor:
        return self.rule.start(theta)

    def init(self, theta: Tensor) -> State:
        return tuple(self.rule.init(part) for part in self.split(theta))

    def update(self, grad: Tensor, state: State, **seen: Tensor) -> tuple[Tensor, State]:
        return self.update_with([self.rule] * self.slices, grad, state, seen)

    def update_with(
        self, rules: Iterable[UpdateRule | Tape], grad: Tensor, state: State, seen: dict[str, Tensor]
    ) -> tuple[Tensor, State]:
        """As ``update``, with a rule or tape for each slice."""

        def step(rule: UpdateRule | Tape, grad: Tensor, state: State, *values: Tensor) -> tuple[Tensor, State]:
            return rule.update(grad, state, **dict(zip(seen, values, strict=True)))

        parts = (self.split(value) for value in seen.values())
        stepped = map_on_cores(self.threads, step, rules, self.split(grad), state, *parts)
        updates, states = zip(*stepped, strict=True)
        return torch.cat(updates, dim=1).view_as(grad), states

    def tape(self, theta: Tensor, steps: int) -> Tape:
        """One tape per slice; their backward passes run side by side, too."""
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

    def update(self, grad: Tensor, state: State, **seen: Tensor) -> tuple[Tensor, State]:
        return self.sliced.update_with(self.tapes, grad, state, seen)

    def backward(self, cotangents: list[Tensor]) -> list[Tensor]:
        return self.sum_over_slices(lambda tape, part: tape.backward(list(part)), self.tapes, cotangents)

    def sum_over_slices(self, function: Callable, of_slices: Iterable, *lists: list[Tensor]) -> list[Tensor]:
        """Calls the function with each slice's arguments, and sums what it returns for each parameter."""
        lists_of_slices = [zip(*map(self.sliced.split, tensors), strict=True) for tensors in lists]
        results = map_on_cores(self.sliced.threads, function, of_slices, *lists_of_slices)
        return [torch.stack(grads).sum(0) for grads in zip(*results, strict=True)]


class ReplayTape(SlicedTape):
    """Records only the rule's inputs, and runs each slice again before its backward pass."""

    def __init__(self, sliced: Sliced) -> None:
        Tape.__init__(self, sliced)
        self.sliced = sliced
        self.state: State = ()
        self.inputs: list[tuple[Tensor, ...]] = []  # of each step: the gradient, and what else the rule sees

    def update(self, grad: Tensor, state: State, **seen: Tensor) -> tuple[Tensor, State]:
        if not self.inputs:
            self.state = state
        self.inputs.append((grad, *seen.values()))
        self.names = list(seen)
        return self.sliced.update(grad, state, **seen)

    def backward(self, cotangents: list[Tensor]) -> list[Tensor]:
        def replay(state: State, cotangents: list[Tensor], *inputs: list[Tensor]) -> list[Tensor]:
            tape = self.sliced.rule.tape(inputs[0][0], len(inputs[0]))
            for grad, *values in zip(*inputs, strict=True):
                _, state = tape.update(grad, state, **dict(zip(self.names, values, strict=True)))
            return tape.backward(list(cotangents))

        inputs = [list(values) for values in zip(*self.inputs, strict=True)]
        return self.sum_over_slices(replay, self.state, cotangents, *inputs)
