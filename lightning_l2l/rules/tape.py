"""K steps of a rule, remembered so that the meta-gradient can go back through them."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning_l2l.rules.base import State, UpdateRule


class Tape:
    """Runs a rule on gradients that are taken as constants, and goes backward by autograd.

    Args:
        rule: the update rule, whose parameters are φ.
    """

    def __init__(self, rule: "UpdateRule") -> None:
        self.rule = rule
        self.updates: list[Tensor] = []

    def update(self, grad: Tensor, state: "State") -> tuple[Tensor, "State"]:
        """As the rule's ``update``; the step returned is cut from the graph.

        Args:
            grad: ∇_t, [N, P].
            state: where the run starts, the first time; then what the last call returned, which a tape may reuse.
        """
        with torch.enable_grad():
            update, state = self.rule.update(grad, state)
        self.updates.append(update)
        return update.detach(), state

    def backward(self, cotangents: list[Tensor]) -> list[Tensor]:
        """Computes Σ_t ⟨G_t, ∂g_t/∂φ⟩ for every parameter of the rule; to be called once.

        Args:
            cotangents: G_t .. G_{t+K-1}, the meta-loss's derivatives by the steps, each [N, P].

        Returns:
            One tensor for every parameter, in the order of ``rule.parameters()``.
        """
        parameters = list(self.rule.parameters())
        if not parameters:  # a hand-designed rule among a group's learned ones
            return []
        grads = torch.autograd.grad(self.updates, parameters, cotangents, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
