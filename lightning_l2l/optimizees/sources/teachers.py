"""Synthetic examples, whose targets a random network made."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from lightning_l2l.optimizees.sources.base import Source
from lightning_l2l.optimizees.sources.tensors import TensorExamples

ROWS = {"train": 3_000, "val": 500, "test": 500}
TEACHER = 16  # its hidden units


@dataclass(frozen=True)
class Teacher(Source):
    """Normal inputs, and targets by a random network with one layer of 16 tanh units, or by a linear one.

    Args:
        inputs: D, of an example.
        outputs: E, or the number of classes.
        classes: whether targets are the number of the largest output, and not the outputs themselves, which have mean 0
            and standard deviation 1.
        linear: whether the teacher is linear.
        condition: the largest standard deviation of the inputs' principal axes over the smallest; in equal ratios.
        noise: standard deviation of what is added to the teacher's outputs.
        seed: another one gives another teacher and other inputs.
    """

    inputs: int
    outputs: int
    classes: bool = False
    linear: bool = False
    condition: float = 1.0
    noise: float = 0.0
    seed: int = 0

    def load(self) -> TensorExamples:
        """Draws the examples."""
        return _draw(self)


@cache
def _draw(teacher: Teacher) -> TensorExamples:
    random = np.random.default_rng(teacher.seed)
    count = sum(ROWS.values())
    axes = np.linalg.qr(random.standard_normal((teacher.inputs, teacher.inputs)))[0]
    spread = np.geomspace(1, 1 / teacher.condition, teacher.inputs)
    normal = random.standard_normal((count, teacher.inputs))
    hidden = normal  # the teacher sees all directions alike
    if not teacher.linear:
        hidden = np.tanh(2 * hidden @ _weights(random, teacher.inputs, TEACHER))
    outputs = hidden @ _weights(random, hidden.shape[1], teacher.outputs)
    outputs = (outputs - outputs.mean(0)) / outputs.std(0)
    outputs += teacher.noise * random.standard_normal(outputs.shape)
    targets = torch.from_numpy(outputs.argmax(1)) if teacher.classes else torch.from_numpy(outputs).float()
    ends = np.cumsum([0, *ROWS.values()]).tolist()
    ranges = {name: (ends[number], ends[number + 1]) for number, name in enumerate(ROWS)}
    return TensorExamples(torch.from_numpy(normal * spread @ axes.T).float(), targets, ranges, str(teacher))


def _weights(random: np.random.Generator, inputs: int, outputs: int) -> np.ndarray:
    return random.standard_normal((inputs, outputs)) / np.sqrt(inputs)
