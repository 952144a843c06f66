"""Parameters of which a process has only some, or only parts: refused where a rule needs the whole, and agreed on."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def check_whole(p: Tensor, coordinatewise: bool) -> None:
    """Checks that a parameter is a whole tensor.

    Args:
        p: the parameter.
        coordinatewise: whether its rule steps each coordinate by itself, so that a flat part of a tensor will do.

    Raises:
        ValueError: it is sharded.
    """
    if hasattr(p, "device_mesh"):  # a DTensor, recognised without importing what makes them
        raise ValueError(
            "LearnedOptimizer needs whole tensors, but a parameter is a DTensor, as fully_shard and tensor parallelism "
            "make it: use DistributedDataParallel"
        )
    if getattr(p, "_fsdp_flattened", False) and not coordinatewise:
        raise ValueError(
            "this rule sees whole tensors, but FullyShardedDataParallel has flattened a parameter: use "
            "DistributedDataParallel"
        )


def zero_processes() -> Any:
    """The processes that share the parameters, if a ``ZeroRedundancyOptimizer`` is being made around this call.

    It gives each process some of the parameters, and an optimizer no sign of it but its own frame on the stack.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    from torch.distributed.optim import ZeroRedundancyOptimizer

    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        if isinstance(owner := frame.f_locals.get("self"), ZeroRedundancyOptimizer):
            return owner.process_group
    return None


def finite_everywhere(finite: bool, params: Sequence[Tensor], zero: Any) -> bool:
    """Whether gradients are finite in all processes among which they are spread, so that all decide alike.

    Args:
        finite: whether this process's are.
        params: its parameters.
        zero: see ``zero_processes``.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return finite
    flattened = any([getattr(p, "_fsdp_flattened", False) for p in params])
    if zero is None and not flattened:
        return finite
    flag = torch.tensor(float(finite), device=device_of(params, zero))
    dist.all_reduce(flag, dist.ReduceOp.MIN, group=zero)
    return bool(flag.item())


def device_of(params: Sequence[Tensor], group: Any = None) -> torch.device:
    """Where processes exchange numbers: a process of a ``ZeroRedundancyOptimizer`` may have no parameter."""
    if params:
        return params[0].device
    nccl = dist.is_available() and dist.is_initialized() and dist.get_backend(group) == "nccl"
    return torch.device("cuda" if nccl else "cpu")
