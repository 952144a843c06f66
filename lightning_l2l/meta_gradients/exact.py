"""The exact meta-gradient of a truncation."""

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import require_positive
from lightning_l2l.meta_gradients.base import (
    MetaGradient,
    Plan,
    Truncation,
    constants,
    gradient_objective,
    refuse_once_differentiable,
    refuse_shared_phi,
    update_size,
)
from lightning_l2l.rules import UpdateRule
from lightning_l2l.rules.per_episode import PerEpisode
from lightning_l2l.unroll import Run, start, unroll


class Exact(MetaGradient):
    """Differentiates through ∇_t = ∇f(θ_t) and through the rule, without approximation.

    It needs a twice differentiable optimizee and memory for the graph of every step, and takes three to six times as
    long as first order on a CPU. In long truncations it explodes: the derivative of a learned rule's step with respect
    to a gradient is huge wherever the gradient changes sign (CIFAR-10: within 50 steps).

    Args:
        episode_clip: largest norm of each episode's own meta-gradient, which is scaled down to it before the mean over
            episodes is taken, so that no single episode decides a meta-step. Episodes whose meta-gradient is not finite
            are left out of the mean. null takes the mean of all, which costs less.
    """

    def __init__(self, episode_clip: float | None = None) -> None:
        if episode_clip is not None:
            require_positive("episode_clip", episode_clip)
        self.episode_clip = episode_clip

    def check(self, rule: UpdateRule, episodes: Episodes) -> None:
        refuse_once_differentiable("Exact", episodes)
        if self.episode_clip is not None:
            refuse_shared_phi("Exact with episode_clip", rule, episodes)

    def left_out(self, rule: UpdateRule) -> str:
        return constants(rule)

    def prepare(self, rule: UpdateRule, episodes: Episodes, plan: Plan) -> UpdateRule:
        """Returns the rule itself: autograd cannot differentiate its faster implementations."""
        return rule

    def start(self, rule: UpdateRule, episodes: Episodes) -> Run:
        """Begins N runs, whose first gradient may depend on φ where the rule learns the start."""
        if self.episode_clip is not None:
            rule = PerEpisode.of_rows(rule, one_row_each(rule, episodes))
        with torch.enable_grad():
            return start(rule, episodes)

    def truncation(self, rule: UpdateRule, episodes: Episodes, run: Run, plan: Plan) -> Truncation:
        if self.episode_clip is not None:
            return self._clipped(rule, episodes, run, plan, self.episode_clip)
        with torch.enable_grad():
            end, trajectory = unroll(rule, episodes, run, plan.unroll)
            objective = plan.loss(trajectory.losses, run.step, episodes).mean()
            if not objective.requires_grad:  # these steps do not count
                objective = objective + 0 * trajectory.losses.sum()
        size = update_size(trajectory)
        return Truncation(end.detach(), trajectory.losses.detach(), size, objective.detach(), objective)

    def _clipped(self, rule: UpdateRule, episodes: Episodes, run: Run, plan: Plan, largest: float) -> Truncation:
        """As ``truncation``, from the gradient of each episode's own copy of φ."""
        with torch.enable_grad():
            rows = one_row_each(rule, episodes).requires_grad_()
            own = PerEpisode.of_rows(rule, rows)
            run = start(own, episodes) if run.step == 0 else run  # again, as a function of these copies
            end, trajectory = unroll(own, episodes, run, plan.unroll)
            losses = plan.loss(trajectory.losses, run.step, episodes) + 0 * trajectory.losses.sum(0)
            (grads,) = torch.autograd.grad(losses.sum(), rows)
        with torch.no_grad():
            norms = grads.norm(dim=1, keepdim=True)
            finite = norms.isfinite()
            clipped = torch.where(finite, grads * (largest / norms).clamp(max=1), 0)
            meta_grad = clipped.sum(0) / finite.sum()  # NaN if there is none
            meta_loss = losses[finite[:, 0]].mean()
        objective = gradient_objective(rule, meta_grad)
        size = update_size(trajectory)
        return Truncation(end.detach(), trajectory.losses.detach(), size, meta_loss, objective, (~finite).sum())


def one_row_each(rule: UpdateRule, episodes: Episodes) -> Tensor:
    """A copy of φ for each episode, [N, D]."""
    return parameters_to_vector(rule.parameters()).detach().repeat(len(episodes), 1)
