"""What the package may use of this machine, as environment variables, since no experiment depends on them.

``LIGHTNING_L2L_MEMORY``: gigabytes that the activations of one unroll may take, 4 by default. Larger ones are
recomputed slice by slice, which is slower; 0 always does that.

``LIGHTNING_L2L_COMPILED``: 0 runs rules without kernels, and a GPU's truncations without CUDA graphs.
"""

import os

from lightning_l2l.errors import InvalidInputError


def memory() -> float:
    """Gigabytes that the activations of one unroll may take.

    Raises:
        InvalidInputError: the variable is not a number, or is negative.
    """
    given = os.environ.get("LIGHTNING_L2L_MEMORY", "4")
    try:
        gigabytes = float(given)
    except ValueError:
        gigabytes = -1.0
    if not gigabytes >= 0:
        raise InvalidInputError(f"LIGHTNING_L2L_MEMORY is {given}, but it is a number of gigabytes: give 0 or more.")
    return gigabytes


def compiled() -> bool:
    """Whether kernels and CUDA graphs may be used.

    Raises:
        InvalidInputError: the variable is neither 0 nor 1.
    """
    given = os.environ.get("LIGHTNING_L2L_COMPILED", "1")
    if given not in ("0", "1"):
        raise InvalidInputError(
            f"LIGHTNING_L2L_COMPILED is {given}, but it says whether kernels are used: give 0 or 1."
        )
    return given == "1"
