"""What Adam reaches on each task of a suite, stored for meta-losses to compare with."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import require_suffix
from lightning_l2l.evaluation.tuning import RATE, with_settings
from lightning_l2l.optimizees import Suite
from lightning_l2l.rules import Adam
from lightning_l2l.unroll import learning_curves
from lightning_l2l.whole_files import replacing

RATES = (0.001, 0.003, 0.01, 0.03)
POINTS = 40  # of a stored curve, about


def write_reference(suite: Suite, output: Path, progress: Callable[[str], object] = lambda task: None) -> None:
    """Runs Adam on every task at four rates and writes, at about 40 steps, the lowest mean loss of any of them.

    The mean is over the task's tuning episodes and over the steps since the last of the 40, and losses are in units of
    the task's mean first loss. The file has ``tasks`` [M], ``steps`` [S] and ``losses`` [M, S], and ``data`` in words.

    Args:
        suite: the tasks; its horizon is the number of steps.
        output: the .npz.
        progress: called with the name of each task when it is done.

    Raises:
        InvalidInputError: the output has another suffix.
    """
    require_suffix("--output", output, ".npz")
    steps = np.unique(np.geomspace(1, suite.horizon, POINTS).round().astype(np.int64))
    losses = []
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as part:
        part.touch()  # before the slow work, since the folder may not be writable
        for first in range(0, suite.tuning_episodes, suite.episodes_per_task):
            episodes = suite.episodes("tune", range(first, first + suite.episodes_per_task))
            losses.append(lowest_losses(episodes, steps))
            progress(suite.task("tune", first))
        tasks, data = np.array(list(suite.tasks)), np.array(suite.description)
        np.savez_compressed(part, tasks=tasks, steps=steps, losses=np.stack(losses), data=data)


def lowest_losses(episodes: Episodes, steps: np.ndarray) -> np.ndarray:
    """The lowest mean loss of any rate at each of these steps, [S], float32.

    Args:
        episodes: N episodes.
        steps: [S], the first of them 1, ascending.
    """
    rates = torch.tensor(RATES).repeat_interleave(len(episodes))[:, None]
    rule = with_settings(Adam(), {RATE: rates.to(episodes.theta)})
    curves = learning_curves(rule, episodes.repeat(len(RATES)), int(steps[-1]))[:, 1:]
    means = curves.view(len(RATES), len(episodes), -1).mean(1).nan_to_num(nan=torch.inf)
    windows = means.tensor_split(torch.from_numpy(steps[:-1]), dim=1)
    return torch.stack([window.mean(1) for window in windows], 1).amin(0).float().cpu().numpy()
