"""Trials before training: whether a network, a loss and examples fit together, and which batching is fastest."""

import warnings
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_l2l.errors import InvalidInputError, first_line
from lightning_l2l.optimizees.module_episodes import Batching, ModuleEpisodes, holding, unflatten
from lightning_l2l.optimizees.sources.base import Examples

# the errors of modules that do not fit
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)
# functions of torch that call fused kernels; the second hides its call of the first from a ``TorchFunctionMode``
FUSED = {"scaled_dot_product_attention", "multi_head_attention_forward", "gru", "lstm", "rnn_tanh", "rnn_relu"}


def rows_to_try(examples: Examples, count: int) -> np.ndarray:
    """The numbers of ``count`` rows, starting with those that demand the most of a network."""
    return np.resize(np.concatenate([examples.extreme_rows(), examples.part("train")]), count)


def try_network(network: nn.Module, examples: Examples, count: int) -> tuple[Tensor, Any]:
    """Runs the network on a minibatch.

    Args:
        network: the module.
        examples: what it should take.
        count: B.

    Returns:
        The inputs, [B, ...], and what it made of them.

    Raises:
        InvalidInputError: it does not take them, has no parameters or frozen ones, or changes a buffer.
    """
    if not list(network.parameters()):
        raise InvalidInputError("data.network has no parameters to train: give one that has some.")
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            raise InvalidInputError(
                f"data.network has the parameter {name} with requires_grad=False, but all parameters start afresh and "
                "are trained: register it as a buffer, which stays as it is."
            )
    before = [buffer.clone() for buffer in network.buffers()]
    inputs = examples.minibatch(torch.from_numpy(rows_to_try(examples, count)), torch.float32)[0]
    try:
        with torch.no_grad():
            outputs = network(inputs)
    except FAILURES as error:
        raise InvalidInputError(
            f"data.network does not take {count} {examples.items} of shape {tuple(inputs.shape[1:])} from "
            f"{examples.source} ({first_line(error)}): change its inputs, data.source or data.batch_size."
        ) from error
    for (name, buffer), old in zip(network.named_buffers(), before, strict=True):
        if not torch.equal(buffer, old):
            raise InvalidInputError(
                f"data.network changes its buffer {name} as it runs, which one episode would pass on to the next: "
                "give a network that does not, such as one without running statistics."
            )
    return inputs, outputs


@torch.no_grad()
def try_loss(trial: ModuleEpisodes) -> None:
    """Computes an episode's first loss.

    Raises:
        InvalidInputError: the loss does not take the outputs and targets, is more than one number, or is not finite.
    """
    inputs, targets = (tensor[0] for tensor in trial.minibatch(trial.theta, 0))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("error", "Using a target size")  # it would compare every output with every target
        with holding(trial.network, unflatten(trial.theta[0], trial.network)):
            outputs = trial.network(inputs)
        made = f"{_shape(outputs)} that data.network makes, and targets of {_shape(targets)}"
        try:
            loss = trial.criterion(outputs, targets)
        except (*FAILURES, UserWarning) as error:
            raise InvalidInputError(
                f"data.loss does not take {made} from {trial.examples.source} ({first_line(error)}): give another "
                "loss, a network with other outputs, or targets of the outputs' shape."
            ) from error
    if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
        raise InvalidInputError(
            f"data.loss makes {_shape(loss)} of {made}, but it must be one number: give a loss that returns the "
            "mean or the sum."
        )
    if not loss.isfinite():
        raise InvalidInputError(
            f"data.loss is {loss.item()} where an episode starts, on {trial.examples.source}: give a smaller "
            "data.init_std, another loss, or inputs and targets without such numbers."
        )


def uses_fused_kernels(trial: ModuleEpisodes) -> bool:
    """Whether the network calls attention or recurrence, whose kernels are not twice differentiable."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _Called() as called:
        trial.network(trial.minibatch(trial.theta, 0)[0][0])
    return bool(called.names & FUSED)


class _Called(TorchFunctionMode):
    """Records the names of the torch functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def fastest_batching(trial: ModuleEpisodes) -> Batching:
    """The fastest way to run two episodes side by side.

    Raises:
        InvalidInputError: there is none, not even one after the other.
    """
    try:  # first, since torch.func treats what has no gradient as a constant
        _try_gradient(trial, "none")
    except FAILURES as error:
        raise InvalidInputError(
            f"data.loss of what data.network makes has no gradient ({first_line(error)}): give a network and a loss "
            "that can be differentiated."
        ) from error
    if getattr(trial.network, "stacked", False):
        with suppress(*FAILURES):
            if _stacks(trial):
                return "stacked"
    batchings: tuple[Batching, ...] = ("losses", "gradients")
    for batching in batchings:
        with suppress(*FAILURES):
            _try_gradient(trial, batching)
            return batching
    return "none"


@torch.no_grad()
def _stacks(trial: ModuleEpisodes) -> bool:
    """Whether the network and the criterion give the losses of each episode when they are given all of them."""
    alone, together = (replace(trial, batching=batching).loss(trial.theta, 0) for batching in ("none", "stacked"))
    return torch.allclose(alone, together, rtol=1e-3)


def _try_gradient(trial: ModuleEpisodes, batching: Batching) -> None:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        replace(trial, batching=batching).value_and_grad(trial.theta, 0)


def takes_channels_last(network: nn.Module, inputs: Tensor) -> bool:
    """Whether the network runs on images in that memory format: one that calls ``view`` does not."""
    try:
        with torch.no_grad():
            network(inputs.contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        return False
    return True


def _shape(value: Any) -> str:
    """What an error calls a value: a tensor by its type and shape."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
