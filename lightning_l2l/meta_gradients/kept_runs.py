"""Runs that a meta-gradient keeps from one meta-batch to the next, in checkpoints."""

from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.unroll import Run


def pack(episodes: Episodes, run: Run) -> dict[str, Any]:
    """Returns runs, and the episodes they belong to, as tensors and numbers that a checkpoint may hold."""
    return {"episodes": episodes.kept(), "run": pytree.tree_leaves(run.detach())}


def unpack_episodes(packed: dict[str, Any], like: Episodes) -> Episodes:
    """Returns the episodes that were packed.

    Args:
        packed: what ``pack`` returned.
        like: other episodes of the same DataModule, which supply the shared fields, such as a dataset.
    """
    return like.restored({name: value.to(like.theta.device) for name, value in packed["episodes"].items()})


def unpack_run(packed: dict[str, Any], like: Run) -> Run:
    """Returns where the runs that were packed stand.

    Args:
        packed: what ``pack`` returned.
        like: a run of the same rule and meta-gradient on the unpacked episodes, such as one that has just begun.

    Raises:
        InvalidInputError: the rule's state had another form when they were packed.
    """
    device = like.theta.device
    leaves = [leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in packed["run"]]
    form = pytree.tree_structure(like)
    if len(leaves) != form.num_leaves:
        raise InvalidInputError(
            f"ckpt_path has runs in progress whose states hold {len(leaves)} values, but here they hold "
            f"{form.num_leaves}: another version wrote it, so export its rule and start from that."
        )
    return pytree.tree_unflatten(leaves, form)
