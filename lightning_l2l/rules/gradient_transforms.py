"""learn2learn's gradient transforms as an update rule, and an update rule as such a transform."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_l2l.errors import InvalidInputError, require_positive
from lightning_l2l.extras import learn2learn
from lightning_l2l.rules.base import Layout, State, UpdateRule, layout_of
from lightning_l2l.rules.shaped import ShapedByOptimizee

Shapes = list[tuple[int, ...]]
"""The shapes of an optimizee's parameter tensors, in order."""

Name = Literal["meta_curvature", "kronecker", "linear"]


class GradientTransforms(ShapedByOptimizee):
    """Descends gradients that a learned transform of each parameter tensor has changed: g = −α T(∇).

    These are the steps of learn2learn's ``GBML`` with a transform that does not adapt. φ are the transforms'
    parameters. Learned transforms usually go with a learned start: put this rule into ``LearnedStart``.

    Args:
        transform: one of learn2learn's: ``meta_curvature`` (Park and Oliva, NeurIPS 2019), ``kronecker``, a
            Kronecker-factored matrix (Arnold et al., arXiv:1910.13603), or ``linear``, a whole matrix, with as many
            numbers as the square of the tensor's. The first two start as the identity, so that the untrained rule is
            gradient descent. In Python also anything that makes, from a parameter tensor, a module from its gradient to
            its update, such as ``learn2learn.optim.ModuleTransform(MyModule)``, and in a config the class path of such
            a module.
        learning_rate: α.

    Raises:
        InvalidInputError: learn2learn is needed, but not installed.
    """

    def __init__(
        self,
        transform: Name | Callable[[nn.Parameter], nn.Module] = "meta_curvature",
        learning_rate: float = 0.01,
    ) -> None:
        super().__init__()
        require_positive("learning_rate", learning_rate)
        self.transform = transform
        self.learning_rate = learning_rate
        if isinstance(transform, str):
            of_learn2learn(transform)  # now, if it is missing
        self._shapes: Shapes = []
        self.transforms = nn.ModuleList()
        self.register_buffer("shapes", torch.zeros(0, dtype=torch.long))  # so that a file tells how to make transforms
        self.register_buffer("like", torch.zeros(0), persistent=False)  # of the type and on the device of the rule
        self.shapes: Tensor
        self.like: Tensor

    def bind(self, layout: Layout) -> "GradientTransforms":
        """Makes the transforms of the first optimizee.

        Raises:
            InvalidInputError: the optimizee has other shapes than the first, or a tensor that has no such transform.
        """
        shapes = [place.shape for place in layout.values()]
        if not self._shapes:
            self._take(shapes)
        if shapes != self._shapes:
            raise InvalidInputError(
                f"rule is {self.label} of parameters of shapes {self._shapes}, but the optimizee's are {shapes}: give "
                "the network that it was trained on, or train it anew."
            )
        return self

    def take_shapes(self, tensors: Mapping[str, Tensor]) -> None:
        """Makes the transforms if the numbers are theirs; others are for whoever loads them to refuse."""
        if self._shapes or "shapes" not in tensors:
            return
        with torch.random.fork_rng(devices=[]):  # numbers that are replaced must not use up the caller's
            shapes = decoded(tensors["shapes"])
            if all(self._fits(shape, number, tensors) for number, shape in enumerate(shapes)):
                self._take(shapes)

    def init(self, theta: Tensor) -> State:
        return ()

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, State]:
        parts = grad.split([prod(shape) for shape in self._shapes], 1)
        updates = [
            torch.func.vmap(transform)(part.reshape(-1, *shape)).reshape(part.shape)
            for transform, part, shape in zip(self.transforms, parts, self._shapes, strict=True)
        ]
        return -self.learning_rate * torch.cat(updates, 1), state

    def _fits(self, shape: tuple[int, ...], number: int, tensors: Mapping[str, Tensor]) -> bool:
        """Whether numbers are those of a tensor's transform; takes no memory, since any shape may be declared."""
        try:
            with torch.device("meta"):
                own = self._transform_of(shape).state_dict(prefix=f"transforms.{number}.")
        except (OverflowError, RuntimeError):  # more numbers than can be counted
            return False
        return all(key in tensors and tensors[key].shape == value.shape for key, value in own.items())

    def _take(self, shapes: Shapes) -> None:
        """Makes the transforms of tensors of these shapes."""
        self.transforms.extend(map(self._transform_of, shapes))
        self.transforms.to(self.like)
        self.shapes = self.shapes.new_tensor(encoded(shapes))
        self._shapes = shapes

    def _transform_of(self, shape: tuple[int, ...]) -> nn.Module:
        make = of_learn2learn(self.transform) if isinstance(self.transform, str) else self.transform
        try:
            return make(nn.Parameter(torch.zeros(shape)))
        except NotImplementedError as error:
            raise InvalidInputError(
                f"rule is {self.label} by {self.transform}, which has no transform for one of the optimizee's "
                f"parameters, of shape {shape}: give another transform."
            ) from error


def of_learn2learn(name: str) -> Callable[[nn.Parameter], nn.Module]:
    """Finds one of learn2learn's transforms."""
    package = learn2learn(f"transform: {name}")
    transforms = {
        "meta_curvature": package.optim.MetaCurvatureTransform,
        "kronecker": package.optim.KroneckerTransform(package.nn.KroneckerLinear),
        "linear": package.optim.ModuleTransform(nn.Linear),
    }
    if name not in transforms:
        raise InvalidInputError(f"transform is {name}: give {', '.join(transforms)} or a class path.")
    return transforms[name]


def encoded(shapes: Shapes) -> list[int]:
    """Shapes as one list: of each, its number of dimensions and its sizes."""
    return [number for shape in shapes for number in (len(shape), *shape)]


def decoded(numbers: Tensor) -> Shapes:
    """Undoes ``encoded``; nothing for numbers that are no such list."""
    if numbers.ndim != 1 or numbers.dtype != torch.int64 or (numbers < 0).any():
        return []
    flat, shapes, place = numbers.tolist(), [], 0
    while place < len(flat):
        end = place + 1 + flat[place]
        shapes.append(tuple(flat[place + 1 : end]))
        place = end
    return shapes


class RuleTransform:
    """An update rule as a transform for learn2learn's ``GBML``, which changes gradients before they are descended.

    Each parameter tensor has a state of its own, which begins anew in every clone of the ``GBML``. A rule that mixes
    coordinates, such as ``GlobalAveragingLSTM``, mixes those of one tensor. φ is among the ``GBML``'s parameters. Give
    ``GBML`` lr=1, so that its steps are those of the rule.

    Args:
        rule: a rule that sees nothing but gradients, since ``GBML`` shows a transform nothing else.

    Raises:
        InvalidInputError: the rule sees more, has φ of the whole optimizee's shape, or learns where runs start, which
            is the ``GBML``'s own module.

    Example:
        >>> gbml = learn2learn.algorithms.GBML(model, RuleTransform(load_rule("mnist")), lr=1.0)
        >>> learner = gbml.clone()
        >>> learner.adapt(loss(learner))
    """

    def __init__(self, rule: UpdateRule) -> None:
        if rule.sees:
            raise InvalidInputError(
                f"rule is {rule.label}, which sees {' and '.join(rule.sees)}, but GBML shows a transform only "
                "gradients: give another rule."
            )
        if type(rule).start is not UpdateRule.start:
            raise InvalidInputError(
                f"rule is {rule.label}, but a run of GBML starts at its own module's parameters: give the rule inside "
                "it."
            )
        if isinstance(rule, ShapedByOptimizee):
            raise InvalidInputError(
                f"rule is {rule.label}, whose numbers belong to the parameters of one network, but GBML shows a "
                "transform one tensor at a time: give another rule."
            )
        self.rule = rule

    def __call__(self, parameter: Tensor) -> nn.Module:
        """Makes the transform of a parameter tensor."""
        return StepsOfRule(self.rule.bind(layout_of({"theta": parameter.shape})))


class StepsOfRule(nn.Module):
    """Turns one gradient after another into a rule's steps, with the sign of a gradient."""

    def __init__(self, rule: UpdateRule) -> None:
        super().__init__()
        self.rule = rule
        self.state: State | None = None

    def forward(self, grad: Tensor) -> Tensor:
        row = grad.reshape(1, -1)
        state = self.rule.init(row) if self.state is None else self.state
        step, self.state = self.rule.update(row, state)
        return -step.reshape(grad.shape)
