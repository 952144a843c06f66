"""Rules whose meta-parameters have the optimizee's shapes, such as a number for each coordinate of θ."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules.base import Layout, UpdateRule


class ShapedByOptimizee(UpdateRule):
    """A rule that makes φ, or a part of it, when it first meets an optimizee, or the numbers that it is to load.

    So no setting repeats the optimizee's size. ``MetaLearner`` shows its rule an episode before it makes its optimizer,
    by ``bind`` and ``start``. From then on the rule refuses optimizees of other shapes.
    """

    @abstractmethod
    def take_shapes(self, tensors: Mapping[str, Tensor]) -> None:
        """Makes what is not made yet, in the shapes of numbers that will be loaded.

        Args:
            tensors: as in the rule's ``state_dict``; any may be missing.
        """

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.take_shapes(below(prefix, state_dict))
        super()._load_from_state_dict(state_dict, prefix, *args)


def take_shapes(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Prepares all rules in a module for numbers that will be loaded, so that their shapes can be compared before.

    Args:
        module: a rule, or what contains one.
        tensors: as in the module's ``state_dict``.
    """
    for name, part in list(module.named_modules()):
        if isinstance(part, ShapedByOptimizee):
            part.take_shapes(below(f"{name}." if name else "", tensors))


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def coordinate_parameter() -> nn.Parameter:
    """A parameter for a number of each coordinate of θ, which is empty until their number is known."""
    return nn.Parameter(torch.zeros(0))


def take_shape(parameter: nn.Parameter, tensor: Tensor | None) -> None:
    """Makes an empty parameter as long as a vector that it will be given, [P]."""
    if parameter.numel() == 0 and tensor is not None and tensor.ndim == 1:
        parameter.data = parameter.new_zeros(tensor.shape)


def size_of(layout: Layout) -> int:
    """P, the number of coordinates of θ."""
    return max((place.stop for place in layout.values()), default=0)


def refuse_other_size(rule: UpdateRule, parameter: nn.Parameter, size: int) -> None:
    """Refuses an optimizee of another size than the one that the rule knows.

    Raises:
        InvalidInputError: names both sizes.
    """
    if parameter.numel() not in (0, size):
        raise InvalidInputError(
            f"rule is {rule.label} with a number for each of {parameter.numel():,} coordinates, but the optimizee has "
            f"{size:,} parameters: give the network that it was trained on, or train it anew."
        )
