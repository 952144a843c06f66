"""A fork's new meta-gradient lives in one file, with a YAML; the package is not touched."""

from pathlib import Path
from typing import Any

import torch
from forks import QUADRATICS, checkpoint, train_race_kill_and_resume
from test_forking_rule import LearnedMomentum
from torch import Tensor

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.meta_gradients import Exact, MetaGradient, Plan, Truncation
from lightning_l2l.meta_gradients.base import update_size, with_objective
from lightning_l2l.meta_gradients.kept_runs import pack, unpack
from lightning_l2l.meta_losses import WeightedSum
from lightning_l2l.optimizees import Quadratics
from lightning_l2l.rules import UpdateRule
from lightning_l2l.rules.per_episode import PerEpisode
from lightning_l2l.unroll import Run, unroll


class PersistentEvolution(MetaGradient):
    """PES (arXiv:2112.13835): antithetic pairs of φ side by side, each with the sum of its perturbations so far.

    A meta-batch takes one truncation, so that runs outlive it; fresh episodes are taken up when runs have ended.

    Args:
        pairs: of φ + ε and φ - ε.
        sigma: standard deviation of ε.
    """

    def __init__(self, pairs: int = 16, sigma: float = 0.05) -> None:
        self.pairs, self.sigma = pairs, sigma
        self.drawn = 0  # truncations
        self.sums: Tensor | None = None  # of the perturbations of each pair, [pairs, D]
        self.episodes: Episodes | None = None
        self.run: Run | None = None
        self.packed: dict[str, Any] | None = None

    def check(self, rule: UpdateRule, episodes: Episodes) -> None:
        if sum(phi.numel() for phi in rule.parameters()) > 1000:
            raise InvalidInputError(f"{rule.label} has too many numbers for evolution: give a smaller rule.")

    def truncations(self, rule: UpdateRule, episodes: Episodes, plan: Plan):
        rule = rule.bind(episodes.layout)
        if self.packed is not None:
            self.episodes, self.run = unpack(self.packed, rule_of_all(rule, episodes, self.pairs), self._side(episodes))
            self.packed = None
        if self.run is None or self.run.step == plan.horizon:
            self.episodes, self.sums = self._side(episodes), None
            self.run = self.start(rule_of_all(rule, episodes, self.pairs), self.episodes)
        yield self.truncation(rule, self.episodes, self.run, plan)

    def _side(self, episodes: Episodes) -> Episodes:
        """All episodes for each of the perturbed φ."""
        return episodes.repeat(2 * self.pairs)

    @torch.no_grad()
    def truncation(self, rule: UpdateRule, episodes: Episodes, run: Run, plan: Plan) -> Truncation:
        phi = torch.nn.utils.parameters_to_vector(rule.parameters())
        self.drawn += 1
        noise = torch.randn(self.pairs, len(phi), generator=torch.Generator().manual_seed(self.drawn))
        noise = self.sigma * noise.to(phi)
        self.sums = noise if self.sums is None else self.sums + noise
        each = torch.cat([phi + noise, phi - noise]).repeat_interleave(len(episodes) // (2 * self.pairs), 0)
        end, trajectory = unroll(PerEpisode(rule, split(each, rule)), episodes, run, plan.unroll)
        losses = plan.loss(trajectory.losses, run.step, episodes).view(2, self.pairs, -1).mean(2)
        flat = (losses[0] - losses[1]) @ self.sums / (2 * self.sigma**2 * self.pairs)
        grads = [grad[0] for grad in split(flat[None], rule).values()]
        self.run = end
        with torch.enable_grad():
            objective = with_objective(rule, grads)
        return Truncation(end, trajectory.losses, update_size(trajectory), losses.mean(), objective)

    def state_dict(self) -> dict[str, Any]:
        if self.run is None:
            return {}
        return {"drawn": self.drawn, "sums": self.sums, "runs": pack(self.episodes, self.run)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.drawn, self.sums, self.packed = state["drawn"], state["sums"], state["runs"]


def split(rows: Tensor, rule: UpdateRule) -> dict[str, Tensor]:
    """Rows of φ, [N, D], as parameters by name, [N, ...]."""
    named = dict(rule.named_parameters())
    parts = rows.split([phi.numel() for phi in named.values()], 1)
    return {name: part.view(-1, *phi.shape) for (name, phi), part in zip(named.items(), parts, strict=True)}


def rule_of_all(rule: UpdateRule, episodes: Episodes, pairs: int) -> PerEpisode:
    """The rule with the same φ for all that will be perturbed, to begin their runs with."""
    phi = torch.nn.utils.parameters_to_vector(rule.parameters()).detach()
    return PerEpisode(rule, split(phi.expand(2 * pairs * len(episodes), -1), rule))


MODEL = """
model:
  rule: {class_path: lightning_l2l.rules.CoordinatewiseLSTM,
    init_args: {hidden_size: 4, num_layers: 1, preprocessing: null}}
  unroll: 10
  learning_rate: 0.03
  stages: [{meta_gradient: {class_path: test_forking_meta_gradient.PersistentEvolution}}]
trainer: {max_epochs: 4}
"""


def test_a_new_meta_gradient():
    rows = train_race_kill_and_resume(QUADRATICS, MODEL)
    assert float(rows["LSTM"]["last10"]) < 0.5 * float(rows["LSTM"]["initial"])
    (kept,) = checkpoint(0)["meta_gradients"]
    assert kept[0]["drawn"] == 4 * 16
    assert kept[0]["runs"]["run"][0] in (10, 20)


def test_evolution_estimates_the_gradient():
    """With many pairs it agrees with the exact meta-gradient of a run's first truncation."""
    rule, episodes = LearnedMomentum(), Quadratics(dimension=3).episodes("train", range(2))
    plan, grads = Plan(WeightedSum(), 5, 5), []
    for estimator in (PersistentEvolution(pairs=3000, sigma=0.01), Exact()):
        (truncation,) = estimator.truncations(rule, episodes, plan)
        grads.append(torch.autograd.grad(truncation.objective, rule.phi)[0])
    assert (grads[0] - grads[1]).norm() < 0.05 * grads[1].norm()


def test_a_meta_gradient_may_refuse_a_rule(fails):
    Path("0.yaml").write_text(QUADRATICS)
    Path("1.yaml").write_text(MODEL)
    sentence = fails("fit", "--config", "0.yaml", "--config", "1.yaml", "--model.rule.init_args.hidden_size=20")
    assert "LSTM has too many numbers for evolution" in sentence
