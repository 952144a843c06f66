"""95 % confidence intervals of means."""

import math
from collections.abc import Sequence

CONFIDENCE = 0.95


def half_width(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of a mean: Student's t quantile for n - 1 degrees of freedom, times s / √n.

    The normal quantile is nearly the same for a hundred episodes, but less than half as large for three runs.

    Args:
        values: n independent numbers, such as the losses of n episodes, or paired differences of them.

    Returns:
        None for fewer than two values; NaN if one of them is not finite, or their squares are too large for float64.
    """
    from scipy.special import stdtrit  # here, since it is slow to import

    if (n := len(values)) < 2:
        return None
    try:
        mean = math.fsum(values) / n if all(map(math.isfinite, values)) else math.nan
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    except OverflowError:
        return math.nan
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * deviation / math.sqrt(n)
    return half if math.isfinite(half) else math.nan
