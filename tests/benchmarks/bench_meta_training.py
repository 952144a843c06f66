"""Speed of meta-training, in ratios to the same work done the plain way, alternating in one run."""

import time

import pytest
import torch
from pytorch_lightning import Trainer

from benchmarks.workloads import HORIZON, UNROLL, Bare, Plain, classification, family_batches, lstm, lstm_operations
from lightning_l2l.callbacks import MetaProgressBar
from lightning_l2l.learners import MetaLearner
from lightning_l2l.meta_gradients import Exact, Plan
from lightning_l2l.meta_losses import LogLoss
from lightning_l2l.optimizees import Quadratics
from lightning_l2l.rules import AdamController
from lightning_l2l.unroll import learning_curves

COORDINATES = 15_910


@pytest.mark.parametrize(
    ("episodes", "threads", "timer", "must", "stretch"),
    [
        (1, 1, time.process_time, 0.42, 0.33),
        (8, 1, time.process_time, 0.40, 0.30),
        (8, 2, time.perf_counter, 0.38, 0.28),
    ],
    ids=["N=1", "N=8", "N=8-wall-2-threads"],
)
def test_mnist_episode(against, operations_per_second, episodes, threads, timer, must, stretch):
    """An episode of meta-training beside one of the plain way, which runs one episode at a time."""
    torch.set_num_threads(threads)
    ours, plain = Bare(classification(episodes), lstm()), Plain(classification(1), preprocessing=True)
    optimizee = 2.0 * 128 * (784 * 20 + 20 * 10) * 2  # forward, and backward for the weights
    floor = (lstm_operations(COORDINATES, HORIZON) + HORIZON * optimizee) / operations_per_second / threads

    def plain_episodes() -> None:
        for _ in range(episodes):
            plain.train()

    targets = {"must": must, "stretch": stretch}
    against(ours.train, plain_episodes, timer, episodes, 5 if episodes == 1 else 3, floor, **targets)


def test_quadratics(against, operations_per_second):
    """100 steps of 128 functions of 10 dimensions, wall."""
    torch.set_num_threads(2)
    data = Quadratics(episodes_per_batch=128, train_episodes=128)
    ours, plain = Bare(data, lstm(False)), Plain(data, preprocessing=False)
    floor = lstm_operations(1280, HORIZON, inputs=1) / operations_per_second / 2
    against(ours.train, plain.train, time.perf_counter, 1, 9, floor, must=0.6, stretch=0.4)


@pytest.mark.parametrize("episodes", [1, 8])
def test_evaluation(against, episodes):
    """An episode without a meta-gradient beside one of meta-training, CPU seconds of one thread."""
    torch.set_num_threads(1)
    engine = Bare(classification(episodes), lstm())
    against(engine.evaluate, engine.train, time.process_time, episodes, 5, must=0.45, stretch=0.35)


@pytest.mark.parametrize("episodes", [1, 8])
def test_lightning(against, tmp_path, episodes):
    """Meta-batches inside Lightning's fit, loop, logging and bar included, beside the bare engine's; wall."""
    torch.set_num_threads(2)
    meta_batches = 16 // episodes
    data = classification(episodes)
    data.train_episodes = 16
    bare = Bare(data, lstm())

    def bare_epoch() -> None:
        for _ in range(meta_batches):
            bare.train()

    settings = {"max_epochs": 1, "limit_val_batches": 0, "log_every_n_steps": 1, "enable_model_summary": False}
    trainer = Trainer(
        **settings,
        default_root_dir=tmp_path,
        accelerator="cpu",
        devices=1,
        enable_checkpointing=False,
        callbacks=[MetaProgressBar()],
    )
    learner = MetaLearner(lstm(), UNROLL)
    trainer.fit(learner, datamodule=data)

    def fit_epoch() -> None:
        trainer.fit_loop.max_epochs += 1
        trainer.fit(learner, datamodule=data)

    against(fit_epoch, bare_epoch, time.perf_counter, 16, 5, must=1.10, stretch=1.03)


def test_growth_with_coordinates(against):
    """Seconds per step and coordinate at 1,000,120 coordinates beside 15,910, CPU seconds of one thread."""
    torch.set_num_threads(1)
    large, small = (Bare(classification(1, UNROLL, units), lstm()) for units in (1258, 20))
    steps = 1_000_120 / 15_910

    def small_steps() -> None:
        for _ in range(round(steps)):
            small.train()

    against(large.train, small_steps, time.process_time, UNROLL, 3, must=1.15, stretch=1.0)


@pytest.mark.parametrize(
    "family",
    ["ImageMLPs", "ImageCNNs", "Autoencoders", "Tables", "Teachers", "CharRNNs", "CharTransformers", "ResidualMLPs"],
)
def test_everyday_tasks(against, benchmark, family):
    """A second-order episode-step on everyday tasks beside one without a meta-gradient, CPU seconds of one thread.

    Of each kind, a CPU second must do 4,000 and 11,000 (stretch: 10,000 and 30,000).
    """
    torch.set_num_threads(1)
    batches, rule, plan = family_batches(family, HORIZON), AdamController(), Plan(LogLoss(), HORIZON, HORIZON // 2)

    def second_order() -> None:
        for episodes in batches:
            for truncation in Exact(episode_clip=1.0).truncations(rule, episodes, plan):
                truncation.objective.backward()
                del truncation

    def forward() -> None:
        for episodes in batches:
            learning_curves(rule, episodes, HORIZON)

    against(second_order, forward, time.process_time, HORIZON * sum(map(len, batches)), 3)
    info = benchmark.extra_info
    info |= {"second order / s": 1 / info["seconds"], "forward / s": 1 / info["reference"]}
