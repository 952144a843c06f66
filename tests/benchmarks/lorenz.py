"""Examples of a simulator: what a Lorenz system does in half a unit of time."""

import numpy as np
import torch

from lightning_l2l.optimizees import Source, TensorExamples

PARTS = (8_000, 1_000, 1_000)
STEP = 0.01


class Lorenz(Source):
    """States [3] on the attractor, and the states half a unit of time later; both standardised."""

    def load(self) -> TensorExamples:
        """Simulates them."""
        count = sum(PARTS)
        state = np.array([0, 0, 25]) + np.random.default_rng(0).standard_normal((count, 3))
        before = simulate(state, 10.0)
        examples = np.stack([before, simulate(before, 0.5)])
        examples = (examples - before.mean(0)) / before.std(0)
        inputs, targets = torch.from_numpy(examples).float()
        return TensorExamples(inputs, targets, {}, "a Lorenz system").parted(PARTS)


def simulate(state: np.ndarray, time: float) -> np.ndarray:
    """States [M, 3] after some time, by the classical Runge-Kutta method."""
    for _ in range(round(time / STEP)):
        a = velocity(state)
        b = velocity(state + STEP / 2 * a)
        c = velocity(state + STEP / 2 * b)
        state = state + STEP / 6 * (a + 2 * b + 2 * c + velocity(state + STEP * c))
    return state


def velocity(state: np.ndarray) -> np.ndarray:
    """Lorenz (1963), with his parameters."""
    x, y, z = state.T
    return np.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], 1)
