"""Speed of few-shot learning, in ratios to learn2learn's loop on the same tasks, alternating in one run."""

import time

import pytest
import torch
from conftest import SHARED, skip

from benchmarks.workloads import Bare
from lightning_l2l.learners.learn2learn_maml import Learn2LearnMAML
from lightning_l2l.meta_gradients import Exact, Plan
from lightning_l2l.meta_losses import WeightedSum
from lightning_l2l.optimizees import Conv4, FewShot
from lightning_l2l.rules import SGD, LearnedStart

TASKS = 16


def test_second_order_maml(against):
    """A task of meta-training with Conv4 of width 32: 5 ways, 1 shot, 15 queries, 1 step; CPU seconds of one thread."""
    pytest.importorskip("learn2learn", reason="learn2learn is an extra: uv sync --extra learn2learn")
    if not (SHARED / "omniglot28.npz").is_file():
        skip("Omniglot is not at ../shared/data, and tests do not download")
    torch.set_num_threads(1)
    data = FewShot(
        Conv4(width=32), root=str(SHARED), invert=True, horizon=1, episodes_per_batch=TASKS, train_episodes=TASKS
    )
    rule = LearnedStart(SGD(0.4))
    first = data.episodes("train", [0])
    rule.bind(first.layout).start(first.theta)  # which makes θ_0
    ours = Bare(data, rule, unroll=1)
    ours.plan, ours.meta_gradient = Plan(WeightedSum("last"), 1, 1), Exact()
    theirs = Learn2LearnMAML(Conv4(width=32))
    theirs.log = lambda *_, **__: None
    adam = theirs.configure_optimizers()

    def learn2learns_loop() -> None:
        adam.zero_grad()
        theirs.training_step(ours.sample(), 0).backward()
        adam.step()

    against(ours.train, learn2learns_loop, time.process_time, TASKS, 15, must=1 / 1.5, stretch=1 / 2.5)
