"""The one optimization loop, which meta-training, validation, baselines and tests all run."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_l2l.episodes import Episodes
from lightning_l2l.rules import State, Tape, UpdateRule, fastest
from lightning_l2l.rules.base import full_precision

LAST = 10  # steps whose mean loss is called final


class Run(NamedTuple):
    """Where N runs stand after t steps: everything needed to continue."""

    step: int  # t
    theta: Tensor  # θ_t, [N, P]
    state: State  # h_t of the update rule
    loss: Tensor  # f(θ_t) on minibatch t, [N]
    grad: Tensor  # ∇_t, the gradient of that loss, [N, P]

    def seen_by(self, rule: UpdateRule | Tape) -> dict[str, Tensor]:
        """What a rule sees besides the gradient, by name."""
        return {name: getattr(self, name) for name in rule.sees}

    def detach(self) -> "Run":
        """Cuts the graph here: where one truncation ends and the next goes on with the same θ and state."""
        return pytree.tree_map_only(Tensor, Tensor.detach, self)


class Trajectory(NamedTuple):
    """A record of K steps from θ_t to θ_{t+K}, for the meta-gradient and for learning curves."""

    losses: Tensor  # f(θ_{t+1}) .. f(θ_{t+K}), [K, N]
    thetas: list[Tensor]  # θ_{t+1} .. θ_{t+K}, each [N, P]
    grads: list[Tensor]  # ∇_{t+1} .. ∇_{t+K}, each [N, P]
    update_sizes: Tensor  # root mean squares of g_t .. g_{t+K-1}, cut from the graph, [K]


def start(rule: UpdateRule, episodes: Episodes) -> Run:
    """Begins a run: the rule's θ_0, its first state, and the loss and gradient at θ_0."""
    theta = rule.start(episodes.theta)
    return Run(0, theta, rule.init(theta), *_evaluate(episodes, theta, 0))


def unroll(rule: UpdateRule | Tape, episodes: Episodes, run: Run, steps: int) -> tuple[Run, Trajectory]:
    """Takes K steps θ_{t+1} = θ_t + g_t, evaluating the loss and the gradient once after each.

    With gradients enabled, everything here is differentiable with respect to φ, through θ_t and ∇_t too.

    Args:
        rule: the update rule, or a tape of it that remembers its steps.
        episodes: what is optimized; asked for minibatches t+1 to t+K.
        run: where the runs stand.
        steps: K.

    Returns:
        Where the runs stand now, and what happened on the way.
    """
    losses, thetas, grads, sizes = [], [], [], []
    for _ in range(steps):
        with full_precision(run.theta):
            update, state = rule.update(run.grad, run.state, **run.seen_by(rule))
        theta = run.theta + update
        loss, grad = _evaluate(episodes, theta, run.step + 1)
        run = Run(run.step + 1, theta, state, loss, grad)
        losses.append(loss)
        thetas.append(theta)
        grads.append(grad)
        sizes.append(update.detach().square().mean().sqrt())
    return run, Trajectory(torch.stack(losses), thetas, grads, torch.stack(sizes))


def _evaluate(episodes: Episodes, theta: Tensor, step: int) -> tuple[Tensor, Tensor]:
    loss, grad = episodes.value_and_grad(theta, step)
    return loss.to(theta.dtype), grad.to(theta.dtype)


def learning_curves(rule: UpdateRule, episodes: Episodes, steps: int) -> Tensor:
    """Runs the whole horizon without a meta-gradient.

    Args:
        rule: the update rule.
        episodes: N episodes.
        steps: the horizon T.

    Returns:
        f(θ_0) .. f(θ_T) of every episode, [N, T + 1].
    """
    return optimize(rule, episodes, steps)[1]


def evaluate(rule: UpdateRule, episodes: Episodes, steps: int) -> tuple[Tensor, Tensor | None]:
    """As ``learning_curves``, and measures how well the ends of the runs classify.

    Returns:
        f(θ_0) .. f(θ_T) of every episode, [N, T + 1], and its accuracy at θ_T, [N], or None (see
        ``Episodes.accuracy``).
    """
    theta, curves = optimize(rule, episodes, steps)
    return curves, episodes.accuracy(theta)


def optimize(rule: UpdateRule, episodes: Episodes, steps: int) -> tuple[Tensor, Tensor]:
    """As ``learning_curves``, and keeps where the runs end.

    Returns:
        θ_T, [N, P], and f(θ_0) .. f(θ_T) of every episode, [N, T + 1].
    """
    losses = []
    for run in islice(runs(rule, episodes), steps + 1):
        losses.append(run.loss)
    return run.theta, torch.stack(losses, dim=1)


@torch.no_grad()
def runs(rule: UpdateRule, episodes: Episodes) -> Iterator[Run]:
    """Yields where the runs stand at t = 0, 1, ..., taking a step whenever the next one is requested.

    The next step may overwrite the ``state`` of the previous ``Run``; its other fields may be kept.

    Args:
        rule: the update rule.
        episodes: N episodes; their minibatches limit the number of steps.
    """
    rule = fastest(rule.bind(episodes.layout), episodes.theta)
    run = start(rule, episodes)
    stepper = rule.in_place()
    while True:
        yield run
        run, _ = unroll(stepper, episodes, run, 1)  # one step at a time, so that nothing is kept


def final_loss(curves: Tensor, last: int = LAST) -> Tensor:
    """Mean of the last ten steps, or another number of them, of curves [..., T + 1]; infinite if that is NaN."""
    return curves[..., 1:][..., -last:].mean(-1).nan_to_num(nan=torch.inf, posinf=torch.inf)
