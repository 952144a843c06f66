"""Rules whose φ differs from episode to episode, run side by side as each would run alone."""

import copy

import pytest
import torch
from test_forking_rule import LearnedMomentum

from lightning_l2l.optimizees import Quadratics
from lightning_l2l.rules import Adam, CoordinatewiseLSTM
from lightning_l2l.rules.per_episode import PerEpisode
from lightning_l2l.unroll import learning_curves, start, unroll


class Batched(LearnedMomentum):
    """The same steps with φ [2] or [N, 2]."""

    takes_phi_per_episode = True

    def update(self, grad, state):
        momentum = 0.9 * state[0] + grad
        rate, share = self.phi.exp().split(1, -1)
        return -rate * (grad + share * momentum) / (1 + 0.01 * grad.norm(dim=1, keepdim=True)), (momentum,)


RULES = {
    "LSTM": lambda: CoordinatewiseLSTM(hidden_size=4),
    "LSTM with momenta": lambda: CoordinatewiseLSTM(hidden_size=4, momenta=[0.9]),
    "momentum": LearnedMomentum,
    "batched momentum": Batched,
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


@pytest.mark.parametrize("name", ["LSTM", "momentum", "batched momentum"])
def test_each_episode_has_a_gradient_of_its_own(name):
    """Two equal φ have the gradients of two runs alone, which add up to that of one φ for both."""
    rule = RULES[name]().double()
    episodes = Quadratics(dimension=4).episodes("train", range(2)).to("cpu", torch.float64)
    rows = torch.nn.utils.parameters_to_vector(rule.parameters()).detach().expand(2, -1).requires_grad_()
    together = PerEpisode.of_rows(rule, rows)
    losses = unroll(together, episodes, start(together, episodes), 5)[1].losses.sum(0)
    (own,) = torch.autograd.grad(losses.sum(), rows)
    for number in range(2):
        one = episodes.with_tensors({k: v[number : number + 1] for k, v in episodes.tensor_fields().items()})
        alone = unroll(rule, one, start(rule, one), 5)[1].losses.sum()
        grads = torch.autograd.grad(alone, list(rule.parameters()))
        torch.testing.assert_close(own[number], torch.cat([grad.flatten() for grad in grads]))
    assert not torch.allclose(own[0], own[1])


def test_a_rule_that_takes_phi_per_episode_is_not_mapped(monkeypatch):
    monkeypatch.setattr(torch.func, "vmap", None)
    rule, episodes = Batched(), Quadratics(dimension=4).episodes("train", range(3))
    rows = torch.nn.utils.parameters_to_vector(rule.parameters()).detach() + torch.zeros(3, 1)
    together = learning_curves(PerEpisode.of_rows(rule, rows), episodes, 5)
    torch.testing.assert_close(together, learning_curves(LearnedMomentum(), episodes, 5))
