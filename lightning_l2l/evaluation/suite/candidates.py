"""Optimizers with all their settings, as a plain training loop uses them."""

import copy
import math
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_l2l.errors import InvalidInputError, first_line
from lightning_l2l.evaluation.provenance import settings_of, source_of
from lightning_l2l.evaluation.suite.rivals import Rival, find_optimizer
from lightning_l2l.learned_optimizer import LearnedOptimizer
from lightning_l2l.rules import UpdateRule


@dataclass(frozen=True, eq=False)
class Candidate:
    """An optimizer with settings.

    Attributes:
        name: what tables call it.
        class_path: of a ``torch.optim.Optimizer``.
        settings: its settings, besides the parameters.
        cosine: whether its rate falls to zero along half a cosine.
        averaged: whether it is evaluated at its averaged weights.
        rule: what a ``LearnedOptimizer`` steps by.
    """

    name: str
    class_path: str
    settings: dict[str, Any] = field(default_factory=dict)
    cosine: bool = False
    averaged: bool = False
    rule: UpdateRule | None = None

    @property
    def sees_loss(self) -> bool:
        """Whether ``step`` needs a closure."""
        return self.rule is not None and "loss" in self.rule.sees

    def make(self, network: nn.Module) -> Optimizer:
        """Makes the optimizer of a network's parameters.

        Raises:
            InvalidInputError: its class cannot be found, or it does not take the settings or the parameters.
        """
        try:
            if self.rule is not None:
                optimizer = LearnedOptimizer(network.named_parameters(), self.rule, **self.settings)
                optimizer.start()
                return optimizer
            own: Any = find_optimizer(self.class_path)(network.parameters(), **self.settings)
        except (TypeError, ValueError, ModuleNotFoundError) as error:
            raise InvalidInputError(
                f"benchmark has {self.name}, which cannot be used ({first_line(error)}): change its settings."
            ) from error
        if hasattr(own, "train"):
            own.train()
        return own

    def check(self) -> None:
        """Tries the optimizer for one step on a small network.

        Raises:
            InvalidInputError: it cannot be made, or its step fails, as one that needs a closure does.
        """
        network = nn.Linear(2, 2)
        optimizer = self.make(network)
        for p in network.parameters():
            p.grad = torch.ones_like(p)
        try:
            optimizer.step()
        except Exception as error:
            raise InvalidInputError(
                f"benchmark.rivals has {self.name}, whose step fails ({first_line(error)}): give an optimizer that "
                "needs nothing but dense gradients."
            ) from error

    def schedule(self, optimizer: Optimizer, steps: int) -> LambdaLR | None:
        """The schedule of its rate over a run."""
        if not self.cosine:
            return None
        return LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)

    @property
    def rate(self) -> float | None:
        """Its learning rate, given or the default of its class; None if it has none."""
        setting = signature(find_optimizer(self.class_path)).parameters.get("lr")
        return self.settings.get("lr", None if setting is None else setting.default)

    def with_rate(self, rate: float) -> "Candidate":
        """The same with another learning rate."""
        return replace(self, settings=self.settings | {"lr": rate})

    def depends_on(self) -> tuple[object, ...] | None:
        """What its runs depend on; None if the source of its class is unknown, as in a notebook."""
        source = source_of(self, find_optimizer(self.class_path), *([self.rule] if self.rule is not None else []))
        rule = settings_of(self.rule) if self.rule is not None else None
        settings = sorted(self.settings.items())
        package = version_of(self.class_path.partition(".")[0])
        return (self.class_path, package, settings, self.cosine, self.averaged, rule, source) if source else None


def version_of(package: str) -> str:
    """The version of an imported package; empty if it is not installed as one."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def candidate(rival: Rival) -> Candidate:
    """A rival as given."""
    return Candidate(rival.name, rival.optimizer, rival.settings, rival.cosine, rival.averaged)


def adam() -> Candidate:
    """Adam with the rate that everyone tries first; all losses are compared with its."""
    return Candidate("Adam 1e-3", "torch.optim.Adam", {"lr": 1e-3})


def learned(rule: UpdateRule, label: str) -> list[Candidate]:
    """A rule as it is, and with its steps scaled by a cosine, which knows the horizon."""
    rule = copy.deepcopy(rule).cpu().eval().requires_grad_(False)
    path = f"{LearnedOptimizer.__module__}.{LearnedOptimizer.__qualname__}"
    one = Candidate(label, path, rule=rule)
    return [one, replace(one, name=f"{label} × cosine", cosine=True)]
