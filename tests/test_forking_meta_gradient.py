"""A fork's new meta-gradient lives in one file, with a YAML; the package is not touched."""

import copy
from pathlib import Path
from typing import Any

import torch
from forks import QUADRATICS, checkpoint, train_race_kill_and_resume
from test_forking_rule import LearnedMomentum
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.meta_gradients import Exact, MetaGradient, Plan, Truncation
from lightning_l2l.meta_gradients.base import gradient_objective, update_size
from lightning_l2l.meta_losses import WeightedSum
from lightning_l2l.optimizees import Quadratics
from lightning_l2l.rules import UpdateRule
from lightning_l2l.unroll import Run, unroll


class SimultaneousPerturbation(MetaGradient):
    """SPSA (Spall, 1992): a difference along one direction, all of whose coordinates are 1 or -1.

    Args:
        step: how far φ moves along it and back.
    """

    def __init__(self, step: float = 0.01) -> None:
        self.step = step
        self.drawn = 0  # directions

    def check(self, rule: UpdateRule, episodes: Episodes) -> None:
        if sum(phi.numel() for phi in rule.parameters()) > 1000:
            raise InvalidInputError(f"{rule.label} has too many numbers for one direction: give a smaller rule.")

    def prepare(self, rule: UpdateRule, episodes: Episodes, plan: Plan) -> UpdateRule:
        return rule  # which can be copied, unlike a compiled one

    def truncation(self, rule: UpdateRule, episodes: Episodes, run: Run, plan: Plan) -> Truncation:
        phi, nudged, losses = parameters_to_vector(rule.parameters()).detach(), copy.deepcopy(rule), []
        self.drawn += 1
        generator = torch.Generator().manual_seed(self.drawn)
        direction = 2.0 * torch.randint(2, phi.shape, generator=generator).to(phi) - 1
        with torch.no_grad():
            for nudge in (self.step * direction, -self.step * direction):
                vector_to_parameters(phi + nudge, nudged.parameters())
                end, trajectory = unroll(nudged, episodes, run, plan.unroll)
                losses.append(plan.loss(trajectory.losses, run.step, episodes).mean())
        estimate = (losses[0] - losses[1]) / (2 * self.step) * direction
        objective = gradient_objective(rule, estimate)
        return Truncation(end, trajectory.losses, update_size(trajectory), losses[1], objective)

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]


MODEL = """
model:
  rule: {class_path: lightning_l2l.rules.CoordinatewiseLSTM,
    init_args: {hidden_size: 4, num_layers: 1, preprocessing: null}}
  unroll: 10
  learning_rate: 0.03
  stages: [{meta_gradient: {class_path: test_forking_meta_gradient.SimultaneousPerturbation, init_args: {step: 0.02}}}]
trainer: {max_epochs: 4}
"""


def test_a_new_meta_gradient():
    rows = train_race_kill_and_resume(QUADRATICS, MODEL)
    assert float(rows["LSTM"]["last10"]) < 0.5 * float(rows["LSTM"]["initial"])
    assert checkpoint(0)["meta_gradients"] == [[{"drawn": 4 * 16 * 2}]]


def test_differences_estimate_the_gradient():
    """Their mean over many directions agrees with the exact meta-gradient."""
    rule, episodes = LearnedMomentum().double(), Quadratics(dimension=3).episodes("train", range(2))
    episodes, plan, estimator = episodes.to("cpu", torch.float64), Plan(WeightedSum(), 5, 5), SimultaneousPerturbation()
    (exact,) = Exact().truncations(rule, episodes, plan)
    (want,) = torch.autograd.grad(exact.objective, rule.phi)
    grads = []
    for _ in range(300):
        (truncation,) = estimator.truncations(rule, episodes, plan)
        grads += torch.autograd.grad(truncation.objective, rule.phi)
    assert (torch.stack(grads).mean(0) - want).norm() < 0.15 * want.norm()


def test_a_meta_gradient_may_refuse_a_rule(fails):
    Path("0.yaml").write_text(QUADRATICS)
    Path("1.yaml").write_text(MODEL)
    sentence = fails("fit", "--config", "0.yaml", "--config", "1.yaml", "--model.rule.init_args.hidden_size=20")
    assert "LSTM has too many numbers for one direction" in sentence
