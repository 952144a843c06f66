"""Networks and sources of the everyday problems."""

import math

import pytest
import torch

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees import (
    MLP,
    AllConvNet,
    Autoencoder,
    MatrixFactors,
    PackageText,
    PhotographMatrix,
    ResidualNet,
    TruncatedNormalStart,
)


def test_truncated_starts_are_haikus():
    network = TruncatedNormalStart(MLP(400, (300,), 10, "relu"))
    network.reset_parameters()
    weight, bias = network.network[1].weight, network.network[1].bias
    std = 1 / math.sqrt(400)
    assert weight.abs().max() <= 2 * std and not bias.any()
    assert weight.std().item() == pytest.approx(0.88 * std, rel=0.02)  # cut off at two standard deviations
    convolution = TruncatedNormalStart(AllConvNet(3, (8,), (1,)))
    convolution.reset_parameters()
    assert 0.7 < convolution.network.layers[0].weight.std().item() * math.sqrt(27) < 1


@pytest.mark.parametrize("network", [AllConvNet(1, (4, 8), (2, 1), 5, True), ResidualNet(1, (4, 8), (1, 2), 5)])
def test_convolutional_networks_give_logits(network):
    assert network(torch.randn(3, 1, 12, 12)).shape == (3, 5)


def test_wrong_sizes_are_refused():
    with pytest.raises(InvalidInputError, match=r"channels \[4\], strides \[1, 1\]"):
        AllConvNet(1, (4,), (1, 1))
    with pytest.raises(InvalidInputError, match=r"data\.network\.rank"):
        MatrixFactors(3, 4, 0)


def test_factors_predict_entries():
    network = MatrixFactors(5, 6, 2)
    torch.nn.init.normal_(network.row_offsets.weight)
    matrix = network.row_factors.weight @ network.column_factors.weight.T + network.row_offsets.weight
    assert torch.allclose(network(torch.tensor([[1, 5], [4, 0]])), matrix[[1, 4], [5, 0]])


def test_a_photograph_is_a_matrix_of_entries():
    entries = PhotographMatrix("china").load()
    assert len(entries) == 427 * 640 and entries.inputs.max(0).values.tolist() == [426, 639]
    assert entries.targets.mean().abs() < 1e-3 and entries.targets.std().item() == pytest.approx(1, abs=1e-3)
    with pytest.raises(InvalidInputError, match="photograph"):
        PhotographMatrix("dog")


def test_a_packages_text_is_there_offline():
    windows = PackageText("json", "*.py", 16).load()
    inputs, targets = windows.minibatch(torch.tensor([0, 7]), torch.float32)
    assert inputs.shape == (2, 16) and torch.equal(inputs[:, 1:], targets[:, :-1])
    with pytest.raises(InvalidInputError, match="no_such_package"):
        PackageText("no_such_package", "*.py").load()
    with pytest.raises(InvalidInputError, match=r"data\.source\.files is json \*\.nope"):
        PackageText("json", "*.nope").load()


def test_an_autoencoder_may_end_in_a_sigmoid():
    outputs = Autoencoder(9, (4,), "relu", sigmoid_output=True)(torch.randn(5, 9) * 100)
    assert outputs.min() >= 0 and outputs.max() <= 1
