"""The plain training loop of a benchmark: what a user writes, with a record of it."""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_l2l.evaluation.suite.candidates import Candidate
from lightning_l2l.optimizees import ModuleTraining, Split
from lightning_l2l.optimizees.module_episodes import ModuleEpisodes, unflatten

FIXED_BATCHES = 10  # of each part, on which losses are recorded
MARKS = 20  # steps at which losses are recorded, in equal ratios
SMOOTHING = 0.95  # of the published curves, which are evaluated every 10 steps on 5 training batches
EVALUATION_EVERY = 10
EVALUATION_BATCHES = 5


class Mark(NamedTuple):
    """What is recorded at one step."""

    step: float
    train: float  # loss on fixed training batches
    val: float
    held_out: float
    smoothed: float  # training loss as published curves have it; NaN where it was not asked for
    seconds: float  # CPU time of all training steps so far


def marks(lengths: Sequence[int]) -> list[int]:
    """The steps at which losses are recorded: 0, some in equal ratios, and all lengths that are of interest."""
    ratios = np.logspace(0, np.log10(max(lengths)), MARKS).round().astype(int)
    return sorted({0, *ratios.tolist(), *lengths})


@dataclass
class Training:
    """A network at the start of a run, and its examples.

    Attributes:
        network: a copy, with parameters of its own.
        criterion: the loss.
        episodes: the run's minibatches.
        fixed: numbers of examples of the parts train, val and test, [FIXED_BATCHES, B] each.
        evaluation: the training batches of each evaluation as in published curves, [E, EVALUATION_BATCHES, B].
    """

    network: nn.Module
    criterion: nn.Module
    episodes: ModuleEpisodes
    fixed: dict[str, Tensor]
    evaluation: Tensor

    def loss(self, rows: Tensor) -> Tensor:
        """The loss on the examples with these numbers, [B]."""
        inputs, targets = self.episodes.examples.minibatch(rows, torch.float32)
        return self.criterion(self.network(inputs), inputs if self.episodes.reconstruct else targets)

    @torch.no_grad()
    def mean_loss(self, batches: Tensor) -> float:
        """The mean loss over batches, [F, B], without dropout."""
        self.network.eval()
        mean = torch.stack([self.loss(rows) for rows in batches]).double().mean().item()
        self.network.train()
        return mean


def training(data: ModuleTraining, split: Split, seed: int, steps: int) -> Training:
    """Draws a run: its start and minibatches by the seed, and evaluation batches that all runs share."""
    data.horizon = steps
    episodes = data.training_runs(split, [seed])
    network = copy.deepcopy(data.network).train()
    start = unflatten(episodes.theta[0], network)
    for name, parameter in network.named_parameters():
        parameter.data = start[name].clone()
    random = np.random.default_rng(data.seed)
    rows = {part: episodes.examples.part(part) for part in ("train", "val", "test")}
    size = data.batch_size
    fixed = {part: torch.from_numpy(random.choice(of, (FIXED_BATCHES, size))) for part, of in rows.items()}
    shape = (steps // EVALUATION_EVERY + 1, EVALUATION_BATCHES, size)
    return Training(network, data.loss, episodes, fixed, torch.from_numpy(random.choice(rows["train"], shape)))


def train(run: Training, candidate: Candidate, lengths: Sequence[int], stop: int, published: bool = False) -> Tensor:
    """Trains the network as a user would.

    Args:
        run: where it starts; the network is trained in place.
        candidate: the optimizer.
        lengths: steps of interest; the longest is the horizon that a cosine knows.
        stop: the last step, at most the horizon.
        published: also evaluate as in published curves.

    Returns:
        A ``Mark`` for each recorded step, [M, 6], float64. After a loss that is not finite no more steps are
        taken, and all further losses and seconds are NaN.
    """
    found: list[Mark] = []
    wanted = {step for step in marks(lengths) if step <= stop} | {stop}
    seconds, smoothed, finite = 0.0, float("nan"), True
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of dropout
        optimizer = candidate.make(run.network)
        schedule = candidate.schedule(optimizer, max(lengths))
        for step in range(stop + 1):
            if finite and published and step % EVALUATION_EVERY == 0:
                with evaluating(optimizer, candidate.averaged and step > 0):
                    now = run.mean_loss(run.evaluation[step // EVALUATION_EVERY])
                smoothed = now if step == 0 else SMOOTHING * smoothed + (1 - SMOOTHING) * now
            if step in wanted:
                with evaluating(optimizer, candidate.averaged and step > 0):
                    losses = {part: run.mean_loss(rows) if finite else np.nan for part, rows in run.fixed.items()}
                seconds = seconds if finite else np.nan  # no steps were taken since
                finite = finite and bool(np.isfinite(losses["train"]))
                smoothed = smoothed if finite else np.nan
                found.append(Mark(step, losses["train"], losses["val"], losses["test"], smoothed, seconds))
            if finite and step < stop:
                seconds += one_step(run, optimizer, step, candidate.sees_loss)
                if schedule is not None:
                    schedule.step()
    return torch.tensor(found, dtype=torch.float64)


def one_step(run: Training, optimizer: Optimizer, step: int, with_closure: bool) -> float:
    """Takes one training step, and returns its CPU seconds."""
    rows = run.episodes.indices[0, step]

    def closure() -> float:
        optimizer.zero_grad()
        loss = run.loss(rows)
        loss.backward()
        return loss.item() if with_closure else 0.0

    begin = time.process_time()
    if with_closure:
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()
    return time.process_time() - begin


@contextmanager
def evaluating(optimizer: Optimizer, averaged: bool) -> Iterator[None]:
    """Lets an optimizer put its averaged weights in place, and back."""
    switches = averaged and hasattr(optimizer, "eval")
    if switches:
        optimizer.eval()  # type: ignore[attr-defined]
    yield
    if switches:
        optimizer.train()  # type: ignore[attr-defined]
