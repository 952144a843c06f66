"""The controller of Adam: known steps, extreme gradients, and what a meta-gradient sees."""

import numpy as np
import pytest
import torch
from conftest import SHARED, skip

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules import AdamController, layout_of
from lightning_l2l.rules.adam_controller import orthogonal
from lightning_l2l.rules.adam_controller.orthogonal import orthogonalize_

SHAPES = {
    "conv": (4, 3, 2, 2),
    "bias": (4,),
    "matrix": (5, 6),
    "same": (5, 6),
    "scale": (),
    "one": (1,),
    "none": (0, 3),
}


def controller(size=0.3, **settings):
    """A controller whose last layer is not zero."""
    rule = AdamController(**settings)
    for parameter in rule.parameters():
        torch.nn.init.normal_(parameter, std=size)
    return rule


def gradients(steps, layout, episodes=2, seed=0):
    """Gradients that drift and are noisy, [steps, N, P]."""
    random = torch.Generator().manual_seed(seed)
    size = episodes, sum(place.stop - place.start for place in layout.values())
    return 0.01 * (torch.randn(size, generator=random) + torch.randn(steps, *size, generator=random))


@torch.no_grad()
def steps(rule, grads, theta=None):
    """The steps that a bound rule takes, [steps, N, P]."""
    theta = torch.linspace(-1, 1, grads[0].numel()).view_as(grads[0]) if theta is None else theta
    state, updates = rule.init(theta), []
    for grad in grads:
        update, state = rule.update(grad, state, theta=theta)
        theta = theta + update
        updates.append(update)
    return torch.stack(updates)


@pytest.mark.parametrize("in_place", [False, True])
def test_it_takes_the_steps_of_a_stored_run(in_place):
    path = SHARED / "controller_b.npz"
    if not path.is_file():
        skip("the stored run of a controller is not at ../shared/data")
    stored = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    grads, theta = stored.pop("gradients"), stored.pop("theta")
    rule = AdamController()
    rule.load_state_dict(stored)
    bound = rule.bind(layout_of({"matrix": (6, 4), "vector": (6,)}))
    got = steps(bound.in_place() if in_place else bound, grads[:, None], theta[:1])[:, 0]
    error = (got - theta.diff(dim=0)).norm(dim=1) / theta.diff(dim=0).norm(dim=1)
    assert error.max() < 2e-5
    torch.testing.assert_close(theta[0] + got.sum(0), theta[-1], rtol=0, atol=2e-5)


def test_an_untrained_one_is_adam_with_two_second_moments():
    grads = 0.1 * torch.randn(12, 1, 7)
    theta = torch.ones(1, 7)
    rule = AdamController().bind(layout_of({"vector": (7,)}))
    m9, v99, v999 = torch.zeros(3, 1, 7, dtype=torch.double)
    for t, (grad, got) in enumerate(zip(grads.double(), steps(rule, grads, theta), strict=True), 1):
        m9, v99, v999 = 0.9 * m9 + 0.1 * grad, 0.99 * v99 + 0.01 * grad**2, 0.999 * v999 + 0.001 * grad**2
        square = (v99 / (1 - 0.99**t) + v999 / (1 - 0.999**t)) / 2
        if t <= 8 or t % 4 == 0:
            size = (v99 / (1 - 0.99**t)).mean().sqrt()
        epsilon = np.exp(-5)
        want = -0.003 * (1 + epsilon) * m9 / (1 - 0.9**t) / (square.sqrt() + epsilon * size)
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("factor", [1e-8, 1e-4, 1e4, 1e8])
def test_the_scale_of_the_loss_does_not_matter(factor):
    layout = layout_of(SHAPES)
    rule, grads = controller().bind(layout), gradients(30, layout)
    torch.testing.assert_close(steps(rule, factor * grads), steps(rule, grads), rtol=2e-3, atol=1e-6)


def test_a_dead_network_stays_finite_comes_to_rest_and_may_come_back():
    layout = layout_of({"matrix": (5, 6), "bias": (5,)})
    before, after = gradients(40, layout, 1).split(20)
    got = steps(controller().bind(layout).in_place(), [*before, *torch.zeros(1200, *before[0].shape), *after])
    assert got.isfinite().all()
    assert got[-21].abs().max() < 1e-6 * got.abs().max()


@pytest.mark.parametrize("size", [0.0, 1e-25, 1e-40])
def test_gradients_whose_squares_underflow_move_nothing(size):
    layout = layout_of(SHAPES)
    got = steps(controller().bind(layout), size * gradients(20, layout))
    assert got.abs().max() < 1e-4
    assert size or not got.any()


def test_some_tensors_may_have_no_gradient_from_the_first_step_on():
    layout = layout_of(SHAPES)
    grads = gradients(20, layout)
    grads[..., layout["matrix"].coordinates] = 0
    grads[..., layout["bias"].coordinates][..., 1:] = 0  # three dead units
    got = steps(controller().bind(layout), grads)
    assert got.isfinite().all()
    assert not got[..., layout["matrix"].coordinates].any()


def test_nothing_but_empty_tensors():
    rule = controller().bind(layout_of({"none": (0, 3)}))
    assert steps(rule, torch.zeros(3, 2, 0)).shape == (3, 2, 0)


def test_in_place_steps_are_the_same():
    layout = layout_of(SHAPES)
    rule, grads = controller().bind(layout), gradients(20, layout)
    assert torch.equal(steps(rule.in_place(), grads), steps(rule, grads))


def test_each_episode_may_have_a_phi_of_its_own():
    layout = layout_of(SHAPES)
    rules = [controller() for _ in range(3)]
    grads, bound = gradients(10, layout, 3), Updating(controller().bind(layout))
    assert bound.rule.takes_phi_per_episode and rules[0].takes_phi_per_episode
    stacked = torch.func.stack_module_state([Updating(rule.bind(layout)) for rule in rules])[0]
    first = theta = torch.linspace(-1, 1, grads[0].numel()).view_as(grads[0])
    state, got = bound.rule.init(theta), []
    for grad in grads:
        update, state = torch.func.functional_call(bound, stacked, (grad, state, theta))
        theta = theta + update
        got.append(update)
    for number, rule in enumerate(rules):
        want = steps(rule.bind(layout), grads[:, number : number + 1], first[number : number + 1])
        torch.testing.assert_close(torch.stack(got)[:, number], want[:, 0], rtol=1e-3, atol=1e-6)


class Updating(torch.nn.Module):
    """Calls ``update``, since ``functional_call`` calls a module."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, grad, state, theta):
        return self.rule.update(grad, state, theta=theta)


def test_derivatives_with_statistics_held_constant():
    """As the documented constants say: the step as a function of φ, g and the means, at fixed features, O and sizes."""
    layout = layout_of({"matrix": (3, 4), "bias": (3,)})
    rule = controller().double()
    bound = rule.bind(layout)
    theta, grads = torch.randn(1, 15).double(), gradients(3, layout, 1).double()
    state = bound.init(theta)
    for grad in grads[:2]:
        _, state = bound.update(grad, state, theta=theta)
    state = torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, state)

    def step(b2):
        return torch.func.functional_call(Updating(bound), {"rule.rule.b2": b2}, (grads[2], state, theta))[0]

    assert torch.autograd.gradcheck(step, rule.b2.detach().clone().requires_grad_())
    grad = grads[2].clone().requires_grad_()
    update, after = bound.update(grad, state, theta=theta.clone().requires_grad_())
    torch.autograd.grad(update.sum(), grad)
    assert not any(tensor.requires_grad for tensor in after.memory)
    assert bound.constants == AdamController.constants


def test_derivatives_by_the_kernel_are_those_by_autograd(monkeypatch):
    layout = layout_of(SHAPES)
    bound, grads = controller().bind(layout), gradients(14, layout).requires_grad_()
    got, want = {}, {}
    for results, compiled in ((got, "1"), (want, "0")):
        monkeypatch.setenv("LIGHTNING_L2L_COMPILED", compiled)
        theta = torch.linspace(-1, 1, grads[0].numel()).view_as(grads[0])
        state, total = bound.init(theta), torch.zeros(())
        results["state"] = type(state)
        for grad in grads:
            update, state = bound.update(grad, state, theta=theta)
            theta = theta + update
            total = total + theta.square().sum()
        results["derivatives"] = torch.autograd.grad(total, [grads, *bound.parameters()])
    if got["state"] is want["state"]:
        skip("there is no C++ compiler")
    for ours, reference in zip(got["derivatives"], want["derivatives"], strict=True):
        torch.testing.assert_close(ours, reference, rtol=2e-3, atol=2e-4 * reference.abs().max().item())


def test_dead_coordinates_have_finite_derivatives():
    layout = layout_of(SHAPES)
    bound, theta = controller().bind(layout), torch.zeros(1, int(sum(p.stop - p.start for p in layout.values())))
    grads = gradients(10, layout, 1)
    grads[..., ::3] = 0
    grads.requires_grad_()
    state, total = bound.init(theta), torch.zeros(())
    for grad in grads:
        update, state = bound.update(grad, state, theta=theta)
        theta = theta + update
        total = total + theta.square().sum()
    derivatives = torch.autograd.grad(total, [grads, *bound.parameters()])
    assert all(derivative.isfinite().all() for derivative in derivatives)
    assert all(derivative.any() for derivative in derivatives)


@pytest.mark.parametrize("directions", [[], ["gradient"], ["slow_mean", "orthogonal"]])
def test_directions_can_be_left_out(directions):
    rule = controller(directions=directions)
    assert rule.W2.shape == (8, 4 + len(directions))
    layout = layout_of(SHAPES)
    assert steps(rule.bind(layout), gradients(5, layout)).isfinite().all()


def test_further_settings():
    layout, grads = layout_of({"wide": (4, 400)}), gradients(5, layout_of({"wide": (4, 400)}), 1)
    plain = controller()
    sided = AdamController(all_sides=True)
    sided.load_state_dict(plain.state_dict())
    limited = AdamController(spectral_limit=100)
    limited.load_state_dict(plain.state_dict())
    taken = [steps(rule.bind(layout), grads) for rule in (plain, sided, limited)]
    assert not torch.allclose(taken[0], taken[1])
    assert not torch.allclose(taken[0], taken[2])
    zero = torch.zeros_like(grads[0])
    whole, held = (rule.bind(layout)._orthogonalized(grads[0], zero, 1).view(4, 400) for rule in (plain, limited))
    torch.testing.assert_close(held, whole / 2)
    assert torch.linalg.matrix_norm(held, 2) < 0.3 * 100**0.5 * 1.4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # by the kernel, and without it
def test_the_first_steps_warm_up(dtype):
    layout = layout_of({"matrix": (3, 4), "vector": (5,)})
    grads = gradients(6, layout).to(dtype)
    plain, warmed = (
        steps(AdamController(warm_up=n).to(dtype).bind(layout), grads, torch.ones_like(grads[0])) for n in (1, 4)
    )
    part = torch.tensor([1, 2, 3, 4, 4, 4], dtype=dtype) / 4
    torch.testing.assert_close(warmed, part[:, None, None] * plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_between_rare_gradients_the_orthogonal_direction_fades(dtype):
    layout = layout_of({"matrix": (3, 4)})
    grads = 0.01 * gradients(40, layout).to(dtype)
    grads[3] *= 100
    taken = []
    for fades in (False, True):
        rule = AdamController(fade_orthogonal=fades).to(dtype)
        rule.b2.data[[-2, -1]] = torch.tensor([-6.0, 1.0], dtype=dtype)  # little of m₉, and O
        taken.append(steps(rule.bind(layout), grads, torch.ones_like(grads[0])).norm(dim=2))
    plain, faded = taken
    torch.testing.assert_close(faded[:4], plain[:4])
    v99 = 0.01 * 0.99**36 / (1 - 0.99**40) * grads[3].square().mean(1)
    part = 2 * (grads[39].square().mean(1) / v99).sqrt()
    torch.testing.assert_close(faded[39] / plain[39], part, rtol=0.01, atol=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hidden": 0}, "hidden is 0"),
        ({"every": 0}, "every is 0"),
        ({"warm_up": 0}, "warm_up is 0"),
        ({"spectral_limit": -1}, "spectral_limit is -1"),
        ({"directions": ["newton"]}, "directions is"),
        ({"directions": ["gradient", "gradient"]}, "each once"),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(InvalidInputError, match=words):
        AdamController(**settings)


def test_newton_schulz_both_ways():
    matrices = torch.randn(3, 8, 40)
    got = orthogonalize_(matrices.clone())
    torch.testing.assert_close(got.square().mean((1, 2)).sqrt(), torch.full((3,), 0.3))
    torch.testing.assert_close(orthogonalize_(matrices.mT.contiguous()).mT, got)
    unit = matrices / torch.linalg.matrix_norm(matrices, keepdim=True)
    torch.testing.assert_close(orthogonal._iterate_gram(unit), orthogonal._iterate(unit), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(orthogonalize_(1e-30 * matrices), got)
    assert not orthogonalize_(torch.zeros(1, 2, 3)).any()


@pytest.mark.parametrize("shape", [(10, 12), (12, 10), (10, 40)])
def test_parts_of_large_matrices_are_orthogonalized_by_themselves(shape):
    matrix = torch.randn(1, *shape)
    parts = matrix.split([4, 3, 3], 1 if shape[0] == 10 else 2)
    got = orthogonalize_(matrix.clone(), block=4)
    own = [orthogonalize_(part.contiguous()) for part in parts]
    torch.testing.assert_close(got, torch.cat(own, 1 if shape[0] == 10 else 2))


@pytest.mark.parametrize("shape", [(3, 7, 3), (1, 10, 130), (2, 130, 200), (1, 300, 70)])
def test_single_precision_orthogonalizes_as_double_does(shape):
    matrices = torch.randn(shape)
    got, want = (orthogonalize_(x, block=64).double() for x in (matrices.clone(), matrices.double()))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_a_part_whose_gradient_has_vanished_does_not_move():
    matrix = torch.cat([torch.randn(1, 3, 8), 1e-9 * torch.randn(1, 3, 8)], 1)
    got = orthogonalize_(matrix, block=3)
    assert got[:, :3].any() and not got[:, 3:].any()
