"""What is timed: the paper's meta-training by this package, and the same work done the plain way."""

import math

import torch
from torch import Tensor, nn

from lightning_l2l.episodes import Episodes
from lightning_l2l.meta_gradients import FirstOrder, Plan
from lightning_l2l.meta_losses import WeightedSum
from lightning_l2l.optimizees import MLP, ImageClassification, families
from lightning_l2l.optimizees.sources.images import LabelledImages
from lightning_l2l.rules import CoordinatewiseLSTM, UpdateRule
from lightning_l2l.unroll import learning_curves

HORIZON, UNROLL = 100, 20


def classification(episodes: int, horizon: int = HORIZON, units: int = 20) -> ImageClassification:
    """The paper's MNIST classifier on images of noise, which cost what digits cost."""
    sizes = {"episodes_per_batch": episodes, "train_episodes": episodes, "horizon": horizon}
    data = ImageClassification(MLP(hidden_sizes=(units,)), **sizes)
    images = torch.randint(256, (60_000, 1, 28, 28), dtype=torch.uint8)
    data.images = LabelledImages(
        images, torch.randint(10, (60_000,)), {"train": (0, 50_000), "val": (50_000, 60_000)}, "noise"
    )
    return data


def family_batches(family: str, horizon: int, tasks: int = 3, episodes: int = 32) -> list[Episodes]:
    """Episodes side by side of the first, the last and tasks between them of an everyday family."""
    all_tasks = list(getattr(families, family)().tasks(horizon=horizon, seed=0).values())
    chosen = [all_tasks[round(n * (len(all_tasks) - 1) / (tasks - 1))] for n in range(tasks)]
    return [task.episodes("train", range(episodes)) for task in chosen]


class Bare:
    """This package's meta-training without Lightning: sampling, unroll, meta-gradient and Adam."""

    def __init__(self, data, rule: UpdateRule, unroll: int = UNROLL, device: str = "cpu") -> None:
        self.data, self.rule, self.device = data, rule, device
        self.plan, self.meta_gradient = Plan(WeightedSum(), data.horizon, unroll), FirstOrder()
        self.adam = torch.optim.Adam(rule.parameters(), lr=1e-3)
        self.meta_batch = 0

    def sample(self) -> Episodes:
        self.meta_batch += 1
        size = self.data.episodes_per_batch
        numbers = range(self.meta_batch * size, (self.meta_batch + 1) * size)
        return self.data.episodes("train", numbers).to(self.device)

    def train(self) -> None:
        for truncation in self.meta_gradient.truncations(self.rule, self.sample(), self.plan):
            self.adam.zero_grad()
            truncation.objective.backward()
            self.adam.step()
            del truncation

    def evaluate(self) -> None:
        learning_curves(self.rule, self.sample(), self.data.horizon)


class Plain:
    """Two LSTMCells over the rows of all coordinates, and autograd through the whole unroll."""

    def __init__(self, data, preprocessing: bool, device: str = "cpu") -> None:
        self.data, self.preprocessing, self.device = data, preprocessing, device
        self.first, self.second, self.head = nn.LSTMCell(1 + preprocessing, 20), nn.LSTMCell(20, 20), nn.Linear(20, 1)
        modules = nn.ModuleList([self.first, self.second, self.head]).to(device)
        self.adam = torch.optim.Adam(modules.parameters(), lr=1e-3)
        self.meta_batch = 0

    def train(self) -> None:
        self.meta_batch += 1
        size = self.data.episodes_per_batch
        numbers = range(self.meta_batch * size, (self.meta_batch + 1) * size)
        episodes = self.data.episodes("train", numbers).to(self.device)
        theta = episodes.theta
        states = [(theta.new_zeros(theta.numel(), 20),) * 2 for _ in range(2)]
        for unroll in torch.arange(HORIZON).split(UNROLL):
            theta = theta.detach().requires_grad_()
            states = [tuple(part.detach() for part in state) for state in states]
            total = torch.zeros((), device=self.device)
            for step in unroll.tolist():
                loss = episodes.loss(theta, step)
                total = total + loss.mean()
                (grad,) = torch.autograd.grad(loss.sum(), theta, retain_graph=True)
                states[0] = self.first(self.inputs(grad.reshape(-1, 1)), states[0])
                states[1] = self.second(states[0][0], states[1])
                theta = theta + 0.1 * self.head(states[1][0]).view_as(theta)
            self.adam.zero_grad()
            (total + episodes.loss(theta, step + 1).mean()).backward()
            self.adam.step()

    def inputs(self, grad: Tensor) -> Tensor:
        if not self.preprocessing:
            return grad
        small = grad.abs() < math.exp(-10)
        size = torch.where(small, -1.0, grad.abs().clamp_min(math.exp(-10)).log() / 10)
        return torch.cat([size, torch.where(small, grad * math.exp(10), grad.sign())], 1)


def lstm_operations(coordinates: int, steps: int, inputs: int = 2, hidden: int = 20, backward: bool = True) -> float:
    """Multiplications and additions of the LSTM's three matrix products (forward; backward for x and for W)."""
    forward = 4 * hidden * (inputs + hidden) + 4 * hidden * 2 * hidden + hidden
    back = forward + 4 * hidden * hidden + 4 * hidden * 2 * hidden + hidden
    return 2.0 * coordinates * steps * (forward + backward * back)


def lstm(preprocessing: bool = True) -> CoordinatewiseLSTM:
    """The paper's update rule."""
    return CoordinatewiseLSTM(preprocessing=10.0 if preprocessing else None)
