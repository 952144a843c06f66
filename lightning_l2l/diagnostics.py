"""What a step did to each parameter tensor, as numbers for any logger."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_l2l.rules.fast.stepper import KeptState, Stepper


def step_numbers(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """Computes how far, and how much downhill, a step went.

    Args:
        before: a copy of each parameter before the step, by name.
        after: the parameters after it, with the gradients of the step; those without one are left out.

    Returns:
        For each parameter ``effective_step/NAME``, the step's root mean square over that of the parameter before it
        (infinite where that was zero), and ``cosine/NAME``, the cosine of the step and minus the gradient (0 where
        either is zero).
    """
    numbers = {}
    for name, p in after.items():
        if p.grad is None or p.numel() == 0:
            continue
        dtype = torch.promote_types(p.dtype, torch.float32)
        old, new, grad = (value.detach().flatten().to(dtype) for value in (before[name], p, p.grad))
        step = new - old
        length = step.norm()
        numbers[f"effective_step/{name}"] = (length / old.norm()).item() if length > 0 else 0.0
        numbers[f"cosine/{name}"] = torch.cosine_similarity(step, -grad, dim=0, eps=0).nan_to_num(0).item()
    return numbers


def saturated_numbers(stepper: Stepper, state: KeptState, unit: Mapping[str, Tensor]) -> dict[str, float]:
    """Asks the rule which share of its inputs was clamped: ``saturated/NAME`` for each parameter, if it can tell.

    Args:
        stepper: the stepper of these parameters.
        state: their state after the step.
        unit: the parameters that are stepped as one vector, by name; those without a gradient are left out.
    """
    shares = stepper.saturated(state, sum(p.numel() for p in unit.values()))
    if shares is None:
        return {}
    pairs = zip([name for name, p in unit.items() if p.numel()], shares.tolist(), strict=True)
    return {f"saturated/{name}": share for name, share in pairs if unit[name].grad is not None}
