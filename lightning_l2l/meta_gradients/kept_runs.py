"""Runs that a meta-gradient keeps from one meta-batch to the next, in checkpoints."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_l2l.episodes import Episodes
from lightning_l2l.rules import UpdateRule
from lightning_l2l.unroll import Run, start


def pack(episodes: Episodes, run: Run) -> dict[str, Any]:
    """Returns runs, and the episodes they belong to, as tensors and numbers that a checkpoint may hold."""
    return {"episodes": episodes.tensor_fields(), "run": pytree.tree_leaves(run.detach())}


def unpack(packed: dict[str, Any], rule: UpdateRule, like: Episodes) -> tuple[Episodes, Run]:
    """Undoes ``pack``.

    Args:
        packed: what ``pack`` returned.
        rule: the rule as it was run.
        like: other episodes of the same DataModule, which supply the shared fields, such as a dataset.
    """
    device = like.theta.device
    episodes = like.with_tensors({name: value.to(device) for name, value in packed["episodes"].items()})
    with torch.no_grad():
        form = pytree.tree_structure(start(rule, episodes))
    leaves = [leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in packed["run"]]
    return episodes, pytree.tree_unflatten(leaves, form)
