"""Estimators of the meta-gradient ∂L/∂φ, and what they share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import InvalidInputError, first_line
from lightning_l2l.meta_losses import MetaLoss
from lightning_l2l.rules import UpdateRule, fastest
from lightning_l2l.rules.per_episode import PerEpisode
from lightning_l2l.unroll import Run, Trajectory, start, unroll


class Plan(NamedTuple):
    """How runs are cut into truncations, and how their losses are weighted."""

    meta_loss: MetaLoss
    horizon: int  # T, steps of a run
    unroll: int  # K, steps between two meta-steps

    def loss(self, losses: Tensor, step: int, episodes: Episodes) -> Tensor:
        """What losses [K, N] after step t add to each episode's meta-loss, [N]."""
        return self.meta_loss(losses, step, self.horizon, episodes.reference(step, len(losses)))

    def weights(self, losses: Tensor, step: int, episodes: Episodes) -> Tensor:
        """Derivatives of the episodes' mean meta-loss with respect to their losses [K, N], [K, N]."""
        with torch.enable_grad():
            losses = losses.detach().requires_grad_()
            total = self.loss(losses, step, episodes).mean()
            if not total.requires_grad:  # these steps do not count
                return torch.zeros_like(losses)
            (weights,) = torch.autograd.grad(total, losses)
        return weights


class Truncation(NamedTuple):
    """The result of K steps."""

    run: Run  # where the runs stand after them, cut from the graph
    losses: Tensor  # f(θ_{t+1}) .. f(θ_{t+K}) of all runs, [K, N] or more, cut from the graph
    update_size: Tensor  # root mean square of the updates, []
    meta_loss: Tensor  # what they add to the meta-loss, mean over episodes, [], cut from the graph
    objective: Tensor  # []; its gradient with respect to φ is the estimate
    dropped: int | Tensor = 0  # episodes, or pairs of them, left out of the estimate since they were not finite


class MetaGradient(ABC):
    """An estimator of the meta-gradient ∂L/∂φ, where L(φ) is the mean of the episodes' meta-losses.

    A subclass writes ``truncation``. It returns an objective whose gradient with respect to φ is the estimate, so that
    the learner decides when and how (DDP, precision) to run the backward pass. What an estimator needs in a run's next
    truncation it puts into the run's state, beside the rule's. What it keeps otherwise it puts into ``state_dict``, so
    that a resumed run continues exactly.
    """

    def check(self, rule: UpdateRule, episodes: Episodes) -> None:
        """Refuses, before training, a rule or an optimizee that it cannot serve.

        Args:
            rule: the update rule, bound to the episodes' layout.
            episodes: one episode.

        Raises:
            InvalidInputError: says why.
        """
        return

    def left_out(self, rule: UpdateRule) -> str:
        """Describes what it treats as constant although it depends on φ; logged before training."""
        return ""

    def prepare(self, rule: UpdateRule, episodes: Episodes, plan: Plan) -> UpdateRule:
        """Returns the bound rule in the form in which it runs; by default the fastest one."""
        return fastest(rule, episodes.theta, plan.unroll)

    def start(self, rule: UpdateRule, episodes: Episodes) -> Run:
        """Begins N runs."""
        with torch.no_grad():
            return start(rule, episodes)

    @abstractmethod
    def truncation(self, rule: UpdateRule, episodes: Episodes, run: Run, plan: Plan) -> Truncation:
        """Takes the next K steps.

        Args:
            rule: the update rule as ``prepare`` returned it, whose parameters are φ.
            episodes: N episodes.
            run: where the runs stand.
            plan: K, the horizon and the meta-loss.
        """

    def truncations(self, rule: UpdateRule, episodes: Episodes, plan: Plan) -> Iterator[Truncation]:
        """Yields one truncation for each meta-step of a meta-batch; by default all truncations of its runs, in order.

        An estimator whose runs outlive a meta-batch (staggered starts) keeps them itself and decides what to yield.

        Args:
            rule: the update rule.
            episodes: N fresh episodes.
            plan: K, the horizon and the meta-loss.
        """
        rule = self.prepare(rule.bind(episodes.layout), episodes, plan)
        run = self.start(rule, episodes)
        while run.step < plan.horizon:
            truncation = self.truncation(rule, episodes, run, plan)
            run = truncation.run
            yield truncation
            del truncation  # and its graph, which must not exist when the next steps are recorded for a GPU

    def release(self) -> None:
        """Frees memory when a stage with this meta-gradient ends."""
        return

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: tensors, numbers, strings, and lists and dictionaries of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what a checkpoint kept."""
        return


def with_objective(rule: UpdateRule, meta_grads: list[Tensor]) -> Tensor:
    """Returns an objective whose gradient with respect to each parameter of the rule is the given one.

    A function linear in φ has the wanted gradient, and lets DDP's hooks see a backward pass through every parameter.
    """
    return torch.stack([(grad * phi).sum() for grad, phi in zip(meta_grads, rule.parameters(), strict=True)]).sum()


def update_size(trajectory: Trajectory) -> Tensor:
    """Root mean square of all updates, []."""
    return trajectory.update_sizes.square().mean().sqrt()


def constants(rule: UpdateRule, *others: str) -> str:
    """The rule's own constants and others, in the words of ``MetaGradient.left_out``."""
    return ", ".join((*others, *rule.constants))


def gradient_objective(rule: UpdateRule, meta_grad: Tensor) -> Tensor:
    """As ``with_objective``, for a gradient laid out as ``torch.nn.utils.parameters_to_vector`` does, [D]."""
    return (meta_grad * torch.nn.utils.parameters_to_vector(rule.parameters())).sum()


def start_gradients(rule: UpdateRule, episodes: Episodes, cotangent: Tensor) -> list[Tensor] | None:
    """Returns ⟨∂L/∂θ_0, ∂θ_0/∂φ⟩ for every parameter of a rule that learns where runs start, else None.

    Args:
        rule: the update rule.
        episodes: N episodes.
        cotangent: ∂L/∂θ_0, [N, P].
    """
    parameters = list(rule.parameters())
    with torch.enable_grad():
        theta = rule.start(episodes.theta)
        if not theta.requires_grad:
            return None
        grads = torch.autograd.grad(theta, parameters, cotangent, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]


def refuse_learned_state(name: str, rule: UpdateRule, episodes: Episodes) -> None:
    """Refuses a rule whose first state depends on φ, for an estimator that takes it as constant.

    Raises:
        InvalidInputError: says so.
    """
    with torch.enable_grad():
        leaves = torch.utils._pytree.tree_leaves(rule.init(episodes.theta))
    if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves):
        raise InvalidInputError(
            f"model.stages has the meta-gradient {name}, which takes a run's first state as constant, but that of "
            f"{rule.label} is learned: take lightning_l2l.meta_gradients.Exact."
        )


def refuse_shared_phi(name: str, rule: UpdateRule, episodes: Episodes) -> None:
    """Refuses a rule that cannot run with φ of its own in every episode.

    Raises:
        InvalidInputError: says so.
    """
    own = PerEpisode(rule, {key: phi.detach()[None] for key, phi in rule.named_parameters()})
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            unroll(own, episodes, start(own, episodes), 1)
    except RuntimeError as error:
        raise InvalidInputError(
            f"model.stages has the meta-gradient {name}, but {rule.label} cannot run with parameters of its own in "
            f"each episode ({first_line(error)}): avoid what torch.func.vmap cannot batch, or set "
            "takes_phi_per_episode."
        ) from error


def refuse_once_differentiable(name: str, episodes: Episodes) -> None:
    """Refuses an optimizee without second derivatives before training, not after the first epochs.

    Raises:
        InvalidInputError: says so.
    """
    theta = episodes.theta.clone().requires_grad_()
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():  # dropout must not change later draws
            episodes.value_and_grad(theta, 0)[1].square().sum().backward()
    except RuntimeError as error:
        raise InvalidInputError(
            f"model.stages has the meta-gradient {name}, but the optimizee cannot be differentiated twice "
            f"({first_line(error)}): take lightning_l2l.meta_gradients.FirstOrder."
        ) from error
