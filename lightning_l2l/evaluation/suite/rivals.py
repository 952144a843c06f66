"""Optimizers to compare with: any of ``torch.optim``'s kind by class path, and two that need some code of our own."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from lightning_l2l.errors import InvalidInputError, first_line

EXTRA = ("prodigyopt", "schedulefree", "dog", "pytorch_optimizer")  # the packages of the extra ``rivals``


@dataclass
class Rival:
    """An optimizer to compare with.

    Args:
        optimizer: the class path of a ``torch.optim.Optimizer``.
        settings: its settings, besides the parameters.
        name: what tables call it; by default its class.
        rates: values of ``lr`` to choose from; none runs it as given.
        choose: single chooses one rate for all test problems, on the open problems, and shows the rate as given beside
            it, if that is another; per_problem tunes the rate for each test problem.
        cosine: let the rate fall to zero along half a cosine over the run.
        averaged: evaluate it at its averaged weights, between its ``eval()`` and ``train()``, where it has these.
    """

    optimizer: str
    settings: dict = field(default_factory=dict)
    name: str = ""
    rates: list[float] = field(default_factory=list)
    choose: Literal["single", "per_problem"] = "single"
    cosine: bool = False
    averaged: bool = False

    def __post_init__(self) -> None:
        self.name = self.name or self.optimizer.rpartition(".")[2]
        if any(not rate > 0 for rate in self.rates):
            raise InvalidInputError(f"benchmark.rivals has {self.name} with rates {self.rates}: give positive ones.")
        if self.choose == "per_problem" and not self.rates:
            raise InvalidInputError(f"benchmark.rivals has {self.name}, to be tuned per problem: give it rates.")


def find_optimizer(class_path: str) -> type[Optimizer]:
    """Imports an optimizer's class.

    Raises:
        InvalidInputError: it is not installed, or is no ``torch.optim.Optimizer``.
    """
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        extra = module.partition(".")[0] in EXTRA
        fix = "install it with pip install 'lightning-l2l[rivals]'" if extra else "give the class path of an optimizer"
        raise InvalidInputError(
            f"benchmark.rivals has {class_path}, which cannot be imported ({first_line(error)}): {fix}."
        ) from error
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise InvalidInputError(
            f"benchmark.rivals has {class_path}, which is no torch.optim.Optimizer: give the class path of one."
        )
    return found


class MuonAdamW(Optimizer):
    """``torch.optim.Muon`` (Jordan et al., 2024) for all matrices, ``AdamW`` for the rest.

    Matrices include embeddings and output layers, which Muon's author would leave to AdamW. Kernels of convolutions are
    flattened to matrices [out, in · height · width], and stepped in place.

    Args:
        params: contiguous parameters.
        lr: of both.
        weight_decay: of both; the default is Muon's.
        settings: further ones of Muon's.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-3, weight_decay: float = 0.1, **settings: Any) -> None:
        params = list(params)
        super().__init__(params, {"lr": lr})
        self.matrices = {p: p.detach().view(len(p), -1) for p in params if p.ndim > 1}
        others = [p for p in params if p.ndim < 2]
        self.parts: list[Optimizer] = []
        if self.matrices:
            views = self.matrices.values()
            self.parts.append(torch.optim.Muon(views, lr, weight_decay, **settings))
        if others:
            self.parts.append(AdamW(others, lr, weight_decay=weight_decay))
        self.params = params
        self.param_groups = [group for part in self.parts for group in part.param_groups]  # schedulers change these

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients."""
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Takes one step; a closure is not supported."""
        for p, matrix in self.matrices.items():
            matrix.grad = None if p.grad is None else p.grad.view_as(matrix)
        for part in self.parts:
            part.step()


class AveragedLDoG(Optimizer):
    """LDoG with the polynomial averaging of its weights that its authors call crucial (Ivgi et al., arXiv:2302.12022).

    Needs the package dog-optimizer. Between ``eval()`` and ``train()`` the parameters are the averaged ones.

    Args:
        params: parameters.
        settings: those of ``dog.LDoG``.
    """

    def __init__(self, params: Iterable[Tensor], **settings: Any) -> None:
        params = list(params)
        super().__init__(params, {})
        dog = import_module("dog")
        self.inner = dog.LDoG(params, **settings)
        self.param_groups = self.inner.param_groups
        self.params = params
        self.averager = dog.PolynomialDecayAverager(nn.ParameterList(params))
        self.kept: list[Tensor] = []  # the parameters, while the averaged ones stand in their place

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Takes one step and updates the average; a closure is not supported."""
        self.inner.step()
        self.averager.step()

    @torch.no_grad()
    def eval(self) -> None:
        """Puts the averaged parameters in place."""
        self.kept = [p.clone() for p in self.params]
        for p, averaged in zip(self.params, self.averager.averaged_model.parameters(), strict=True):
            p.copy_(averaged)

    @torch.no_grad()
    def train(self) -> None:
        """Puts the parameters back."""
        for p, own in zip(self.params, self.kept, strict=False):
            p.copy_(own)
        self.kept = []
