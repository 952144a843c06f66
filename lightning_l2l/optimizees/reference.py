"""Tables of what a stored optimizer reaches on each task of a suite."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pytorch_lightning.utilities import rank_zero_info

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees.sources.npz import read_npz

FOLDER = Path(__file__).parent / "references"  # the package's own tables
SMALLEST = 1e-12  # loss, since logarithms are interpolated
REMEDY = "make it anew by python -m lightning_l2l reference, or give data.reference=null."


def read_reference(name: str, tasks: Sequence[str], horizon: int, data: str) -> dict[str, np.ndarray]:
    """Reads a table: for each task the losses after steps 1 to T, [T], in units of its mean first loss.

    Between the table's steps, log losses are interpolated linearly over the log of the step.

    Args:
        name: path of the .npz, or the name of one of the package's own tables.
        tasks: the names of the tasks that it must have.
        horizon: T.
        data: which data the tasks use; a table made with other data is logged.

    Raises:
        InvalidInputError: the file cannot be read, lacks a task, or ends too early.
    """
    path = Path(name) if Path(name).exists() else FOLDER / name
    table = read_npz(path, ("tasks", "steps", "losses", "data"), setting="data.reference")
    steps, losses = table["steps"], table["losses"]
    numbers = steps.dtype.kind in "iu" and steps.ndim == 1 and len(steps) and losses.dtype.kind == "f"
    rises = numbers and steps[0] >= 1 and (steps[1:] > steps[:-1]).all()
    if not rises or losses.shape != (table["tasks"].size, steps.size):
        raise InvalidInputError(
            f"data.reference is {name}, whose steps do not rise from 1, or whose losses are not one for each task and "
            f"step: {REMEDY}"
        )
    rows = dict(zip(table["tasks"].tolist(), losses, strict=True))
    for task in tasks:
        if task not in rows:
            raise InvalidInputError(f"data.reference is {name}, which has no losses of the task {task}: {REMEDY}")
    if (end := steps[-1]) < horizon:
        raise InvalidInputError(f"data.reference is {name}, which ends at step {end}, before {horizon}: {REMEDY}")
    if str(table["data"]) != data:
        rank_zero_info(f"The reference losses of {name} were reached on {table['data']}: here they are approximate.")
    every, known = np.log(np.arange(1, horizon + 1)), np.log(steps)
    return {task: np.exp(np.interp(every, known, np.log(np.maximum(rows[task], SMALLEST)))) for task in tasks}
