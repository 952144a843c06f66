"""A step of the paper's convolutional network by two LSTMs, beside the same by Adam; wall."""

import time

import torch

from benchmarks.workloads import lstm
from lightning_l2l.optimizees import ConvNet, ImageClassification
from lightning_l2l.optimizees.sources.images import LabelledImages
from lightning_l2l.rules import Adam, Grouped
from lightning_l2l.unroll import learning_curves

STEPS = 20


def test_cifar_step(against):
    torch.set_num_threads(2)
    data = ImageClassification(ConvNet(), init_std=None, horizon=STEPS)
    images = torch.randint(256, (50_000, 3, 32, 32), dtype=torch.uint8)
    data.images = LabelledImages(
        images, torch.randint(10, (50_000,)), {"test": (0, 50_000), "val": (0, 50_000)}, "noise"
    )
    episodes = data.episodes("test", [0])
    learned = Grouped({"conv": lstm(), "fc": lstm()}, {"conv": ["conv*"], "fc": ["fc*"]})
    against(
        lambda: learning_curves(learned, episodes, STEPS),
        lambda: learning_curves(Adam(0.001), episodes, STEPS),
        time.perf_counter,
        STEPS,
    )
