"""Rules whose φ differs from episode to episode, run side by side as each would run alone."""

import copy

import pytest
import torch
from test_forking_rule import LearnedMomentum

from lightning_l2l.optimizees import Quadratics
from lightning_l2l.rules import Adam, CoordinatewiseLSTM
from lightning_l2l.rules.per_episode import PerEpisode
from lightning_l2l.unroll import learning_curves

RULES = {
    "LSTM": lambda: CoordinatewiseLSTM(hidden_size=4),
    "LSTM with momenta": lambda: CoordinatewiseLSTM(hidden_size=4, momenta=[0.9]),
    "momentum": LearnedMomentum,
    "Adam": lambda: Adam(0.1),  # nothing to learn, and a count of steps that is no tensor
}


@pytest.mark.parametrize("name", RULES)
def test_many_phi_side_by_side_run_as_each_alone(name):
    rule = RULES[name]().double()
    episodes = Quadratics(dimension=4).episodes("train", range(3)).to("cpu", torch.float64)
    phi = {
        key: torch.stack([p + 0.2 * n * torch.randn_like(p) for n in range(3)]) for key, p in rule.named_parameters()
    }
    with torch.no_grad():
        together = learning_curves(PerEpisode(rule, phi), episodes, 8)
    assert together.isfinite().all()
    for number in range(3):
        alone = copy.deepcopy(rule)
        for key, parameter in alone.named_parameters():
            parameter.data = phi[key][number]
        one = episodes.with_tensors(
            {key: value[number : number + 1] for key, value in episodes.tensor_fields().items()}
        )
        torch.testing.assert_close(together[number], learning_curves(alone, one, 8)[0], rtol=1e-9, atol=1e-9)
    if phi:
        other = learning_curves(rule, episodes, 8)
        torch.testing.assert_close(together[0], other[0])  # the first is the rule's own
        assert ((together[1:] - other[1:]).abs().amax(1) > 1e-6).all()
