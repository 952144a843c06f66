"""How ∂L/∂φ is had from an unroll.

Each function takes K steps and returns an objective whose gradient with respect to φ is that of the meta-loss
L(φ) = mean over episodes of Σ_t w_t f(θ_t), so that the caller decides when and how (DDP, precision) to go backward.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_l2l.linear_response import impulse_response
from lightning_l2l.rules import UpdateRule
from lightning_l2l.unroll import Optimizees, Run, Trajectory, full_precision, unroll


class Truncation(NamedTuple):
    run: Run  # where the runs stand after K steps, cut from the graph
    losses: Tensor  # f(θ_{t+1}) .. f(θ_{t+K}), [K, N], cut from the graph
    update_size: Tensor  # root mean square of the updates, []
    objective: Tensor  # [], call backward on it


class Steps(NamedTuple):
    run: Run  # where the runs stand after K steps
    losses: Tensor  # f(θ_{t+1}) .. f(θ_{t+K}), [K, N]
    update_size: Tensor  # root mean square of the updates, []
    meta_grads: list[Tensor]  # ∂L/∂φ, one tensor for every parameter of the rule


MetaGradient = Callable[[UpdateRule, Optimizees, Run, Tensor], Truncation]


def first_order(rule: UpdateRule, episodes: Optimizees, run: Run, weights: Tensor) -> Truncation:
    """The paper's meta-gradient, which takes ∇_t as independent of φ (arXiv:1606.04474, section 2).

    No second backward pass through the optimizee is needed. The gradient ∇_s that is fed to the rule is also
    ∂f(θ_s)/∂θ_s, and θ_s is θ_t plus the updates between them, so ∂L/∂g_t = G_t = Σ_{s>t} w_s ∇_s, a suffix sum of
    gradients already at hand, and ∂L/∂φ = Σ_t ⟨G_t, ∂g_t/∂φ⟩: the gradient of Σ_t ⟨G_t, g_t⟩ with G_t held constant.

    Args:
        rule: the update rule, whose parameters are φ.
        episodes: N episodes.
        run: where the runs stand.
        weights: w_{t+1} .. w_{t+K} of the losses, [K].
    """
    return with_objective(rule, first_order_steps(rule, episodes, run, weights))


@torch.no_grad()
def first_order_steps(rule: UpdateRule, episodes: Optimizees, run: Run, weights: Tensor) -> Steps:
    """The same as plain tensors, with no graph behind them."""
    tape = rule.tape(run.theta, len(weights))
    end, trajectory = unroll(tape, episodes, run, len(weights))
    with full_precision(run.theta):
        meta_grads = tape.backward(suffix_sums(trajectory.grads, weights / len(end.loss)))
    return Steps(end, trajectory.losses, _size(trajectory), meta_grads)


def suffix_sums(grads: list[Tensor], weights: Tensor) -> list[Tensor]:
    """Returns G_t = Σ_{s>t} w_s ∇_s of every step, in the steps' order."""
    weighted = (weight * grad for weight, grad in zip(weights.flip(0), reversed(grads), strict=True))
    return list(accumulate(weighted, torch.add))[::-1]


def with_objective(rule: UpdateRule, steps: Steps) -> Truncation:
    """Gives the steps an objective whose gradient is ``meta_grads``.

    A function linear in φ has the wanted gradient, and lets DDP's hooks see a backward pass through every parameter.
    """
    terms = [(grad * phi).sum() for grad, phi in zip(steps.meta_grads, rule.parameters(), strict=True)]
    return Truncation(steps.run.detach(), steps.losses, steps.update_size, torch.stack(terms).sum())


def exact(rule: UpdateRule, episodes: Optimizees, run: Run, weights: Tensor) -> Truncation:
    """The exact meta-gradient of the truncation, through ∇_t = ∇f(θ_t) as well.

    Needs an optimizee that is twice differentiable, and memory for the graph of every step of it.

    Args:
        rule: the update rule, whose parameters are φ.
        episodes: N episodes.
        run: where the runs stand.
        weights: w_{t+1} .. w_{t+K} of the losses, [K].
    """
    end, trajectory = unroll(rule, episodes, run, len(weights))
    objective = (weights @ trajectory.losses).mean()
    return Truncation(end.detach(), trajectory.losses.detach(), _size(trajectory), objective)


def linearized(rule: UpdateRule, episodes: Optimizees, run: Run, weights: Tensor, hessian_every: int = 1) -> Truncation:
    """The meta-gradient of second order of a rule that is taken to answer gradients linearly.

    A step's cotangent G_t = ∂L/∂θ_{t+1} has, beside what ``first_order`` sums up, the part that θ_{t+1} has in later
    steps by way of ∇_{t+1}: the Hessian of f at θ_{t+1} times Σ_k a_k G_{t+1+k}, where a is the rule's impulse
    response in the truncation. The rule's own dependence on φ is taken as it is. In a run's first truncation this is
    exact where g_t = Σ_k a_k ∇_{t-k}, as of gradient descent with momentum.

    Args:
        rule: the update rule, whose parameters are φ.
        episodes: N episodes of a twice differentiable optimizee.
        run: where the runs stand.
        weights: w_{t+1} .. w_{t+K} of the losses, [K].
        hessian_every: steps between two Hessians; one serves for the steps after it up to the next, too.
    """
    with torch.no_grad():
        tape = rule.tape(run.theta, len(weights))
        end, trajectory = unroll(tape, episodes, run, len(weights))
        cotangents = _linear_cotangents(episodes, run, trajectory, weights / len(end.loss), hessian_every)
        with full_precision(run.theta):
            meta_grads = tape.backward(cotangents)
    return with_objective(rule, Steps(end, trajectory.losses, _size(trajectory), meta_grads))


def _linear_cotangents(
    episodes: Optimizees, run: Run, trajectory: Trajectory, weights: Tensor, hessian_every: int
) -> list[Tensor]:
    with full_precision(run.theta):
        updates = torch.stack([run.theta, *trajectory.thetas]).diff(dim=0)
        response = impulse_response(torch.stack([run.grad, *trajectory.grads[:-1]]), updates, episodes.layout)
    cotangents: list[Tensor] = []  # the latest step's first
    cotangent, pending = torch.zeros_like(run.theta), torch.zeros_like(run.theta)
    longest = torch.zeros_like(run.theta[:, :1])
    for step in reversed(range(len(weights))):
        for answer, later in zip(response, reversed(cotangents), strict=False):
            pending.addcmul_(answer, later)
        if step % hessian_every == 0 and cotangents:
            product = episodes.hessian_product(trajectory.thetas[step], run.step + step + 1, pending)
            cotangent = cotangent + product * _damping(cotangent, product, longest)
            pending.zero_()
        own = weights[step] * trajectory.grads[step]
        cotangent = cotangent + own
        longest = longest + own.norm(dim=1, keepdim=True)
        cotangents.append(cotangent)
    return cotangents[::-1]


def _damping(cotangent: Tensor, product: Tensor, longest: Tensor) -> Tensor:
    """1, or for an episode whose cotangent would become longer than ``longest`` what makes it shortest; [N, 1].

    Later gradients correct an update, so that the effect of every ∇_s on the steps before it fades, and a cotangent is
    no longer than all of them, end to end. Where steps are large against the curvature, a linear answer would
    overshoot, more with each step back, while the rule's own steps do not.
    """
    shortest = -(cotangent * product).sum(1, keepdim=True) / product.square().sum(1, keepdim=True)
    too_long = (cotangent + product).norm(dim=1, keepdim=True) > longest
    return torch.where(too_long, shortest.clamp(0, 1), 1.0)


def _size(trajectory: Trajectory) -> Tensor:
    return trajectory.update_sizes.square().mean().sqrt()
