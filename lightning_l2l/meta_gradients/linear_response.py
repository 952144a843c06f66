"""The closest linear filter from gradients to an update rule's steps.

The derivative of a rule's step with respect to a gradient is of little use to the meta-gradient: where a gradient is
near zero, a learned rule's step jumps with its sign, and the product of many such derivatives explodes. What matters in
a long run is the rule's average response to gradients, noise included, and its steps show that response.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_l2l.rules import Layout

LAGS = 20  # steps after which a gradient's effect on the steps is ignored
RIDGE = 1e-3  # relative to the lags' mean square; gradients that hardly change do not distinguish the lags


def impulse_response(grads: Tensor, updates: Tensor, layout: Layout) -> Tensor:
    """Fits g_t ≈ Σ_k a_k ∇_{t-k} by least squares, to the steps of each parameter tensor of each episode.

    a_k is the same for all coordinates of the tensor, as in gradient descent, or is divided by the root mean square of
    the coordinate's gradients, as in Adam, whichever fits the steps better.

    Args:
        grads: ∇_t .. ∇_{t+K-1}, [K, N, P]; earlier ones count as zero.
        updates: g_t .. g_{t+K-1}, [K, N, P].
        layout: which coordinates belong to which parameter tensor.

    Returns:
        a_0, a_1, .., [lags, N, P]; at most K of them, and at most ``LAGS``.
    """
    lags = min(LAGS, len(grads))
    size = grads.square().mean(0).sqrt()
    size[size == 0] = torch.inf  # without a gradient the response is unknown: use none
    response = torch.zeros(lags, *size.shape, dtype=grads.dtype, device=grads.device)
    for place in (tensor.coordinates for tensor in layout.values()):
        fits = []
        for scale in (size[:, place], torch.ones_like(size[:, place])):
            explained, filters = _fit(grads[..., place] / scale, updates[..., place], lags)
            fits.append((explained, filters.T[..., None] / scale))
        (adaptive, divided), (plain, same) = fits
        response[..., place] = torch.where((adaptive > plain)[:, None], divided, same)
    return response


def _fit(inputs: Tensor, outputs: Tensor, lags: int) -> tuple[Tensor, Tensor]:
    """Least squares for each episode.

    Returns:
        How much of the outputs' sum of squares is explained, [N], and the filters, newest first, [N, lags].
    """
    inputs, outputs = inputs.transpose(0, 1), outputs.transpose(0, 1)
    products = F.pad(inputs @ inputs.mT, (lags - 1, 0, lags - 1, 0))  # ⟨∇_s, ∇_t⟩, with zeros before the first
    responses = F.pad(outputs @ inputs.mT, (lags - 1, 0))  # ⟨g_t, ∇_s⟩
    steps = range(inputs.shape[1])
    normal = torch.stack([products[:, t : t + lags, t : t + lags] for t in steps]).sum(0)
    target = torch.stack([responses[:, t, t : t + lags] for t in steps]).sum(0)
    ridge = RIDGE * normal.diagonal(dim1=1, dim2=2).mean(1) + torch.finfo(normal.dtype).tiny
    filters = torch.linalg.solve_ex(normal + ridge[:, None, None] * torch.eye(lags).to(normal), target)[0]
    return (filters * target).sum(1), filters.flip(1)
