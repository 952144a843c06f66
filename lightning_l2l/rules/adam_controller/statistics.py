"""What the controller sees of a parameter tensor: statistics of its gradients, and the features made of them.

Everything here is computed without gradients: for a meta-gradient these numbers are constants.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_l2l.rules.adam_controller.orthogonal import matrix_shape

FEATURES = 22
SHARED = 6  # features that are also shown as means over tensors
SHAPE = 5  # numbers that describe a tensor's shape
FIRST = 8  # the network runs at each of the first steps
REFERENCE = 6  # step whose gradients' size later ones are compared with
DECAY = 0.8  # of the running mean of cos(g, last m₉)
VANISHED = 1e-12  # mean square of m₉, relative to v₉₉₉, below which a gradient counts as vanished


class Means(NamedTuple):
    """Means over each tensor's coordinates at step t, without bias corrections, each [..., tensors]."""

    last: Tensor  # of the last m₉²
    grad_last: Tensor  # of g · last m₉
    grad: Tensor  # of g²
    theta: Tensor  # of θ²
    m9: Tensor  # of m₉²
    m99: Tensor  # of m₉₉²
    m9_m99: Tensor  # of m₉ · m₉₉
    v99: Tensor
    v999: Tensor
    adam: Tensor  # of m₉² / v₉₉
    orthogonal: Tensor  # of O²
    m9_orthogonal: Tensor  # of m₉ · O


class Memory(NamedTuple):
    """What a tensor keeps from one run of the network to the next."""

    agreement: Tensor  # running mean of cos(g, last m₉), [..., tensors]
    reference: Tensor  # mean v₉₉ of the sixth step, [..., tensors]
    shared: Tensor  # what other tensors see of it, [..., tensors, 6]


class Sizes(NamedTuple):
    """Means with their bias corrections, for the network's outputs to refer to, each [..., tensors]."""

    theta: Tensor  # root mean square of θ
    adam: Tensor  # root mean square of m₉ / √v₉₉
    grad: Tensor  # root mean of v₉₉
    vanished: Tensor  # whether the gradient has


def bias_correction(decay: float, t: Tensor) -> Tensor:
    """The sum 1 − βᵗ of a running mean's weights, precisely."""
    return -torch.expm1(t * math.log(decay))


def shape_features(shape: tuple[int, ...], all_sides: bool) -> list[float]:
    """Five features of a tensor's shape: whether it is a vector, its smaller side, and three more or zeros."""
    matrix = matrix_shape(shape)
    if matrix is None:
        return [0.5, 0.0, 0.0, 0.0, 0.0]
    small, large = max(min(matrix), 1), max(*matrix, 1)
    more = [math.log(large / small) / 3, math.log(large) / 3 - 1, math.log(max(matrix[1], 1)) / 3 - 1]
    return [-0.5, math.log(small) / 3 - 0.7, *(more if all_sides else [0.0] * 3)]


def runs_until(t: Tensor, every: int) -> Tensor:
    """How often the network has run in the first t steps."""
    return t.clamp(max=FIRST) + (t // every - FIRST // every).clamp(min=0)


def remember(means: Means, memory: Memory, t: Tensor, every: int) -> tuple[Memory, Tensor, Sizes]:
    """Computes what a tensor's own gradients say.

    Args:
        means: the statistics of step t.
        memory: as the last call returned it; zeros before the first.
        t: the step's number, from 1, [..., tensors].
        every: after the first steps, the network runs at multiples of this one.

    Returns:
        The next memory, features that are the tensor's own [..., tensors, 3], and sizes.
    """
    c9, c99, c999 = (bias_correction(decay, t) for decay in (0.9, 0.99, 0.999))
    v99, v999, adam = means.v99 / c99, means.v999 / c999, means.adam * c99 / c9.square()
    reference = torch.where(t <= REFERENCE, v99, memory.reference)
    agreement = torch.lerp(_cosine(means.grad_last, means.grad, means.last), memory.agreement, DECAY)
    tiny = torch.finfo(v99.dtype).tiny
    shared = [
        _half_log(means.m9 / c9.square(), v99, -4, 1),
        _half_log(means.m99 / c99.square(), v99, -4, 1),
        _cosine(means.m9_m99, means.m9, means.m99),
        agreement / bias_correction(DECAY, runs_until(t, every)),
        _half_log(v99, v999, -2, 2),
        0.7 * (0.5 * means.theta.clamp(min=math.exp(-10)).log() + 2.5),
    ]
    own = [
        0.5 * _half_log(v99.clamp(min=tiny), reference, -5, 5),
        _half_log(adam, torch.ones_like(adam), -4, 1),
        _cosine(means.m9_orthogonal, means.m9, means.orthogonal),
    ]
    vanished = means.m9 / c9.square() <= VANISHED * v999
    sizes = Sizes(means.theta.sqrt(), adam.sqrt(), v99.sqrt(), vanished)
    return Memory(agreement, reference, torch.stack(shared, -1)), torch.stack(own, -1), sizes


def features(shared: Tensor, everyone: Tensor, own: Tensor, shape: Tensor, t: Tensor) -> Tensor:
    """Puts the network's inputs in their order, [..., tensors, 22].

    Args:
        shared: what other tensors see of each, [..., tensors, 6].
        everyone: its mean over tensors, [..., 1, 6].
        own: see ``remember``, [..., tensors, 3].
        shape: see ``shape_features``, [tensors, 5].
        t: the step's number, from 1, [..., tensors].
    """
    shape = shape.expand(*own.shape[:-1], SHAPE)
    time = torch.stack([(t + 0.5).log() / 3 - 1, 2 / (t + 1).sqrt()], -1).expand(*own.shape[:-1], 2)
    return torch.cat(
        [
            shared[..., 5:],
            shared[..., :5],
            own[..., :2],
            shape[..., :1],
            time,
            shape[..., 2:],
            everyone.expand_as(shared),
            shape[..., 1:2],
            own[..., 2:],
        ],
        -1,
    )


def _half_log(numerator: Tensor, denominator: Tensor, low: float, high: float) -> Tensor:
    """½ log of a ratio of mean squares, clamped before the logarithm, so that zeros give a bound and not infinity."""
    ratio = numerator / denominator.clamp(min=torch.finfo(denominator.dtype).tiny)
    return 0.5 * ratio.clamp(math.exp(2 * low), math.exp(2 * high)).log()


def _cosine(product: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The cosine of two tensors by the means of their product and of their squares; 0 where one of them is zero."""
    size = first.sqrt() * second.sqrt()  # the product of squares would underflow
    return (product / size.clamp(min=torch.finfo(size.dtype).tiny)).clamp(-1, 1)
