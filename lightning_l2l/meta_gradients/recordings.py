"""Truncations recorded as CUDA graphs, for GPUs that wait for Python.

A step of small optimizees keeps a GPU busy for less time than Python takes to launch its hundred kernels. The steps of
a truncation are the same in every meta-batch, though: recorded once, they are launched as one.
"""

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import first_line
from lightning_l2l.rules import UpdateRule
from lightning_l2l.rules.fast.cuda_graph import CudaGraph, TensorFunction
from lightning_l2l.unroll import Run

log = logging.getLogger(__name__)
MOST = 256  # recordings; more would mean that something changes in every meta-batch, so that none is ever reused


class Recordings:
    """A function that runs truncations, with one recording for each truncation of the horizon.

    A recording is used only if it reproduces the steps that it was made from. Otherwise, or if something cannot be
    recorded, such as a loss that reads numbers in Python, the steps run unrecorded, and a warning says so.

    Args:
        function: takes a rule, episodes, a ``Run`` and further settings; returns a named tuple of tensors and numbers,
            the first of which is a ``Run``.
        record: makes the recording of a function.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        record: Callable[[TensorFunction, Sequence[Tensor]], TensorFunction] = CudaGraph,
    ) -> None:
        self.function = function
        self.record = record
        self.recordings: dict[Hashable, tuple[TensorFunction, Skeleton, list[Any]]] = {}
        self.works = True
        self.full = False

    def __call__(self, rule: UpdateRule, episodes: Episodes, run: Run, *settings: Hashable) -> Any:
        """As the function."""
        if not self.works:
            return self.function(rule, episodes, run, *settings)
        tensors, skeleton = take_tensors((episodes.tensor_fields(), run.detach()))
        shapes = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
        used = [*episodes.shared_fields().values(), *rule.parameters(), *rule.buffers()]
        objects = [value if isinstance(value, int | float | str | None) else id(value) for value in used]
        key = repr((skeleton, shapes, objects, settings, torch.is_autocast_enabled()))
        if key in self.recordings:
            recording, result, _ = self.recordings[key]
            return put_tensors(recording(tensors), result)

        def function(tensors: Sequence[Tensor]) -> list[Tensor]:
            own, run = put_tensors(tensors, skeleton)
            return take_tensors(self.function(rule, episodes.with_tensors(own), run, *settings))[0]

        steps = self.function(rule, episodes, run, *settings)
        expected, result = take_tensors(steps)
        if all(bool(tensor.isfinite().all()) for tensor in expected):  # else nothing to compare: try next time
            made = self._record(function, tensors, expected, f"steps {run.step + 1} to {steps.run.step}")
            if made:
                self.recordings[key] = made, result, [*used, settings]  # another object could get the same id
        return steps

    def _record(
        self, function: TensorFunction, tensors: Sequence[Tensor], expected: Sequence[Tensor], name: str
    ) -> TensorFunction | None:
        if len(self.recordings) == MOST:
            if not self.full:
                log.warning("From now on only %d recorded truncations are launched as a whole on the GPU.", MOST)
            self.full = True
            return None
        began = time.perf_counter()
        try:
            recording = self.record(function, tensors)
            if all(map(_equal, recording(tensors), expected)):
                log.info("Recorded %s for the GPU in %.1f s.", name, time.perf_counter() - began)
                return recording
            reason = "the recording gives other numbers"
        except RuntimeError as error:
            reason = first_line(error)
        self.works = False
        self.recordings.clear()
        log.warning("Kernels are launched one by one, since %s cannot be recorded for the GPU (%s).", name, reason)
        return None


class Skeleton(NamedTuple):
    """A tree without its tensors."""

    leaves: tuple[Any, ...]  # the type Tensor in place of each
    form: pytree.TreeSpec


def take_tensors(tree: Any) -> tuple[list[Tensor], Skeleton]:
    """Separates the tensors of nested tuples, lists and dictionaries from the rest."""
    leaves, form = pytree.tree_flatten(tree)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return tensors, Skeleton(tuple(Tensor if isinstance(leaf, Tensor) else leaf for leaf in leaves), form)


def put_tensors(tensors: Sequence[Tensor], skeleton: Skeleton) -> Any:
    """Undoes ``take_tensors``."""
    given = iter(tensors)
    leaves = [next(given) if leaf is Tensor else leaf for leaf in skeleton.leaves]
    return pytree.tree_unflatten(leaves, skeleton.form)


def _equal(recorded: Tensor, expected: Tensor) -> bool:
    size = float(expected.abs().max()) if expected.numel() else 0.0
    return torch.allclose(recorded, expected, rtol=1e-3, atol=1e-6 * size)
