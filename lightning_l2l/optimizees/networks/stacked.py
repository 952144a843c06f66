"""Torch's layers, which also take the parameters of N episodes side by side.

Each has the parameters and the initialisation of torch's layer. Given that layer's own parameters it computes the same.
Given parameters [N, ...] and inputs [N, B, ...] it runs the N networks at once, in half the time that vmap takes: its
rules for small matrix products, and its dispatch, cost more than the products. Both forms can be differentiated twice.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Stacked(nn.Sequential):
    """A network of the layers below, and of modules without parameters that do not care about leading dimensions."""

    stacked = True


class Residual(nn.Sequential):
    """x + f(x)."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + super().forward(inputs)


class Linear(nn.Linear):
    """On the last dimension."""

    def forward(self, inputs: Tensor) -> Tensor:
        return affine(inputs, self.weight, self.bias)


class Embedding(nn.Embedding):
    """Numbers [.., B, L] to vectors [.., B, L, D]."""

    def forward(self, numbers: Tensor) -> Tensor:
        if self.weight.ndim == 2:
            return F.embedding(numbers, self.weight)
        count, size, _ = self.weight.shape
        first = size * torch.arange(count, device=numbers.device)
        return F.embedding(numbers + first.view(-1, *[1] * (numbers.ndim - 1)), self.weight.flatten(0, 1))


class LayerNorm(nn.LayerNorm):
    """Over the last dimension."""

    def forward(self, inputs: Tensor) -> Tensor:
        if self.weight.ndim == 1:
            return super().forward(inputs)
        shape = len(self.weight), *[1] * (inputs.ndim - 2), -1
        normal = F.layer_norm(inputs, self.normalized_shape, eps=self.eps)
        return torch.addcmul(self.bias.view(shape), normal, self.weight.view(shape))


class BatchNorm(nn.BatchNorm1d):
    """Over the minibatch [.., B, C] and, for images [.., B, C, H, W], over positions, by its own statistics.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, track_running_stats=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.weight.ndim == 1:
            return F.batch_norm(inputs, None, None, self.weight, self.bias, training=True, eps=self.eps)
        channels = inputs.transpose(0, 1)
        scale, offset = self.weight.flatten(), self.bias.flatten()
        normal = F.batch_norm(channels.flatten(1, 2), None, None, scale, offset, training=True, eps=self.eps)
        return normal.view(channels.shape).transpose(0, 1)


class Conv2d(nn.Conv2d):
    """On images [.., B, C, H, W]; the networks side by side are the groups of one convolution."""

    def forward(self, inputs: Tensor) -> Tensor:
        if self.weight.ndim == 4:
            return super().forward(inputs)
        count, batch = inputs.shape[:2]
        assert self.bias is not None
        weight, bias = self.weight.flatten(0, 1), self.bias.flatten()
        images = inputs.transpose(0, 1).flatten(1, 2)
        outputs = F.conv2d(images, weight, bias, self.stride, self.padding, groups=count)
        return outputs.view(batch, count, self.out_channels, *outputs.shape[2:]).transpose(0, 1)


class GRU(nn.GRUCell):
    """A gated recurrent unit, from zero, along sequences [.., B, L, D]: its hidden states, [.., B, L, H]."""

    def forward(self, inputs: Tensor) -> Tensor:  # type: ignore[override]
        hidden = inputs.new_zeros(*inputs.shape[:-2], self.hidden_size)
        states = []
        for given in affine(inputs, self.weight_ih, self.bias_ih).unbind(-2):
            own = affine(hidden, self.weight_hh, self.bias_hh)
            reset, update = (given + own)[..., : 2 * self.hidden_size].sigmoid().chunk(2, -1)
            new = torch.addcmul(given[..., -self.hidden_size :], reset, own[..., -self.hidden_size :]).tanh()
            hidden = torch.lerp(new, hidden, update)
            states.append(hidden)
        return torch.stack(states, -2)


class LSTM(nn.LSTMCell):
    """A long short-term memory, from zero, along sequences [.., B, L, D]: its hidden states, [.., B, L, H]."""

    def forward(self, inputs: Tensor) -> Tensor:  # type: ignore[override]
        hidden = cell = inputs.new_zeros(*inputs.shape[:-2], self.hidden_size)
        states = []
        for given in affine(inputs, self.weight_ih, self.bias_ih).unbind(-2):
            gates = given + affine(hidden, self.weight_hh, self.bias_hh)
            entry, keep, new, out = gates.chunk(4, -1)
            cell = torch.addcmul(keep.sigmoid() * cell, entry.sigmoid(), new.tanh())
            hidden = out.sigmoid() * cell.tanh()
            states.append(hidden)
        return torch.stack(states, -2)


class Attention(nn.Module):
    """Self-attention of several heads on sequences [.., B, L, D].

    Args:
        width: D.
        heads: a divisor of D.
        causal: whether a place sees only itself and those before it.
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.inputs = Linear(width, 3 * width)
        self.outputs = Linear(width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        split = self.inputs(inputs).unflatten(-1, (3, self.heads, -1)).transpose(-4, -2)
        query, key, value = split.unbind(-3)  # each [.., B, heads, L, D / heads]
        scores = query @ key.mT * query.shape[-1] ** -0.5
        if self.causal:
            length = scores.shape[-1]
            scores = scores.masked_fill(scores.new_ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
        return self.outputs((scores.softmax(-1) @ value).transpose(-3, -2).flatten(-2))


class Places(nn.Embedding):
    """Adds to each place of sequences [.., B, L, D] a vector of its own."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.weight.unsqueeze(-3)


def affine(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x Wᵀ + b on the last dimension.

    Args:
        inputs: [.., D].
        weight: [E, D]; or [N, E, D] if the inputs are [N, .., D].
        bias: [E]; or [N, E].
    """
    if weight.ndim == 2:
        return F.linear(inputs, weight, bias)
    outputs = torch.baddbmm(bias[:, None], inputs.flatten(1, -2), weight.mT)
    return outputs.unflatten(1, inputs.shape[1:-1])
