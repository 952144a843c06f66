"""Evolution strategies: meta-gradients from losses alone, without derivatives of the rule or the optimizee."""

from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from torch.utils import _pytree as pytree

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import require_positive
from lightning_l2l.meta_gradients.base import (
    MetaGradient,
    Plan,
    Truncation,
    gradient_objective,
    refuse_shared_phi,
)
from lightning_l2l.rules import State, UpdateRule
from lightning_l2l.rules.base import full_precision
from lightning_l2l.rules.per_episode import PerEpisode
from lightning_l2l.unroll import Run, start, unroll


class Perturbed(NamedTuple):
    """The state of M antithetic pairs of runs: first the M with φ + ε, then those with φ − ε."""

    state: State  # h_t of the update rule, for 2M runs
    noise: Tensor  # what the losses so far were credited to, [M, D]


class Evolution(MetaGradient):
    """Compares runs with φ + ε and with φ − ε on the same episode, where ε ~ N(0, σ²) differs from pair to pair.

    The estimate is the mean of (L⁺ − L⁻) ξ / 2σ² over all pairs. Estimators differ in the noise ε of a truncation
    and in the ξ that its losses are credited to. They estimate the gradient of the smoothed meta-loss E[L(φ + ε)] and
    need no derivatives, so that neither long runs nor rough rules make them explode. Their noise grows with the number
    of parameters. All runs lie side by side in one batch, 2 · N · ``pairs`` of them.

    Pairs in which a loss is not finite are left out of the estimate. A diverged run stays that way, so give a meta-loss
    that is finite for it (``LogLoss``, ``Regret``) if the rule should learn not to diverge. The runs of a pair have the
    same minibatches, but dropout of their own, which adds noise.

    Args:
        sigma: σ, the standard deviation of each perturbation of φ.
        pairs: antithetic pairs of each episode, every one with an ε of its own.
    """

    def __init__(self, sigma: float = 0.03, pairs: int = 1) -> None:
        require_positive("sigma", sigma)
        require_positive("pairs", pairs)
        self.sigma = sigma
        self.pairs = pairs
        self.seed: int | None = None
        self.drawn = 0  # batches of noise

    def check(self, rule: UpdateRule, episodes: Episodes) -> None:
        self.seed = torch.initial_seed()  # of the whole run; each meta-batch has another
        refuse_shared_phi(type(self).__name__, rule, episodes)

    def prepare(self, rule: UpdateRule, episodes: Episodes, plan: Plan) -> UpdateRule:
        """Returns the rule itself: its faster implementations share φ between the episodes."""
        return rule

    @torch.no_grad()
    def start(self, rule: UpdateRule, episodes: Episodes) -> Run:
        """Begins the runs of all pairs, with the noise of their first truncation."""
        noise = self.draw(len(episodes) * self.pairs, parameters_to_vector(rule.parameters()))
        run = start(perturbed(rule, noise), self._side_by_side(episodes))
        return run._replace(state=Perturbed(run.state, noise))

    def truncation(self, rule: UpdateRule, episodes: Episodes, run: Run, plan: Plan) -> Truncation:
        with torch.no_grad():
            state, before = run.state
            noise, credited = (before, before) if run.step == 0 else self.noise(before)
            copies = self._side_by_side(episodes)
            own = run._replace(state=state)
            end, curves, size = losses_only(perturbed(rule, noise), copies, own, plan.unroll)
            losses = plan.loss(curves, run.step, copies).view(2, -1)
            finite = losses.isfinite().all(0)
            with full_precision(noise):
                differences = torch.where(finite, losses[0] - losses[1], 0)
                estimate = differences @ credited / (2 * self.sigma**2 * finite.sum())  # NaN if no pair is finite
            end = self.carry(end)
            end = end._replace(state=Perturbed(end.state, credited))
            meta_loss = losses[:, finite].mean()
        objective = gradient_objective(rule, estimate)
        return Truncation(end, curves, size, meta_loss, objective, (~finite).sum())

    @abstractmethod
    def noise(self, before: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the noise ε of a run's next truncation, and ξ, which its losses are credited to, each [M, D].

        Args:
            before: what the last truncation's losses were credited to, [M, D]; in a run's first one, that is its ε.
        """

    def carry(self, run: Run) -> Run:
        """Returns where the rule goes on in the next truncation, by default where each of the 2M runs stands."""
        return run

    def draw(self, count: int, like: Tensor) -> Tensor:
        """Draws fresh noise, [count, D]; different in every process, and the same whatever else is drawn.

        Args:
            count: rows.
            like: a vector [D] with the type and device.
        """
        if self.seed is None:
            self.seed = torch.initial_seed()
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        source = np.random.SeedSequence(self.seed, spawn_key=(rank, self.drawn))
        self.drawn += 1
        normal = np.random.default_rng(source).standard_normal((count, len(like)), dtype=np.float32)
        return self.sigma * torch.from_numpy(normal).to(like)

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "drawn": self.drawn} if self.drawn else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.seed, self.drawn = state["seed"], state["drawn"]

    def _side_by_side(self, episodes: Episodes) -> Episodes:
        return episodes.repeat(2 * self.pairs)


class ES(Evolution):
    """Evolution strategies with fresh noise in every truncation (arXiv:1703.03864).

    Unbiased if a truncation is the whole run (``unroll`` equal to the horizon). Otherwise it is blind to what a
    truncation's steps do to later ones, like every truncated meta-gradient. Both runs of a pair go on from where the
    one with φ + ε stands, so that all of their next difference comes from their next noise.
    """

    def noise(self, before: Tensor) -> tuple[Tensor, Tensor]:
        fresh = self.draw(len(before), before[0])
        return fresh, fresh

    def carry(self, run: Run) -> Run:
        return pytree.tree_map_only(Tensor, first_half_twice, run)


class PES(Evolution):
    """Persistent evolution strategies (arXiv:2112.13835): the losses are credited to all noise since the run began.

    Fresh noise in every truncation; unbiased over a run's truncations, but its variance may grow with their number.
    """

    def noise(self, before: Tensor) -> tuple[Tensor, Tensor]:
        fresh = self.draw(len(before), before[0])
        return fresh, before + fresh


class NRES(Evolution):
    """Noise-reuse evolution strategies (arXiv:2304.12180): a run keeps one noise in all of its truncations.

    Unbiased over a run's truncations, and in its paper's experiments less noisy than ``PES``.
    """

    def noise(self, before: Tensor) -> tuple[Tensor, Tensor]:
        return before, before


def perturbed(rule: UpdateRule, noise: Tensor) -> PerEpisode:
    """The rule with φ + ε in the first M episodes and φ − ε in the other M, for ε [M, D]."""
    phi = parameters_to_vector(rule.parameters())
    return PerEpisode.of_rows(rule, torch.cat([phi + noise, phi - noise]))


def losses_only(rule: UpdateRule, episodes: Episodes, run: Run, steps: int) -> tuple[Run, Tensor, Tensor]:
    """Takes K steps as ``unroll`` does, without keeping the θ and gradients of whole runs in memory.

    Returns:
        Where the runs stand now, f(θ_{t+1}) .. f(θ_{t+K}), [K, N], and the root mean square of the updates, [].
    """
    losses, sizes = [], []
    for _ in range(steps):
        run, trajectory = unroll(rule, episodes, run, 1)
        losses.append(trajectory.losses)
        sizes.append(trajectory.update_sizes)
    return run, torch.cat(losses), torch.cat(sizes).square().mean().sqrt()


def first_half_twice(tensor: Tensor) -> Tensor:
    """Puts the first half of [2M, ...] in place of the second."""
    half = tensor[: len(tensor) // 2]
    return torch.cat([half, half])
