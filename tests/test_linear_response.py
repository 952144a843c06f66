"""The linear filter that comes closest to a rule's steps."""

import pytest
import torch

from lightning_l2l.meta_gradients.linear_response import impulse_response
from lightning_l2l.rules import layout_of


@pytest.mark.parametrize("adaptive", [True, False])
def test_impulse_response_is_that_of_the_filter_that_took_the_steps(adaptive):
    grads = torch.randn(40, 2, 60, dtype=torch.float64) * torch.logspace(-3, 1, 60, dtype=torch.float64)
    scale = grads.square().mean(0).sqrt() if adaptive else torch.ones(2, 60, dtype=torch.float64)
    want = torch.zeros(20, 2, 60, dtype=torch.float64)
    want[:3] = torch.tensor([-0.5, 0.2, -0.1])[:, None, None] / scale
    want[:, :, 50:] *= 3  # another parameter tensor
    padded = torch.cat([torch.zeros(2, 2, 60), grads])
    updates = sum(want[lag] * padded[2 - lag : 42 - lag] for lag in range(3))
    got = impulse_response(grads, updates, layout_of({"weight": (5, 10), "bias": (10,)}))
    torch.testing.assert_close(got * scale, want * scale, rtol=0, atol=0.01)
