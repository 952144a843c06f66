"""A training loop of one's own, by an optimizer and by hand."""

import copy

import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lightning_l2l import LearnedOptimizer
from lightning_l2l.rules import CoordinatewiseLSTM

SETTINGS = {"LSTM": {}, "plain LSTM": {"num_layers": 1, "preprocessing": None}, "momenta": {"momenta": [0.9, 0.99]}}


SMALL = {"hidden_size": 5}


def lstm(**settings):
    """An untrained LSTM, whose steps are all different."""
    rule = CoordinatewiseLSTM(**{"hidden_size": 5, **settings})
    for bias in rule.biases:
        nn.init.normal_(bias)
    return rule


def network(dtype=torch.float32):
    """Some parameters of many shapes; one of them is as long as several chunks."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(200, 45), nn.Sigmoid(), nn.Linear(45, 3)).to(dtype)


def train(model, optimizer, steps, seed=0, closure=False):
    """Takes some steps on regression problems; returns the losses."""
    random = torch.Generator().manual_seed(seed)
    dtype, losses = next(model.parameters()).dtype, []
    for _ in range(steps):
        inputs, targets = torch.randn(8, 200, generator=random).to(dtype), torch.randn(8, 3, generator=random).to(dtype)

        def evaluate(inputs=inputs, targets=targets):
            optimizer.zero_grad()
            loss = (model(inputs) - targets).square().mean()
            loss.backward()
            return loss

        if closure:
            losses.append(optimizer.step(evaluate))
        else:
            losses.append(evaluate())
            optimizer.step()
    return torch.stack(losses).detach()


def theta(model):
    return parameters_to_vector(model.parameters()).detach().clone()


def by_hand(rule, model, steps, factor=1.0):
    """What ``train`` should do to θ, by the rule's own definition, all of θ in one vector."""
    model = copy.deepcopy(model)
    state = rule.init(theta(model)[None])

    class ByHand:
        zero_grad = staticmethod(model.zero_grad)

        @torch.no_grad()
        def step(self):
            nonlocal state
            grad = parameters_to_vector([p.grad for p in model.parameters()])
            update, state = rule.update(grad[None], state)
            vector_to_parameters(theta(model) + factor * update[0], model.parameters())

    train(model, ByHand(), steps)
    return theta(model)


def assert_steps_and_resumes(rule, model, steps, **tolerances):
    """``LearnedOptimizer`` takes the steps that a rule defines, and goes on to the bit from a state dict."""
    want = by_hand(rule, model, steps)
    optimizer = LearnedOptimizer(model.parameters(), rule)
    train(model, optimizer, steps)
    torch.testing.assert_close(theta(model), want, **tolerances)
    other = copy.deepcopy(model)
    resumed = LearnedOptimizer(other.parameters(), rule)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, its in ((model, optimizer), (other, resumed)):
        train(one, its, 2, seed=1)
    assert torch.equal(theta(other), theta(model))
