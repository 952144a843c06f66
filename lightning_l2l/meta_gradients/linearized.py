"""A second-order meta-gradient for long truncations."""

import torch
from torch import Tensor

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import InvalidInputError, require_positive
from lightning_l2l.meta_gradients.base import (
    MetaGradient,
    Plan,
    Truncation,
    constants,
    refuse_learned_state,
    refuse_once_differentiable,
    update_size,
    with_objective,
)
from lightning_l2l.meta_gradients.linear_response import impulse_response
from lightning_l2l.rules import UpdateRule
from lightning_l2l.rules.base import full_precision
from lightning_l2l.unroll import Run, Trajectory, unroll


class Linearized(MetaGradient):
    """Differentiates through ∇_t = ∇f(θ_t), with the rule replaced by the closest linear filter.

    Besides ``FirstOrder``'s sum, a step's cotangent G_t = ∂L/∂θ_{t+1} contains θ_{t+1}'s effect on later steps through
    ∇_{t+1}: the Hessian of f at θ_{t+1} times Σ_k a_k G_{t+1+k}, where a is the rule's impulse response in the
    truncation (``linear_response``). The rule's direct dependence on φ is exact. In a run's first truncation the whole
    estimate is nearly exact if g_t = Σ_k a_k ∇_{t-k}, as in gradient descent with momentum: the fitted filter is short
    and slightly damped. Truncations may be long, and then teach what pays off late: with a kernel they keep only θ and
    ∇ of a step.

    Args:
        hessian_every: steps between two Hessians; each also serves for the steps up to the next one. Fewer Hessians are
            faster and less exact.
    """

    def __init__(self, hessian_every: int = 1) -> None:
        require_positive("hessian_every", hessian_every)
        self.hessian_every = hessian_every

    def check(self, rule: UpdateRule, episodes: Episodes) -> None:
        refuse_once_differentiable("Linearized", episodes)
        refuse_learned_state("Linearized", rule, episodes)
        with torch.enable_grad():
            if rule.start(episodes.theta).requires_grad:
                raise InvalidInputError(
                    f"model.stages has the meta-gradient Linearized, but {rule.label} learns where runs start, which "
                    "it leaves out: take lightning_l2l.meta_gradients.Exact or FirstOrder."
                )

    def left_out(self, rule: UpdateRule) -> str:
        seen = (f"the {name} that the rule sees" for name in rule.sees)
        return constants(rule, "whatever in the rule is not linear in its gradients", *seen)

    def truncation(self, rule: UpdateRule, episodes: Episodes, run: Run, plan: Plan) -> Truncation:
        with torch.no_grad():
            tape = rule.tape(run.theta, plan.unroll)
            end, trajectory = unroll(tape, episodes, run, plan.unroll)
            weights = plan.weights(trajectory.losses, run.step, episodes)
            cotangents = self._cotangents(episodes, run, trajectory, weights)
            with full_precision(run.theta):
                meta_grads = tape.backward(cotangents)
            meta_loss = plan.loss(trajectory.losses, run.step, episodes).mean()
        size = update_size(trajectory)
        return Truncation(end.detach(), trajectory.losses, size, meta_loss, with_objective(rule, meta_grads))

    def _cotangents(self, episodes: Episodes, run: Run, trajectory: Trajectory, weights: Tensor) -> list[Tensor]:
        with full_precision(run.theta):
            updates = torch.stack([run.theta, *trajectory.thetas]).diff(dim=0)
            response = impulse_response(torch.stack([run.grad, *trajectory.grads[:-1]]), updates, episodes.layout)
        cotangents: list[Tensor] = []  # latest step first
        cotangent, pending = torch.zeros_like(run.theta), torch.zeros_like(run.theta)
        longest = torch.zeros_like(run.theta[:, :1])
        for step in reversed(range(len(weights))):
            for answer, later in zip(response, reversed(cotangents), strict=False):
                pending.addcmul_(answer, later)
            if step % self.hessian_every == 0 and cotangents:
                product = episodes.hessian_product(trajectory.thetas[step], run.step + step + 1, pending)
                cotangent = cotangent + product * _damping(cotangent, product, longest)
                pending.zero_()
            own = weights[step][:, None] * trajectory.grads[step]
            cotangent = cotangent + own
            longest = longest + own.norm(dim=1, keepdim=True)
            cotangents.append(cotangent)
        return cotangents[::-1]


def _damping(cotangent: Tensor, product: Tensor, longest: Tensor) -> Tensor:
    """The factor of ``product``: 1, or the one that makes the cotangent shortest if 1 would exceed ``longest``; [N, 1].

    Later gradients correct an update, so the effect of each ∇_s on the steps before it fades: a cotangent's norm is at
    most the sum of their norms. Where steps are large for the curvature, a linear filter would overshoot, more with
    each step back, while the rule itself does not.
    """
    shortest = -(cotangent * product).sum(1, keepdim=True) / product.square().sum(1, keepdim=True)
    too_long = (cotangent + product).norm(dim=1, keepdim=True) > longest
    return torch.where(too_long, shortest.nan_to_num(0).clamp(0, 1), 1.0)  # 0 / 0 where the product is zero
