"""Episodes: runs of an optimizee, side by side."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from lightning_l2l.digests import content
from lightning_l2l.rules.base import Layout, layout_of

HELD_OUT = "held_out"  # name of a field that accuracies alone depend on


@dataclass(eq=False)
class Episodes(ABC):
    """N runs side by side: where each starts, and everything its losses need.

    A subclass adds fields and writes ``loss``. A tensor field has the N episodes in its first dimension; any other
    field is shared by all of them.

    Attributes:
        theta: the parameters θ_0 at which each run starts, [N, P].
    """

    theta: Tensor

    @property
    def layout(self) -> Layout:
        """Which coordinates of θ belong to which named parameter; by default all belong to one, called theta."""
        return layout_of({"theta": self.theta.shape[1:]})

    @abstractmethod
    def loss(self, theta: Tensor, step: int) -> Tensor:
        """Returns each episode's own loss f(θ), [N].

        Args:
            theta: parameters, [N, P]. Episode n's loss depends on row n alone.
            step: number t of the minibatch, 0 to the horizon.
        """

    def value_and_grad(self, theta: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Returns the loss of each episode, [N], and its gradient, [N, P].

        Each row of the summed loss's gradient is that episode's own gradient; averaging over the episodes first would
        make it N times too small.
        """

        differentiable = torch.is_grad_enabled()  # with respect to φ, through θ: for second-order meta-gradients
        if torch.is_inference_mode_enabled():  # in which enable_grad has no effect
            with torch.inference_mode(False), torch.no_grad():  # PyTorch 2.11's torch.func gives zeros in that mode
                grad, (_, losses) = torch.func.grad_and_value(self._total_loss, has_aux=True)(theta, step)
            return losses, grad
        with torch.enable_grad():
            theta = theta if differentiable and theta.requires_grad else theta.detach().requires_grad_()
            losses = self.loss(theta, step)
            (grad,) = torch.autograd.grad(losses.sum(), theta, create_graph=differentiable)
        return losses if differentiable else losses.detach(), grad

    def hessian_product(self, theta: Tensor, step: int, vector: Tensor) -> Tensor:
        """Returns the Hessian of each episode's loss at its θ, times a vector of its own, [N, P]."""
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            grad = self.value_and_grad(theta, step)[1]
            (product,) = torch.autograd.grad(grad, theta, vector.to(grad.dtype))
        return product

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None, **_: Any) -> Self:
        """Moves every tensor, and whatever else can be moved, to a device; casts floating-point tensors to a dtype."""
        moved: dict[str, Any] = {}
        for name, value in self._fields().items():
            if isinstance(value, Tensor):
                moved[name] = value.to(device, dtype if value.is_floating_point() else None)
            elif isinstance(value, Episodes):
                moved[name] = value.to(device, dtype)
            elif hasattr(value, "to"):
                moved[name] = value.to(device)
        return replace(self, **moved)

    @contextmanager
    def same_random_numbers(self) -> Iterator[None]:
        """Lets torch draw the same numbers each time, as for dropout, and then go on as if none had been drawn."""
        with torch.random.fork_rng(devices=[self.theta.device] if self.theta.is_cuda else []):
            torch.manual_seed(0)
            yield

    def fingerprint(self) -> str:
        """A digest of these episodes, as a key for cached losses, which depend on nothing else.

        It covers the content of tensors, the ``repr`` of all other fields, and the first losses and gradients, which
        stand for the computation. It leaves out a field ``held_out``, on which no loss depends.
        """
        digest = hashlib.sha256(f"{type(self).__module__} {type(self).__qualname__}".encode())
        with self.same_random_numbers():
            losses_and_gradients = self.value_and_grad(self.theta, 0)
        for tensor in losses_and_gradients:
            digest.update(content(tensor).encode())
        for name, value in (self.tensor_fields() | self.shared_fields()).items():
            if name.rpartition(".")[2] != HELD_OUT:
                digest.update(f"{name} {content(value) if isinstance(value, Tensor) else value!r}".encode())
        return digest.hexdigest()

    def accuracy_fingerprint(self) -> str | None:
        """As ``fingerprint``, for cached losses and accuracies; None where there are no accuracies."""
        first = self.accuracy(self.theta)
        if first is None:
            return None
        held_out = [value for name, value in self.tensor_fields().items() if name.rpartition(".")[2] == HELD_OUT]
        return " ".join([self.fingerprint(), *map(content, [first, *held_out])])

    def repeat(self, times: int) -> Self:
        """Repeats the N episodes as a whole, as ``torch.Tensor.repeat`` does: [N, ...] becomes [times · N, ...]."""
        tensors = self.tensor_fields().items()
        return self.with_tensors({name: value.repeat(times, *[1] * (value.ndim - 1)) for name, value in tensors})

    def first(self, count: int) -> Self:
        """Returns the first of the episodes, ``count`` at most."""
        return self.with_tensors({name: value[:count] for name, value in self.tensor_fields().items()})

    def reference(self, step: int, count: int) -> Tensor | None:
        """Returns what a meta-loss may compare the ``count`` losses after step t with, [count, N], or None.

        Args:
            step: t, the number of steps before these.
            count: K.
        """
        return None

    def accuracy(self, theta: Tensor) -> Tensor | None:
        """Returns the share of held-out examples that each θ classifies rightly, [N]; None if there are no classes.

        An episode's held-out examples are none of those whose losses its run descends. Either all episodes of a split
        have an accuracy, or none.

        Args:
            theta: parameters, [N, P], such as θ_T, where runs end.
        """
        return None

    def pictures(self, theta: Tensor) -> Tensor | None:
        """Returns θ as pictures, [N, 3, H, W] in 0..1; None if it is not a picture.

        Args:
            theta: parameters, [N, P].
        """
        return None

    def references(self) -> dict[str, Tensor]:
        """Pictures to show beside those of θ, by name, [N, 3, H, W] in 0..1 of any size."""
        return {}

    def tensor_fields(self) -> dict[str, Tensor]:
        """The fields that have the N episodes in their first dimension, by name."""
        return {name: value for name, value in self._fields().items() if isinstance(value, Tensor)}

    def shared_fields(self) -> dict[str, Any]:
        """The fields that all episodes share, by name."""
        return {name: value for name, value in self._fields().items() if not isinstance(value, Tensor)}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same episodes with other tensors in place of some of ``tensor_fields``."""
        return replace(self, **tensors)

    def kept(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of these episodes; by default all of their tensors."""
        return self.tensor_fields()

    def restored(self, kept: Mapping[str, Tensor]) -> Self:
        """The episodes of which ``kept`` was kept, on this device; they have the same source as these."""
        return self.with_tensors(kept)

    def _total_loss(self, theta: Tensor, step: int) -> tuple[Tensor, Tensor]:
        losses = self.loss(theta, step)
        return losses.sum(), losses

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __len__(self) -> int:
        return len(self.theta)
