"""Refuses a process's part of a parameter, where a rule would need the whole of it."""

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
