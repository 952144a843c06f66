"""Numbers that are not numbers, put into a run of fit at one place and moment."""

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import lightning_l2l.learners.meta_learner as meta_learner
import lightning_l2l.meta_gradients.base as meta_gradients
import lightning_l2l.unroll as unrolls

HORIZON = 10  # of a small fit


def inject(place: str, value: float, call: int) -> None:
    """Spoils the n-th call of the function that makes or uses what is at a place (see ``PLACES``).

    Args:
        place: gradients, losses, and so on.
        value: NaN or infinite.
        call: n, from 1.
    """
    owner, name, spoil = PLACES[place]
    whole = getattr(owner, name)
    calls = count(1)

    def spoiled(*args: Any, **kwargs: Any) -> Any:
        # no meta-loss counts f(θ_0), and no step follows the last gradient of a run without meta-gradient
        unused = (spoil, args[-1]) in ((_in_losses, 0), (_in_gradients, HORIZON))
        if unused or next(calls) != call:
            return whole(*args, **kwargs)
        return spoil(whole, value, *args, **kwargs)

    setattr(owner, name, spoiled)


def _in_gradients(evaluate: Callable, value: float, *args: Any) -> tuple[Tensor, Tensor]:
    loss, grad = evaluate(*args)
    return loss, _with(grad, value)


def _in_losses(evaluate: Callable, value: float, *args: Any) -> tuple[Tensor, Tensor]:
    loss, grad = evaluate(*args)
    return _with(loss, value), grad


def _in_state(start: Callable, value: float, *args: Any) -> unrolls.Run:
    run = start(*args)
    return run._replace(state=pytree.tree_map_only(Tensor, lambda state: _with(state, value), run.state))


def _in_data(transfer: Callable, value: float, *args: Any) -> Any:
    episodes = transfer(*args)
    return episodes.with_tensors({name: _with(tensor, value) for name, tensor in episodes.tensor_fields().items()})


def _in_start(transfer: Callable, value: float, *args: Any) -> Any:
    episodes = transfer(*args)
    return episodes.with_tensors({"theta": _with(episodes.theta, value)})


def _in_curves(evaluate: Callable, value: float, *args: Any) -> tuple[Tensor, Tensor | None]:
    curves, accuracy = evaluate(*args)
    return _with(curves, value), accuracy


def _in_objective(step: Callable, value: float, learner: Any, objective: Tensor) -> Tensor:
    return step(learner, objective * value)


def _in_adam(step: Callable, value: float, learner: Any, objective: Tensor) -> Tensor:
    states = learner.optimizers().state
    first = None if states else step(learner, objective)  # which makes the state; the next step meets the value
    for state in states.values():
        state["exp_avg"].view(-1)[0] = value
    return step(learner, objective) if first is None else first


def _in_rate(step: Callable, value: float, learner: Any, objective: Tensor) -> Tensor:
    learner.optimizers().param_groups[0]["lr"] = value
    return step(learner, objective)


def _in_phi(step: Callable, value: float, learner: Any, objective: Tensor) -> Tensor:
    next(learner.rule.parameters()).data.view(-1)[0] = value
    return step(learner, objective)


def _with(tensor: Tensor, value: float) -> Tensor:
    """A tensor with one of its numbers replaced."""
    if not tensor.is_floating_point() or not tensor.numel():
        return tensor
    spoiled = torch.zeros_like(tensor)
    spoiled.view(-1)[0] = value
    return tensor + spoiled


LEARNER = meta_learner.MetaLearner
PLACES: dict[str, tuple[Any, str, Callable]] = {
    "gradients": (unrolls, "_evaluate", _in_gradients),
    "losses": (unrolls, "_evaluate", _in_losses),
    "the rule's state": (meta_gradients, "start", _in_state),
    "data": (LEARNER, "on_after_batch_transfer", _in_data),
    "starts": (LEARNER, "on_after_batch_transfer", _in_start),
    "validation": (meta_learner, "evaluate", _in_curves),
    "the meta-gradient": (LEARNER, "meta_step", _in_objective),
    "Adam's state": (LEARNER, "meta_step", _in_adam),
    "the learning rate": (LEARNER, "meta_step", _in_rate),
    "φ": (LEARNER, "meta_step", _in_phi),
}
CALLS = {
    "_evaluate": 60,
    "start": 4,
    "on_after_batch_transfer": 6,
    "evaluate": 2,
    "meta_step": 8,
}  # of a small fit
