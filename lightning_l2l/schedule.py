"""The schedule of the meta learning rate."""

import math
from collections.abc import Callable


def cosine_decay(steps: float, end: float) -> Callable[[int], float]:
    """Half a cosine from 1 at step 0 to ``end`` at ``steps``, and ``end`` from there on."""

    def factor(step: int) -> float:
        progress = min(1.0, step / steps)
        return end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2

    return factor
