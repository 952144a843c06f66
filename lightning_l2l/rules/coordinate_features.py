"""What ``PerCoordinateMLP`` sees of each coordinate, after the inputs of AdafacMLP (arXiv:2203.11860)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_l2l.rules.base import Layout

DECAYS = (0.9, 0.99, 0.999)  # of the running means of ∇, and of the rows' and columns' means of ∇²
SQUARE_DECAY = 0.999  # of the running mean of ∇²
FLOOR = 1e-8  # added to the root of a second moment, relative to the tensor's
COUNT = 3 + 6 * len(DECAYS)  # features of a coordinate
TIMESCALES = tuple(scale * 10**power for power in range(6) for scale in (1, 3))[:11]  # steps: 1, 3, 10, ... 100,000


class SecondMoments(NamedTuple):
    """Running means of ∇². Those of rows and columns are of their mean ∇², at all ``DECAYS``.

    A tensor of more than two dimensions counts as a matrix, with its first dimension as rows; a vector is a column.
    """

    coordinates: Tensor  # [N, P]
    rows: tuple[Tensor, ...]  # of each tensor, [N, 3, R]
    columns: tuple[Tensor, ...]  # of each tensor, [N, 3, C]

    @classmethod
    def zeros(cls, theta: Tensor, layout: Layout) -> "SecondMoments":
        """Those before the first step, for θ [N, P]."""
        shapes = [matrix_shape(place.shape) for place in layout.values()]
        rows, columns = ([theta.new_zeros(len(theta), len(DECAYS), s[side]) for s in shapes] for side in (0, 1))
        return cls(torch.zeros_like(theta), tuple(rows), tuple(columns))

    def after(self, grad: Tensor, decays: Tensor, layout: Layout) -> "SecondMoments":
        """Those after one more gradient.

        Args:
            grad: ∇_t, [N, P].
            decays: ``DECAYS``, [3, 1].
            layout: the parameter tensors.
        """
        square = grad.square()
        rows, columns = [], []
        for place, last_rows, last_columns in zip(layout.values(), self.rows, self.columns, strict=True):
            matrix = square[:, None, place.coordinates].unflatten(-1, matrix_shape(place.shape))
            rows.append(torch.lerp(matrix.mean(-1), last_rows, decays))
            columns.append(torch.lerp(matrix.mean(-2), last_columns, decays))
        return SecondMoments(square.lerp(self.coordinates, SQUARE_DECAY), tuple(rows), tuple(columns))


class Inputs(NamedTuple):
    """What the rule computes a step from; none of it is differentiated."""

    features: Tensor  # [N, 21, P], clamped
    root: Tensor  # root of the coordinates' second moments, floored; 1 where no gradient has been; [N, P]
    saturated: Tensor  # the share of each tensor's features that are clamped, [N, number of tensors]


@torch.no_grad()
def coordinate_inputs(
    grad: Tensor, theta: Tensor, means: Tensor, square: SecondMoments, layout: Layout, largest: float
) -> Inputs:
    """Computes the features of all tensors.

    Args:
        grad: ∇_t, [N, P].
        theta: θ_t, [N, P].
        means: running means of ∇, [N, 3, P].
        square: running means of ∇².
        layout: the parameter tensors.
        largest: the features' limit.
    """
    features, roots, saturated = [], [], []
    for number, place in enumerate(layout.values()):
        at = place.coordinates
        root = floored(square.coordinates[:, None, at].sqrt())
        factors = square.rows[number].sqrt(), square.columns[number].sqrt()
        own = tensor_features(grad[:, None, at], theta[:, None, at], means[..., at], root, *factors)
        saturated.append((own.abs() > largest).to(own.dtype).mean((1, 2)))
        features.append(own.clamp_(-largest, largest))
        roots.append(root[:, 0])
    return Inputs(torch.cat(features, -1), torch.cat(roots, -1), torch.stack(saturated, -1))


def tensor_features(grad: Tensor, theta: Tensor, means: Tensor, root: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Computes the features of one tensor of p = R · C coordinates, each divided by its root mean square.

    They are, for every coordinate: ∇; θ; its means of ∇; the root of its mean of ∇²; the roots of its row's and its
    column's; its means of ∇ over its own root; ∇, then its means of ∇, over the factored root, which is that of
    Adafactor (arXiv:1804.04235, section 3): row · column / mean. Where a tensor has had no gradient they are 0.

    Args:
        grad: ∇, [N, 1, p].
        theta: θ, [N, 1, p].
        means: running means of ∇, [N, 3, p].
        root: floored root of the running mean of ∇², [N, 1, p].
        rows: roots of the rows' running means, [N, 3, R].
        columns: roots of the columns' running means, [N, 3, C].

    Returns:
        [N, 21, p].
    """
    shape = *rows.shape, columns.shape[-1]
    of_rows, of_columns = rows[..., :, None].expand(shape).flatten(2), columns[..., None, :].expand(shape).flatten(2)
    factored = floored(of_rows * (of_columns / nonzero(root_mean_square(columns))))
    ratios = means / root, grad / factored, means / factored
    features = torch.cat([grad, theta, means, root, of_rows, of_columns, *ratios], 1)
    return features.div_(nonzero(root_mean_square(features)))


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a parameter tensor seen as a matrix."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def root_mean_square(values: Tensor) -> Tensor:
    """Over the last dimension, [..., 1]."""
    return torch.linalg.vector_norm(values, dim=-1, keepdim=True) / math.sqrt(values.shape[-1])


def floored(root: Tensor) -> Tensor:
    """Adds the floor to a tensor's roots [..., p]; 1 where all of them are 0."""
    return nonzero(root + FLOOR * root_mean_square(root))


def nonzero(divisor: Tensor) -> Tensor:
    """Replaces zeros by 1, so that 0 divided by it is 0."""
    return torch.where(divisor > 0, divisor, 1.0)
