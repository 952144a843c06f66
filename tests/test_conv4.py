"""The few-shot classifier, and θ of networks that hold a tensor under several names."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.extras import learn2learn
from lightning_l2l.optimizees import Conv4, ModuleTraining, TensorExamples
from lightning_l2l.optimizees.module_episodes import holding, layout, unflatten


@pytest.mark.parametrize(("settings", "features"), [({}, 64), ({"pool": True, "average": False, "width": 32}, 32)])
def test_it_is_mamls(settings, features):
    network, images = Conv4(**settings), torch.rand(5, 1, 28, 28)
    given = iter(network.parameters())
    hidden = images
    for _ in range(4):
        weight, bias, scale, offset = (next(given) for _ in range(4))
        hidden = F.conv2d(hidden, weight, bias, stride=1 if settings else 2, padding=1)
        hidden = F.batch_norm(hidden, None, None, scale, offset, training=True).relu()
        hidden = F.max_pool2d(hidden, 2) if settings else hidden
    want = F.linear(hidden.flatten(1) if settings else hidden.mean((2, 3)), *given)
    torch.testing.assert_close(network(images), want)
    assert want.shape == (5, 5) and network[-1].in_features == features


@pytest.mark.parametrize("settings", [{}, {"pool": True, "average": False, "image_size": 20}])
def test_networks_run_side_by_side(settings):
    network = Conv4(3, 4, **settings)
    size = sum(p.numel() for p in network.parameters())
    thetas, images = torch.randn(2, size), torch.rand(2, 6, 1, *[settings.get("image_size", 28)] * 2)
    with holding(network, unflatten(thetas, network)):
        together = network(images)
    for theta, own, outputs in zip(thetas, images, together, strict=True):
        vector_to_parameters(theta, network.parameters())
        torch.testing.assert_close(network(own), outputs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", [{"width": 0}, {"image_size": 8}, {"classes": -1}])
def test_sizes_that_make_no_network_are_refused(settings):
    with pytest.raises(InvalidInputError, match=r"data\.network has .* give positive numbers"):
        Conv4(**settings)


class Tied(nn.Module):
    """Two layers with one weight, and one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight, self.again = self.one.weight, self.one

    def forward(self, inputs):
        return self.again(self.two(self.one(inputs)).tanh())


def omniglot_cnn() -> nn.Module:
    pytest.importorskip("learn2learn", reason="learn2learn is an extra: uv sync --extra learn2learn")
    network = learn2learn("this test").vision.models.OmniglotCNN(5, 8)
    assert len(list(network.named_parameters(remove_duplicate=False))) == 34
    return torch.func.replace_all_batch_norm_modules_(network)


@pytest.mark.parametrize(
    ("make", "tensors", "shape"), [(Tied, 3, (4,)), (omniglot_cnn, 18, (1, 28, 28))], ids=["tied", "learn2learn"]
)
def test_theta_holds_each_tensor_once(make, tensors, shape):
    network, inputs = make(), torch.rand(5, *shape)
    before = dict(network.named_parameters(remove_duplicate=False))
    assert len(layout(network)) == tensors < len(before)
    theta = torch.randn_like(parameters_to_vector(network.parameters()))
    with holding(network, unflatten(theta, network)):
        outputs = network(inputs)
    after = dict(network.named_parameters(remove_duplicate=False))
    assert before.keys() == after.keys() and all(after[name] is p for name, p in before.items())
    vector_to_parameters(theta, network.parameters())
    torch.testing.assert_close(outputs, network(inputs))


@pytest.mark.parametrize("batching", ["losses", "gradients", "none"])
def test_episodes_leave_a_network_with_two_names_as_it_was(batching):
    examples = TensorExamples(torch.rand(30, 4), torch.rand(30, 4), {"train": (0, 20), "val": (20, 25)}, "noise")
    data = ModuleTraining(Tied(), nn.MSELoss(), examples, batch_size=4, horizon=2)
    episodes = replace(data.episodes("val", range(2)), batching=batching)
    assert data.batching == "losses" and episodes.theta.shape == (2, 24)
    before = dict(data.network.named_parameters(remove_duplicate=False))
    theta = episodes.theta.requires_grad_()
    losses, grad = episodes.value_and_grad(theta, 1)
    after = dict(data.network.named_parameters(remove_duplicate=False))
    assert before.keys() == after.keys() and all(after[name] is p for name, p in before.items())
    for number in range(2):
        vector_to_parameters(theta[number].detach(), data.network.parameters())
        inputs, targets = (tensor[number] for tensor in episodes.minibatch(theta, 1))
        loss = F.mse_loss(data.network(inputs), targets)
        own = parameters_to_vector(torch.autograd.grad(loss, data.network.parameters()))
        torch.testing.assert_close((losses[number], grad[number]), (loss, own))
