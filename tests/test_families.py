"""Every task of every family: runs side by side equal each alone; families can be learned and differentiated twice."""

import pytest
import torch

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees import families
from lightning_l2l.optimizees.module_episodes import unflatten
from lightning_l2l.optimizees.networks.stacked import BatchNorm
from lightning_l2l.rules import Adam
from lightning_l2l.unroll import learning_curves

STEPS = 60
FAMILIES = {
    "image MLPs": families.ImageMLPs(),
    "large images": families.ImageMLPs(large=True),
    "wide image MLPs": families.ImageMLPs(wide=True),
    "CNNs": families.ImageCNNs(),
    "wide CNNs": families.ImageCNNs(wide=True),
    "normalised CNNs": families.ImageCNNs(normalised=True),
    "autoencoders": families.Autoencoders(),
    "wide autoencoders": families.Autoencoders(wide=True),
    "completions": families.Completions(),
    "wide completions": families.Completions(wide=True),
    "tables": families.Tables(),
    "teachers": families.Teachers(),
    "linear teachers": families.Teachers(linear=True),
    "GRUs": families.CharRNNs("GRU"),
    "LSTMs": families.CharRNNs("LSTM"),
    "transformers": families.CharTransformers(),
    "row transformers": families.RowTransformers(),
    "layer norm": families.ResidualMLPs("layer"),
    "batch norm": families.ResidualMLPs("batch"),
}


@pytest.fixture(params=FAMILIES)
def tasks(request):
    return FAMILIES[request.param].tasks(horizon=STEPS, seed=0)


def test_episodes_side_by_side_equal_plain_modules(tasks):
    for name, task in tasks.items():
        episodes = task.episodes("train", range(2)).to("cpu", torch.double)
        assert task.batching == "stacked", name
        with torch.no_grad():
            losses, grads = episodes.value_and_grad(episodes.theta, 1)
        inputs, targets = episodes.minibatch(episodes.theta, 1)
        for n in range(2):
            theta = episodes.theta[n].clone().requires_grad_()
            outputs = torch.func.functional_call(task.network, unflatten(theta, task.network), (inputs[n],))
            loss = task.loss(outputs, targets[n])
            torch.testing.assert_close(losses[n], loss.detach(), msg=name)
            torch.testing.assert_close(grads[n], torch.autograd.grad(loss, theta)[0], msg=name)


def test_products_with_a_hessian_are_those_of_finite_differences(tasks):
    task = next(iter(tasks.values()))
    episodes = task.episodes("train", range(2)).to("cpu", torch.double)
    vector = torch.randn_like(episodes.theta)
    product = episodes.hessian_product(episodes.theta, 1, vector)
    ahead, behind = (episodes.value_and_grad(episodes.theta + e * vector, 1)[1].detach() for e in (1e-6, -1e-6))
    difference = (ahead - behind) / 2e-6
    kinks = (product - difference).abs() > 1e-4 * difference.abs().max()  # of ReLUs
    assert kinks.double().mean() < 0.02


def test_adam_learns(tasks):
    for name, task in list(tasks.items())[::4]:
        rate = 0.001 if "size 64" in name else 0.01  # larger steps would make all its ReLUs die at once
        curves = learning_curves(Adam(rate), task.episodes("train", range(2)), STEPS)
        assert curves.isfinite().all(), name
        assert curves[:, -10:].mean() < 0.97 * curves[:, :3].mean(), name


def test_sizes_are_small_and_inputs_of_large_images_positive():
    largest = {"large images": 20_000, "transformers": 20_000, "row transformers": 20_000}
    largest |= {"wide image MLPs": 50_000, "wide CNNs": 20_000, "wide autoencoders": 70_000, "wide completions": 50_000}
    for name, family in FAMILIES.items():
        for task in family.tasks(horizon=1, seed=0).values():
            size = sum(parameter.numel() for parameter in task.network.parameters())
            assert 50 < size < largest.get(name, 9_000), name
    large = next(iter(FAMILIES["large images"].tasks(horizon=1, seed=0).values())).episodes("train", [0])
    inputs, _ = large.minibatch(large.theta, 0)
    assert inputs.shape[-1] == 4_096 and inputs.min() >= 0 and inputs.mean() > 0.1


def test_wide_networks_have_no_other_extra():
    with pytest.raises(InvalidInputError, match="either normalised or wide"):
        families.ImageCNNs(normalised=True, wide=True)
    with pytest.raises(InvalidInputError, match="either large images or wide layers"):
        families.ImageMLPs(large=True, wide=True)


def test_normalised_families_normalise_by_the_minibatch():
    for name in ("normalised CNNs", "batch norm"):
        for task in FAMILIES[name].tasks(horizon=1, seed=0).values():
            assert any(isinstance(module, BatchNorm) for module in task.network.modules())
