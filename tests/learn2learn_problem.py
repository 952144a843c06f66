"""A few-step problem on which learn2learn's algorithms and the rules of this package must agree."""

import torch
from small_problem import plan

from lightning_l2l.meta_gradients import Exact, FirstOrder
from lightning_l2l.optimizees import ConvNet, ImageClassification
from lightning_l2l.optimizees.sources.images import LabelledImages

RATE, STEPS = 0.4, 3
LAST = torch.tensor([0.0] * (STEPS - 1) + [1.0], dtype=torch.float64)  # the query loss alone


def few_steps():
    """Two episodes of a small network on noise, in float64."""
    torch.manual_seed(0)
    data = ImageClassification(ConvNet(6, 1, (2,), hidden_sizes=(3,)), horizon=STEPS, batch_size=8)
    images = torch.randint(256, (50, 1, 6, 6), dtype=torch.uint8)
    data.images = LabelledImages(images, torch.randint(10, (50,)), {"train": (0, 50)}, "noise")
    return data.episodes("train", range(2)).to("cpu", torch.float64)


def started(rule, episodes):
    """The rule after it has met the optimizee, in float64."""
    rule = rule.double()
    rule.bind(episodes.layout).start(episodes.theta)
    return rule


class Network(torch.nn.Module):
    """The first episode's start as a module, with the optimizee's parameters in their order."""

    def __init__(self, episodes):
        super().__init__()
        self.names = [name.replace(".", "_") for name in episodes.layout]
        for name, place in zip(self.names, episodes.layout.values(), strict=True):
            tensor = episodes.theta[0, place.coordinates].reshape(place.shape)
            self.register_parameter(name, torch.nn.Parameter(tensor.clone()))

    def theta(self):
        return torch.cat([getattr(self, name).flatten() for name in self.names])[None]


def adapted_gradient(algorithm, episodes):
    """The meta-gradients of one of learn2learn's algorithms, with respect to the start and to what else it learns.

    Args:
        algorithm: makes it from a network.
        episodes: as ``few_steps`` returns them.
    """
    network = Network(episodes)
    meta, loss = algorithm(network), torch.zeros((), dtype=torch.float64)
    for number in range(len(episodes)):
        own = episodes.with_tensors({k: v[number : number + 1] for k, v in episodes.tensor_fields().items()})
        learner = meta.clone()
        for step in range(STEPS):
            learner.adapt(own.loss(learner.module.theta(), step).sum())
        loss = loss + own.loss(learner.module.theta(), STEPS).sum() / len(episodes)
    return in_two(torch.autograd.grad(loss, list(meta.parameters())), episodes)


def our_gradient(rule, episodes, first_order):
    """The meta-gradients with respect to a rule's learned start and to its other parameters."""
    estimator = FirstOrder() if first_order else Exact()
    bound = rule.bind(episodes.layout)
    truncation = estimator.truncation(bound, episodes, estimator.start(bound, episodes), plan(LAST))
    return in_two(torch.autograd.grad(truncation.objective, list(rule.parameters())), episodes)


def in_two(grads, episodes):
    """The start's part, which comes first, and the rest."""
    flat, size = torch.cat([grad.flatten() for grad in grads]), episodes.theta.shape[1]
    return [flat[:size], *([flat[size:]] if len(flat) > size else [])]
