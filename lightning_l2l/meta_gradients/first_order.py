"""The paper's meta-gradient."""

from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_l2l.episodes import Episodes
from lightning_l2l.meta_gradients.base import (
    MetaGradient,
    Plan,
    Truncation,
    constants,
    refuse_learned_state,
    start_gradients,
    update_size,
    with_objective,
)
from lightning_l2l.meta_gradients.recordings import Recordings
from lightning_l2l.rules import UpdateRule
from lightning_l2l.rules.base import full_precision
from lightning_l2l.rules.fast import machine
from lightning_l2l.unroll import Run, unroll


class Steps(NamedTuple):
    """A truncation as plain tensors, with no graph behind them."""

    run: Run  # where the runs stand after K steps
    losses: Tensor  # f(θ_{t+1}) .. f(θ_{t+K}), [K, N]
    update_size: Tensor  # root mean square of the updates, []
    meta_loss: Tensor  # []
    meta_grads: list[Tensor]  # ∂L/∂φ, one tensor for every parameter of the rule


class FirstOrder(MetaGradient):
    """Takes ∇_t as independent of φ (arXiv:1606.04474, section 2): exact except for the loss's second derivatives.

    No second backward pass through the optimizee is needed. The gradient ∇_s that is fed to the rule is also
    ∂f(θ_s)/∂θ_s, and θ_s is θ_t plus the updates between them, so ∂L/∂g_t = G_t = Σ_{s>t} w_s ∇_s, a suffix sum of
    gradients already at hand, and ∂L/∂φ = Σ_t ⟨G_t, ∂g_t/∂φ⟩: the gradient of Σ_t ⟨G_t, g_t⟩ with G_t held constant.
    w_s is the derivative of the meta-loss with respect to f(θ_s), the weight of step s in a weighted sum. If a rule
    learns the start of a run, G_0 is the derivative with respect to that start.

    On a GPU each truncation of the horizon is recorded once and launched as a whole from then on (``recordings``).
    """

    def __init__(self) -> None:
        self.recordings: Recordings | None = None

    def check(self, rule: UpdateRule, episodes: Episodes) -> None:
        refuse_learned_state("FirstOrder", rule, episodes)

    def left_out(self, rule: UpdateRule) -> str:
        return constants(rule, "the gradients", *(f"the {name} that the rule sees" for name in rule.sees))

    def release(self) -> None:
        self.recordings = None

    def truncation(self, rule: UpdateRule, episodes: Episodes, run: Run, plan: Plan) -> Truncation:
        if run.theta.is_cuda and machine.compiled() and self.recordings is None:
            self.recordings = Recordings(first_order_steps)
        steps = (self.recordings or first_order_steps)(rule, episodes, run, plan)
        objective = with_objective(rule, steps.meta_grads)
        return Truncation(steps.run.detach(), steps.losses, steps.update_size, steps.meta_loss, objective)


@torch.no_grad()
def first_order_steps(rule: UpdateRule, episodes: Episodes, run: Run, plan: Plan) -> Steps:
    """Takes the next K steps and backpropagates through the rule in them."""
    tape = rule.tape(run.theta, plan.unroll)
    end, trajectory = unroll(tape, episodes, run, plan.unroll)
    weights = plan.weights(trajectory.losses, run.step, episodes)
    with full_precision(run.theta):
        cotangents = suffix_sums(trajectory.grads, weights)
        meta_grads = tape.backward(cotangents)
        if run.step == 0 and (of_start := start_gradients(rule, episodes, cotangents[0])):
            meta_grads = [grad + other for grad, other in zip(meta_grads, of_start, strict=True)]
    meta_loss = plan.loss(trajectory.losses, run.step, episodes).mean()
    return Steps(end, trajectory.losses, update_size(trajectory), meta_loss, meta_grads)


def suffix_sums(grads: list[Tensor], weights: Tensor) -> list[Tensor]:
    """Returns G_t = Σ_{s>t} w_s ∇_s for every step, in order; weights are [K, N]."""
    weighted = (weight[:, None] * grad for weight, grad in zip(weights.flip(0), reversed(grads), strict=True))
    return list(accumulate(weighted, torch.add))[::-1]
