"""Training any network with any loss on minibatches, as episodes."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_l2l.episodes import Episodes
from lightning_l2l.optimizees.sources.base import Examples
from lightning_l2l.rules import Layout, layout_of

Batching = Literal["stacked", "losses", "gradients", "none"]
"""How episodes run side by side: by a network that takes the parameters of all of them (``networks.stacked``), by vmap
over their losses, by vmap over their gradients, or one after the other."""
AT_ONCE = 250  # held-out examples that a network is given, at most


@dataclass(eq=False)
class ModuleEpisodes(Episodes):
    """A loss of a network at parameters θ, on minibatch t.

    Attributes:
        indices: the examples of each minibatch, [N, T + 1, B].
        examples: all examples, shared.
        network: the module whose parameters θ stands for, shared.
        criterion: takes the network's outputs and the targets of one minibatch, and returns one number.
        reconstruct: whether a minibatch's targets are its inputs.
        batching: how episodes run side by side. Stacked is the fastest. vmap over losses cannot run every module
            (``nn.GRU``); vmap over gradients can run more of them.
        fused: whether the network calls fused kernels (attention, recurrence), which have no second derivative and
            cannot be batched over episodes.
        channels_last: whether the network takes images in that memory format, in which convolutions and pooling take
            half the time, except in products with a Hessian.
        held_out: examples in no minibatch, on which accuracies are measured, [N, H]; None measures none.
    """

    indices: Tensor
    examples: Examples
    network: nn.Module
    criterion: nn.Module
    reconstruct: bool = False
    batching: Batching = "losses"
    fused: bool = False
    channels_last: bool = False
    held_out: Tensor | None = None

    @property
    def layout(self) -> Layout:
        return layout(self.network)

    def loss(self, theta: Tensor, step: int) -> Tensor:
        inputs, targets = self.minibatch(theta, step)
        batching = self._batching(theta)
        if batching == "stacked":
            with holding(self.network, unflatten(theta, self.network)):
                return each_loss(self.criterion, self.network(inputs), targets)
        if batching == "losses":
            return torch.func.vmap(self._one_loss, randomness="different")(theta, inputs, targets)
        if self.channels_last:
            images = inputs.flatten(0, 1)  # copied, since torch takes those of one channel to be in either format
            inputs = torch.empty_like(images, memory_format=torch.channels_last).copy_(images).split(inputs.shape[1])
        return torch.stack([self._one_loss(*one) for one in zip(theta, inputs, targets, strict=True)])

    def value_and_grad(self, theta: Tensor, step: int) -> tuple[Tensor, Tensor]:
        batching = self._batching(theta)
        if self.fused and (batching != "none" or torch.is_grad_enabled()):
            with plain_kernels():
                return self._value_and_grad(theta, step, batching)
        return self._value_and_grad(theta, step, batching)

    def hessian_product(self, theta: Tensor, step: int, vector: Tensor) -> Tensor:
        # on a CPU, batch normalization's second derivative takes half as long again in that format
        return Episodes.hessian_product(replace(self, channels_last=False), theta, step, vector)

    @torch.no_grad()
    def accuracy(self, theta: Tensor) -> Tensor | None:
        """Returns the share of its held-out examples that each θ classifies rightly, without dropout, [N].

        They run in nearly equal minibatches of up to 250, whose own statistics batch normalization uses. An output that
        is not a number is not right.
        """
        if self.held_out is None:
            return None
        network = deepcopy(self.network).eval()
        shares = [self._share_right(network, *one) for one in zip(theta, self.held_out, strict=True)]
        return torch.stack(shares).to(theta.dtype)

    def _share_right(self, network: nn.Module, theta: Tensor, rows: Tensor) -> Tensor:
        from torchmetrics.functional.classification import multiclass_accuracy  # the core needs torch only

        predicted, right = [], []
        for part in rows.tensor_split(-(-len(rows) // AT_ONCE)):
            inputs, targets = self.examples.minibatch(part, theta.dtype)
            with holding(network, unflatten(theta, network)):
                outputs = network(inputs)
            predicted.append(outputs.argmax(1).where(~outputs.isnan().any(1), -1))
            right.append(targets)
        return multiclass_accuracy(
            torch.cat(predicted),
            torch.cat(right),
            outputs.shape[1],
            average="micro",
            ignore_index=self.criterion.ignore_index,  # type: ignore[arg-type]
            validate_args=False,  # which refuses the class -1
        )

    def _value_and_grad(self, theta: Tensor, step: int, batching: Batching) -> tuple[Tensor, Tensor]:
        if batching != "gradients" or torch.is_inference_mode_enabled():
            return super().value_and_grad(theta, step)
        one = torch.func.grad_and_value(self._one_loss)
        theta = theta if torch.is_grad_enabled() else theta.detach()
        grad, losses = torch.func.vmap(one, randomness="different")(theta, *self.minibatch(theta, step))
        return losses, grad

    def _batching(self, theta: Tensor) -> Batching:
        # vmap slows down a small network that runs alone, and on a CPU a convolutional network even more
        slow = self.batching != "stacked" and theta.is_cpu and convolves(self.network)
        return "none" if len(theta) == 1 or slow else self.batching

    def minibatch(self, theta: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Returns the inputs and the targets of minibatch t, both [N, B, ...], in the type of θ."""
        inputs, targets = self.examples.minibatch(self.indices[:, step], theta.dtype)
        return inputs, inputs if self.reconstruct else targets

    def _one_loss(self, theta: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        with holding(self.network, unflatten(theta, self.network)):
            return self.criterion(self.network(inputs), targets)


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Runs attention and recurrence with operations that can be differentiated twice and batched by vmap."""
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield


@contextmanager
def holding(network: nn.Module, tensors: dict[str, Tensor]) -> Iterator[None]:
    """Puts tensors in the place of all parameters by name, wherever the network holds each of them.

    ``torch.func.functional_call`` takes a third longer, and leaves its tensors behind in a module with two names.
    """
    own = [(module._parameters, key, p) for module in network.modules() for key, p in module._parameters.items()]
    given = {id(parameter): tensors[name] for name, parameter in network.named_parameters()}
    try:
        for parameters, key, parameter in own:
            parameters[key] = given.get(id(parameter))  # type: ignore[assignment]
        yield
    finally:
        for parameters, key, parameter in own:
            parameters[key] = parameter


def convolves(network: nn.Module) -> bool:
    """Whether a network has convolutions of images."""
    return any(parameter.ndim == 4 for parameter in network.parameters())


def layout(network: nn.Module) -> Layout:
    """Where each of the network's parameters lies in the flat θ: in the order of ``named_parameters``."""
    return layout_of({name: parameter.shape for name, parameter in network.named_parameters()})


def unflatten(theta: Tensor, network: nn.Module) -> dict[str, Tensor]:
    """Cuts the flat θ, [P] or [N, P], into the network's parameters by name."""
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    parts = theta.split([shape.numel() for shape in shapes.values()], dim=-1)
    leading = theta.shape[:-1]
    return {name: part.view(*leading, *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def each_loss(criterion: nn.Module, outputs: Tensor, targets: Tensor) -> Tensor:
    """The losses of N networks, [N], by one of torch's criteria, which returns the mean over a minibatch.

    Args:
        criterion: the module.
        outputs: of all networks, [N, B, ...].
        targets: [N, B, ...].
    """
    single = copy(criterion)
    single.reduction = "none"  # type: ignore[assignment]
    return single(outputs.flatten(0, 1), targets.flatten(0, 1)).view(len(outputs), -1).mean(1)
