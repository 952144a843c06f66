"""The exact meta-gradient of a truncation."""

import torch

from lightning_l2l.episodes import Episodes
from lightning_l2l.meta_gradients.base import (
    MetaGradient,
    Plan,
    Truncation,
    constants,
    refuse_once_differentiable,
    update_size,
)
from lightning_l2l.rules import UpdateRule
from lightning_l2l.unroll import Run, start, unroll


class Exact(MetaGradient):
    """Differentiates through ∇_t = ∇f(θ_t) and through the rule, without approximation.

    It needs a twice differentiable optimizee and memory for the graph of every step, and takes three to six times as
    long as first order on a CPU. In long truncations it explodes: the derivative of a learned rule's step with respect
    to a gradient is huge wherever the gradient changes sign (CIFAR-10: within 50 steps).
    """

    def check(self, rule: UpdateRule, episodes: Episodes) -> None:
        refuse_once_differentiable("Exact", episodes)

    def left_out(self, rule: UpdateRule) -> str:
        return constants(rule)

    def prepare(self, rule: UpdateRule, episodes: Episodes, plan: Plan) -> UpdateRule:
        """Returns the rule itself: autograd cannot differentiate its faster implementations."""
        return rule

    def start(self, rule: UpdateRule, episodes: Episodes) -> Run:
        """Begins N runs, whose first gradient may depend on φ where the rule learns the start."""
        with torch.enable_grad():
            return start(rule, episodes)

    def truncation(self, rule: UpdateRule, episodes: Episodes, run: Run, plan: Plan) -> Truncation:
        with torch.enable_grad():
            end, trajectory = unroll(rule, episodes, run, plan.unroll)
            objective = plan.loss(trajectory.losses, run.step, episodes).mean()
            if not objective.requires_grad:  # these steps do not count
                objective = objective + 0 * trajectory.losses.sum()
        size = update_size(trajectory)
        return Truncation(end.detach(), trajectory.losses.detach(), size, objective.detach(), objective)
