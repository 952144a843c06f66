"""A function of tensors as a CUDA graph: its kernels are launched as one, for GPUs that wait for Python."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

TensorFunction = Callable[[Sequence[Tensor]], list[Tensor]]
_living: WeakKeyDictionary[Any, torch.device] = WeakKeyDictionary()
"""All CUDA graphs made here, each with its GPU."""


class CudaGraph:
    """The kernels that a function of tensors launches, recorded; called, they run on other tensors of the same shapes.

    Args:
        function: what is recorded; only its kernels may depend on a tensor's values.
        inputs: tensors on one GPU to record it with.

    Raises:
        RuntimeError: it cannot be recorded.
    """

    @torch.no_grad()
    def __init__(self, function: TensorFunction, inputs: Sequence[Tensor]) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        self.device = self.inputs[0].device
        with torch.cuda.device(self.device):  # whose streams are used
            self._record(function)

    def _record(self, function: TensorFunction) -> None:
        stream = _stream(self.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what libraries set up on their first call cannot be recorded
            function(self.inputs)
            with _waiting_is_an_error():
                function(self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        torch.clear_autocast_cache()  # else every replay would use the weights cast during the warm-up
        # graphs of a GPU share the memory that they use while they run, since no two run at once
        pool = next((graph.pool() for graph, device in _living.items() if device == self.device), None)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self.outputs = function(self.inputs)
        torch.clear_autocast_cache()
        _living[self.graph] = self.device

    @torch.no_grad()
    def replay(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Runs the kernels; the next run overwrites the returned tensors."""
        torch._foreach_copy_(self.inputs, list(inputs))
        with torch.cuda.device(self.device):
            self.graph.replay()
        return self.outputs

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Runs the kernels; the caller owns the returned tensors."""
        return [output.clone() for output in self.replay(inputs)]


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which all graphs of a GPU are recorded: memory is shared on one stream alone."""
    return torch.cuda.Stream(device)


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    """Raises where Python would wait for the GPU: a recording that failed there would break random numbers for good."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
