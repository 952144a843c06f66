"""Splits work over the CPU's cores by Python threads, for functions that release the GIL while they compute."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier

import torch


def map_on_cores(threads: int, function: Callable, *iterables: Iterable) -> list:
    """Calls the function on each tuple of arguments, distributed over ``threads`` cores; returns the results in order.

    The calling thread takes a share, too: waking one thread fewer matters when a step takes a millisecond.
    """
    work = list(zip(*iterables, strict=True))
    if threads == 1:
        return [function(*arguments) for arguments in work]
    grad_enabled, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def share(core: int) -> list:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad_enabled):  # both are per thread
            return [function(*arguments) for arguments in work[core::threads]]

    others = [_pool(threads - 1, os.getpid()).submit(share, core) for core in range(1, threads)]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        shares = [share(0)]
    finally:
        torch.set_num_threads(before)
    shares += [other.result() for other in others]
    return [shares[index % threads][index // threads] for index in range(len(work))]


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that each compute on one core. They do not survive a fork, hence the argument ``process``."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    all_started = Barrier(threads)
    # start the workers now; their set_num_threads(1) also changes ours, restored below
    list(pool.map(lambda _: all_started.wait(), range(threads)))
    torch.set_num_threads(before)
    return pool
