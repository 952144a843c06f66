"""Learning to learn by gradient descent by gradient descent (arXiv:1606.04474), as a PyTorch Lightning template."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_l2l.learned_optimizer import LearnedOptimizer

__all__ = ["LearnedOptimizer"]


def __getattr__(name: str) -> Any:
    """Imports ``LearnedOptimizer`` when it is first asked for, so that the core needs torch only."""
    if name != "LearnedOptimizer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightning_l2l.learned_optimizer import LearnedOptimizer

    return LearnedOptimizer
