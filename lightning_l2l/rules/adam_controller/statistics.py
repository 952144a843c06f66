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
MEMORY = 2 + SHARED  # numbers that a tensor keeps, see ``Memory``
SHAPE = 5  # numbers that describe a tensor's shape
FIRST = 8  # the network runs at each of the first steps
REFERENCE = 6  # step whose gradients' size later ones are compared with
DECAY = 0.8  # of the running mean of cos(g, last m₉)
QUIET = 0.25  # mean square of g, relative to v₉₉, below which O may shrink with it
LIMITS = (-4, -4, -4, -2, -5), (1, 1, 1, 2, 5)  # of the logarithms of five ratios, see ``remember``
SQUARES = math.exp(-10), math.exp(10)  # bounds of the mean of θ²; the upper one also stands for one that is not finite
VANISHED = 1e-12  # mean square of m₉, relative to v₉₉₉, below which a gradient counts as vanished


class Means(NamedTuple):
    """Means over each tensor's coordinates at step t, without bias corrections, each [..., tensors]."""

    last: Tensor  # of the last m₉²
    grad_last: Tensor  # of g · last m₉
    grad: Tensor  # of g²
    theta: Tensor  # of θ²
    m9: Tensor  # of m₉²
    m9_m99: Tensor  # of m₉ · m₉₉
    m9_orthogonal: Tensor  # of m₉ · O
    m99: Tensor  # of m₉₉²
    orthogonal: Tensor  # of O²
    v99: Tensor
    v999: Tensor
    adam: Tensor  # of m₉² / v₉₉


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
    t: Tensor  # the step's number
    strength: Tensor  # twice the root mean square of g over that of v₉₉, at most 1; 0 where the gradient has vanished


def bias_correction(decay: float, t: Tensor) -> Tensor:
    """The sum 1 − βᵗ of a running mean's weights, without cancellation."""
    return -torch.expm1(t * math.log(decay))


def bias_corrections(t: int) -> tuple[float, float, float]:
    """As ``bias_correction``, of the decays .9, .99 and .999."""
    return 1 - 0.9**t, 1 - 0.99**t, 1 - 0.999**t


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
    tiny = torch.finfo(t.dtype).tiny
    v99, v999, adam = means.v99 / c99, means.v999 / c999, means.adam * (c99 / c9.square())
    m9, m99 = means.m9 / c9.square(), means.m99 / c99.square()
    reference = torch.where(t <= REFERENCE, v99, memory.reference)
    numerators = torch.stack([m9, m99, adam, v99, v99.clamp(min=tiny)], -1)
    denominators = torch.stack([v99, v99, torch.ones_like(v99), v999, reference], -1)
    low, high = numerators.new_tensor(LIMITS).mul_(2).exp_()
    # ratios are clamped before the logarithm, so that zeros give a bound and not infinity
    logarithms = (numerators / denominators.clamp(min=tiny)).clamp(low, high).log() / 2
    products = torch.stack([means.grad_last, means.m9_m99, means.m9_orthogonal], -1)
    lengths = torch.stack([means.grad, means.m9, means.m9, means.last, means.m99, means.orthogonal], -1).sqrt()
    lengths = lengths[..., :3] * lengths[..., 3:]  # roots first: the products of squares would underflow
    cosines = (products / lengths.clamp(min=tiny)).clamp(-1, 1)
    agreement = torch.lerp(cosines[..., 0], memory.agreement, DECAY)
    smooth = agreement / bias_correction(DECAY, runs_until(t, every))
    theta = means.theta.where(means.theta < SQUARES[1], SQUARES[1])
    size = size_feature(theta)
    r9, r99, log_adam, trend, growth = logarithms.unbind(-1)
    shared = torch.stack([r9, r99, cosines[..., 1], smooth, trend, size], -1)
    own = torch.stack([growth / 2, log_adam, cosines[..., 2]], -1)
    strength = (means.grad / (QUIET * v99).clamp(min=tiny)).clamp(max=1).sqrt().where(m9 > VANISHED * v999, 0.0)
    sizes = Sizes(theta.sqrt(), adam.sqrt(), v99.sqrt(), t.expand_as(v99), strength)
    return Memory(agreement, reference, shared), own, sizes


def size_feature(square: Tensor) -> Tensor:
    """A feature of the size of θ, from the mean of θ²."""
    return 0.35 * square.clamp(*SQUARES).log() + 1.75


def at_bounds(shared: Tensor) -> Tensor:
    """The share of four features that are at a bound, of what others see of a tensor, [6].

    The other bounded features, the growth of g² and the size of Adam's step, are not kept.
    """
    low, high = shared.new_tensor(LIMITS)[:, [0, 1, 3]]
    smallest, largest = size_feature(shared.new_tensor(SQUARES)).split(1)
    bounded, low, high = shared[[0, 1, 4, 5]], torch.cat([low, smallest]), torch.cat([high, largest])
    return ((bounded < low + 1e-3) | (bounded > high - 1e-3)).double().mean()


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
