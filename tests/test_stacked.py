"""Layers that take the parameters of several networks side by side."""

import pytest
import torch
from torch import nn

from lightning_l2l.optimizees import ModuleTraining, Table
from lightning_l2l.optimizees.module_episodes import unflatten
from lightning_l2l.optimizees.networks import stacked

N, B, L = 3, 5, 4
SEQUENCE, IMAGES, NUMBERS = torch.randn(N, B, L, 6), torch.randn(N, B, 2, 7, 7), torch.randint(9, (N, B, L))
LAYERS = {
    "linear": (stacked.Linear(6, 3), SEQUENCE),
    "embedding": (stacked.Embedding(9, 4), NUMBERS),
    "layer norm": (stacked.LayerNorm(6), SEQUENCE),
    "batch norm": (stacked.BatchNorm(6), SEQUENCE[:, :, 0]),
    "batch norm of images": (stacked.BatchNorm(2), IMAGES),
    "convolution": (stacked.Conv2d(2, 4, 3, stride=2, padding=1), IMAGES),
    "GRU": (stacked.GRU(6, 5), SEQUENCE),
    "LSTM": (stacked.LSTM(6, 5), SEQUENCE),
    "attention": (stacked.Attention(6, 2, causal=False), SEQUENCE),
    "causal attention": (stacked.Attention(6, 2, causal=True), SEQUENCE),
    "places": (stacked.Places(L, 6), SEQUENCE),
    "residual": (stacked.Residual(stacked.LayerNorm(6), stacked.Linear(6, 6), nn.Tanh()), SEQUENCE),
}


def outputs_and_derivatives(function, theta, inputs):
    """Outputs, and the first and second derivatives of a scalar of them."""
    theta = theta.clone().requires_grad_()
    outputs = function(theta, inputs)
    (grad,) = torch.autograd.grad(outputs.sin().sum(), theta, create_graph=True)
    (second,) = torch.autograd.grad(grad.sin().sum(), theta)
    return outputs.detach(), grad.detach(), second


@pytest.mark.parametrize("name", LAYERS)
def test_networks_side_by_side_equal_each_alone(name):
    layer, inputs = LAYERS[name]
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    theta = torch.randn(N, sum(p.numel() for p in layer.parameters()), dtype=torch.double)

    def run(theta, inputs):
        return torch.func.functional_call(layer, unflatten(theta, layer), (inputs,))

    together = outputs_and_derivatives(run, theta, inputs)
    for n in range(N):
        alone = outputs_and_derivatives(run, theta[n], inputs[n])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[n], b)


def test_a_network_or_loss_that_cannot_run_side_by_side_is_not_run_so():
    class Mixed(nn.CrossEntropyLoss):  # over all episodes
        def forward(self, outputs, targets):
            return super().forward(outputs, targets).mean()

    def batching(network, loss):
        data = ModuleTraining(network, loss, Table("iris"), batch_size=4, horizon=2)
        data.setup()
        return data.batching

    tied = stacked.Stacked(stacked.Linear(4, 4), stacked.Linear(4, 4), stacked.Linear(4, 3))
    tied[1].weight = tied[0].weight
    assert batching(stacked.Stacked(stacked.Linear(4, 3)), nn.CrossEntropyLoss()) == "stacked"
    assert batching(stacked.Stacked(nn.Linear(4, 3)), nn.CrossEntropyLoss()) == "losses"
    assert batching(stacked.Stacked(stacked.Linear(4, 3)), Mixed()) == "losses"
    assert batching(tied, nn.CrossEntropyLoss()) == "stacked"
    assert tied[1].weight is tied[0].weight and isinstance(tied[0].weight, nn.Parameter)


@pytest.mark.parametrize(("own", "torchs"), [(stacked.GRU, nn.GRU), (stacked.LSTM, nn.LSTM)])
def test_recurrent_layers_are_torchs(own, torchs):
    layer, expected = own(6, 5), torchs(6, 5, batch_first=True)
    expected.load_state_dict({f"{name}_l0": value for name, value in layer.state_dict().items()})
    torch.testing.assert_close(layer(SEQUENCE[0]), expected(SEQUENCE[0])[0])


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_torchs(causal):
    layer, expected = stacked.Attention(6, 2, causal), nn.MultiheadAttention(6, 2, batch_first=True)
    expected.load_state_dict(
        {
            "in_proj_weight": layer.inputs.weight,
            "in_proj_bias": layer.inputs.bias,
            "out_proj.weight": layer.outputs.weight,
            "out_proj.bias": layer.outputs.bias,
        }
    )
    mask = torch.ones(L, L, dtype=torch.bool).triu(1) if causal else None
    inputs = (SEQUENCE[0],) * 3
    torch.testing.assert_close(layer(SEQUENCE[0]), expected(*inputs, attn_mask=mask)[0])


def test_batch_norm_is_torchs_in_training():
    layer, expected = stacked.BatchNorm(2), nn.BatchNorm2d(2)
    torch.testing.assert_close(layer(IMAGES[0]), expected(IMAGES[0]))
