"""Chooses the fastest way to run a rule that the machine and its memory allow."""

import torch
from torch import Tensor

from lightning_l2l.rules.base import UpdateRule
from lightning_l2l.rules.fast import machine
from lightning_l2l.rules.fast.sliced import Sliced

SLICE = 4096  # coordinates whose gates stay in a core's cache
SMALLEST_SLICE = 256  # below it, calling costs more than computing


def fastest(
    rule: UpdateRule, theta: Tensor, steps: int = 1, memory: float | None = None, compiled: bool | None = None
) -> UpdateRule:
    """Returns a faster rule with the same steps as ``rule`` and, by its tape, the same meta-gradients.

    A compiled rule replays its steps block by block, so its memory hardly grows with the unroll. Otherwise activations
    are kept if they fit into ``memory``, and recomputed slice by slice if they do not.

    Args:
        rule: any rule; one that mixes coordinates is returned as it is.
        theta: where the runs start, [N, P].
        steps: K, the steps between two meta-gradients.
        memory: gigabytes that the steps' activations may take; ``machine.memory`` by default.
        compiled: whether to use a kernel where the rule has one; ``machine.compiled`` by default.
    """
    gigabytes = machine.memory() if memory is None else memory
    kernels = machine.compiled() if compiled is None else compiled
    share = gigabytes / max(theta.numel(), 1)
    return rule.map(lambda r, part: _fastest(r, part, steps, share * part.numel(), kernels), theta)


def _fastest(rule: UpdateRule, theta: Tensor, steps: int, memory: float, compiled: bool) -> UpdateRule:
    if not rule.coordinatewise or "loss" in rule.sees:  # slices mix the episodes, each of which has its own loss
        return rule
    on_cpu = theta.device.type == "cpu"
    threads = torch.get_num_threads() if on_cpu else 1
    if compiled and (kernel := rule.compiled(theta, threads)):
        return kernel
    fitting = memory * 1e9 / (activation_size(rule, theta) * steps + 1)
    replay = theta.numel() > fitting
    size = SLICE if on_cpu else theta.numel()
    size = max(min(size, int(fitting / threads)), SMALLEST_SLICE) if replay else size
    slices = max(round(theta.numel() / size), 1)
    if slices == 1 and not replay:
        return rule
    return Sliced(rule, min(threads * -(-slices // threads), theta.numel()), threads, replay)


def activation_size(rule: UpdateRule, theta: Tensor) -> int:
    """Bytes per coordinate that autograd keeps of one step of a coordinatewise rule."""
    coordinates = 64
    sample = torch.ones(1, coordinates, dtype=theta.dtype, device=theta.device)
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        step = rule.update(sample, rule.init(sample), **{name: sample for name in rule.sees})
    del step
    return sum(kept.values()) // coordinates
