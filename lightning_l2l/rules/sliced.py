"""Coordinates dealt to the cores: a coordinatewise rule run on slices, each small enough for the cache."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from lightning_l2l.rules.base import State, UpdateRule
from lightning_l2l.rules.tape import Tape

SLICE = 4096  # coordinates whose gates stay in a core's cache


def deal_to_cores(rule: UpdateRule, theta: Tensor) -> UpdateRule:
    """Returns the rule to run at θ [N, P]: sliced where that gives the same steps sooner, else as it is."""
    slices = round(theta.numel() / SLICE)
    if not rule.coordinatewise or theta.device.type != "cpu" or slices < 2:
        return rule
    threads = torch.get_num_threads()
    return Sliced(rule, threads * -(-slices // threads), threads)


class Sliced(UpdateRule):
    """The same rule as ``rule``, which must be coordinatewise, on slices of the coordinates of all episodes together.

    Its state is a tuple of the slices' states.

    Args:
        rule: a rule for which ``rule.coordinatewise`` holds.
        slices: how many.
        threads: how many slices run side by side.
    """

    def __init__(self, rule: UpdateRule, slices: int, threads: int) -> None:
        super().__init__()
        self.rule = rule
        self.slices = slices
        self.threads = threads

    def init(self, theta: Tensor) -> State:
        return tuple(self.rule.init(part) for part in self.split(theta))

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, State]:
        return self.update_with([self.rule] * self.slices, grad, state)

    def update_with(self, rules: Iterable[UpdateRule | Tape], grad: Tensor, state: State) -> tuple[Tensor, State]:
        """As ``update``, with a rule or tape for each slice."""
        stepped = self.map(
            lambda rule, grad, state: rule.update(grad, state),
            rules,
            self.split(grad),
            state,
        )
        updates, states = zip(*stepped, strict=True)
        return torch.cat(updates, dim=1).view_as(grad), states

    def tape(self, theta: Tensor, steps: int) -> Tape:
        """One tape a slice: they go backward side by side, too."""
        return SlicedTape(self, theta, steps)

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Cuts [N, P] into [1, slice] for every slice."""
        return tensor.reshape(1, -1).tensor_split(self.slices, dim=1)

    def map(self, function: Callable, *iterables: Iterable) -> list:
        """Calls the function for every slice, several at a time, and returns the results in the slices' order."""
        if self.threads == 1:
            return [function(*arguments) for arguments in zip(*iterables, strict=True)]
        grad_enabled, inference = (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
        )

        def call(*arguments: object) -> object:  # both modes belong to a thread
            with torch.inference_mode(inference), torch.set_grad_enabled(grad_enabled):
                return function(*arguments)

        return list(_pool(self.threads, os.getpid()).map(call, *iterables))


class SlicedTape(Tape):
    """The tapes of all slices as one."""

    def __init__(self, sliced: Sliced, theta: Tensor, steps: int) -> None:
        super().__init__(sliced)
        self.sliced = sliced
        self.tapes = [sliced.rule.tape(part, steps) for part in sliced.split(theta)]

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, State]:
        return self.sliced.update_with(self.tapes, grad, state)

    def backward(self, cotangents: list[Tensor]) -> list[Tensor]:
        of_slices = zip(*map(self.sliced.split, cotangents), strict=True)
        grads = self.sliced.map(
            lambda tape, cotangents: tape.backward(list(cotangents)),
            self.tapes,
            of_slices,
        )
        return [torch.stack(grad).sum(0) for grad in zip(*grads, strict=True)]


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """One thread a core, each of whose operations stays on it. Threads do not outlive a fork, hence ``process``."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    list(pool.map(lambda _: None, range(threads)))  # starts the threads now, and then undoes what they say of others
    torch.set_num_threads(before)
    return pool
