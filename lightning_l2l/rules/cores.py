"""Work dealt to the CPU's cores by threads of Python, for functions that let go of its lock while they compute."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch


def map_on_cores(threads: int, function: Callable, *iterables: Iterable) -> list:
    """Calls the function on each tuple of arguments, ``threads`` at a time, and returns the results in order."""
    if threads == 1:
        return [function(*arguments) for arguments in zip(*iterables, strict=True)]
    grad_enabled, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def call(*arguments: object) -> object:  # both modes belong to a thread
        with torch.inference_mode(inference), torch.set_grad_enabled(grad_enabled):
            return function(*arguments)

    return list(_pool(threads, os.getpid()).map(call, *iterables))


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """One thread a core, each of whose operations stays on it. Threads do not outlive a fork, hence ``process``."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    list(pool.map(lambda _: None, range(threads)))  # starts the threads now, and then undoes what they say of others
    torch.set_num_threads(before)
    return pool
