"""Tiny images of many classes, and few-shot learning on them."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from lightning_l2l.optimizees import FewShot

CLASSES, EACH, SIZE = 18, 6, 16


def arrays(dtype: type = np.uint8) -> dict[str, np.ndarray]:
    """Classes that differ in their pictures, under noise; no two images are alike."""
    drawn = np.random.default_rng(0)
    pictures = drawn.integers(0, 200, (CLASSES, 1, SIZE, SIZE))
    images = (pictures + drawn.integers(0, 56, (CLASSES, EACH, SIZE, SIZE))).reshape(-1, SIZE, SIZE)
    labels = np.arange(CLASSES).repeat(EACH) * 3 + 7  # with gaps
    order = drawn.permutation(len(labels))
    return {"images": images[order].astype(dtype), "labels": labels[order].astype(np.int16)}


def write(path: str = "classes.npz", **changes: np.ndarray) -> str:
    np.savez(path, **(arrays() | changes))
    return path


def network(ways: int = 3) -> nn.Module:
    layers = nn.Conv2d(1, 4, 3, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, ways)
    return nn.Sequential(*layers)


def few_shot(**settings) -> FewShot:
    """Three ways, two shots, three queries; 10, 4 and 4 classes before rotation."""
    path = "classes.npz" if Path("classes.npz").is_file() else write()
    own = {"network": network(settings.get("ways", 3)), "source": path, "ways": 3, "shots": 2, "queries": 3}
    torch.manual_seed(0)
    return FewShot(**(own | {"classes": (10, 4, 4), "horizon": 3} | settings))
