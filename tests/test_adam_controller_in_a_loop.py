"""AdamController by LearnedOptimizer: the same steps, tensor by tensor and in place."""

import copy
import io
import os

import pytest
import torch
from conftest import skip
from test_adam_controller import controller
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lightning_l2l import LearnedOptimizer
from lightning_l2l.rules import AdamController, layout_of
from lightning_l2l.rules.adam_controller import kernel, stepper
from lightning_l2l.rules.adam_controller.arithmetic import Arithmetic
from lightning_l2l.rules.adam_controller.kernel import KernelArithmetic
from lightning_l2l.rules.adam_controller.remainder import exact
from lightning_l2l.rules.fast.cores import map_on_cores

NETWORKS = {
    "mlp": lambda: nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 3)),
    "conv": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    ),
}


@pytest.fixture(params=["kernel", "torch"])
def way(request, monkeypatch):
    """Both ways of touching every coordinate on a CPU."""
    take(request.param, monkeypatch)
    return request.param


@pytest.fixture(params=["kernel", "torch", "triton"])
def any_way(request, monkeypatch):
    """As ``way``, and in addition Triton's interpreter, which runs slowly what is compiled for a GPU elsewhere."""
    take(request.param, monkeypatch)


def take(name, monkeypatch):
    if name == "torch":
        monkeypatch.setattr(stepper, "arithmetic", lambda *_: Arithmetic())
    elif name == "triton":
        pytest.importorskip("triton", reason="Triton comes with PyTorch for NVIDIA GPUs")
        if "TRITON_INTERPRET" not in os.environ:
            skip("kernels are compiled for the GPU here: see test_gpu.py")
        from lightning_l2l.rules.adam_controller import gpu_kernel

        monkeypatch.setattr(gpu_kernel, "BLOCK", 32)
        monkeypatch.setattr(gpu_kernel, "ADDED", 2)
        ways = {torch.float32: gpu_kernel.GpuArithmetic, torch.double: Arithmetic}
        monkeypatch.setattr(stepper, "arithmetic", lambda _, dtype: ways[dtype]())
    elif not isinstance(stepper.arithmetic(torch.device("cpu"), torch.float32), KernelArithmetic):
        skip("there is no C++ compiler")


def network(name="mlp", dtype=torch.float32):
    torch.manual_seed(1)
    return NETWORKS[name]().to(dtype)


def loss(model, step):
    random = torch.Generator().manual_seed(step)
    dtype = next(model.parameters()).dtype
    inputs, targets = (torch.randn(16, size, generator=random).to(dtype) for size in (6, 3))
    return (model(inputs) - targets).square().mean()


def train(model, optimizer, steps, factor=1.0):
    for step in steps:
        optimizer.zero_grad()
        (factor * loss(model, step)).backward()
        optimizer.step()


@torch.no_grad()
def by_hand(rule, model, steps):
    """What ``train`` should do to θ, by the rule on flat θ."""
    model = copy.deepcopy(model)
    bound = rule.bind(layout_of({name: p.shape for name, p in model.named_parameters()}))
    theta = parameters_to_vector(model.parameters())[None]
    state = bound.init(theta)
    for step in steps:
        with torch.enable_grad():
            grads = torch.autograd.grad(loss(model, step), list(model.parameters()))
        update, state = bound.update(parameters_to_vector(grads)[None], state, theta=theta)
        theta = theta + update
        vector_to_parameters(theta[0], model.parameters())
    return theta[0]


def theta(model):
    return parameters_to_vector(model.parameters()).detach().clone()


@pytest.mark.parametrize("name", NETWORKS)
def test_steps_are_those_on_flat_parameters(any_way, name):
    rule, model = controller(0.1), network(name)
    want = by_hand(rule, model, range(30))
    train(model, LearnedOptimizer(model.parameters(), rule), range(30))
    torch.testing.assert_close(theta(model), want, rtol=1e-4, atol=2e-5)


def test_double_precision_is_exact():
    rule, model = controller().double(), network(dtype=torch.double)
    want = by_hand(rule, model, range(30))
    train(model, LearnedOptimizer(model.parameters(), rule), range(30))
    torch.testing.assert_close(theta(model), want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.double], ids=str)
def test_the_directions_of_split_matrices_are_renewed_half_as_often(way, dtype):
    rule, model = controller(0.1, block=4).to(dtype), network(dtype=dtype)
    want = by_hand(rule, model, range(30))
    optimizer = LearnedOptimizer(model.parameters(), rule)
    split, whole = model[0].weight, model[4].weight  # [9, 6] and [3, 9]
    renewed, last = {split: [], whole: []}, {}
    for step in range(30):
        train(model, optimizer, [step])
        for p in renewed:
            direction = optimizer.state[p]["orthogonal"].clone()
            if step and not torch.equal(direction, last[p]):
                renewed[p].append(step + 1)
            last[p] = direction
    first = list(range(2, 9))
    assert renewed[split] == [*first, 16, 24] and renewed[whole] == [*first, 12, 16, 20, 24, 28]
    torch.testing.assert_close(theta(model), want, rtol=1e-4, atol=2e-5)


def test_channels_last_and_strided_parameters(any_way):
    rule, model = controller(), nn.Conv2d(3, 4, 3)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    other.bias = nn.Parameter(torch.empty(8)[::2].copy_(model.bias.detach()))
    inputs = torch.randn(4, 3, 8, 8)
    for m in (model, other):
        optimizer = LearnedOptimizer(m.parameters(), rule)
        for _ in range(6):
            optimizer.zero_grad()
            m(inputs).square().mean().backward()
            optimizer.step()
    assert not other.weight.is_contiguous() and not other.bias.is_contiguous()
    torch.testing.assert_close(other.weight.contiguous(), model.weight, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(other.bias, model.bias, rtol=1e-3, atol=1e-5)


def test_the_state_is_twenty_bytes_a_coordinate_under_its_own_parameter(way):
    p, q = torch.randn(40, 50).requires_grad_(), torch.randn(2000).requires_grad_()
    p.grad, q.grad = torch.randn(40, 50), torch.randn(2000)
    optimizer = LearnedOptimizer([p, q], controller())
    optimizer.step()
    for parameter, size in ((p, 20), (q, 16)):
        values = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
        assert sum(value.numel() * value.element_size() for value in values) < size * 2000 + 100


def test_a_frozen_tensor_stays_out_and_one_thawed_late_begins_at_its_first_step(any_way):
    rule, model = controller(), network()
    model[0].requires_grad_(False)
    rest = model[2:]
    hidden = copy.deepcopy(rest)
    optimizer = LearnedOptimizer(model.parameters(), rule)
    train(model, optimizer, range(5))
    alone = LearnedOptimizer(hidden.parameters(), rule)
    for step in range(5):
        alone.zero_grad()
        loss(nn.Sequential(*model[:2], *hidden), step).backward()
        alone.step()
    assert torch.equal(theta(rest), theta(hidden))
    assert not optimizer.state[model[0].weight]
    model[0].requires_grad_(True)
    train(model, optimizer, range(5, 7))
    assert optimizer.state[model[0].weight]["step"] == 2
    assert optimizer.state[model[2].weight]["step"] == 7


@pytest.mark.parametrize("size", [float("-inf"), float("nan"), torch.finfo(torch.float32).min, 1e20])
def test_a_tensor_of_huge_numbers_or_none_moves_no_other_one_away(any_way, size):
    """Such as a mask that is a parameter, whose gradient is zero where it counts."""
    moved = []
    for value in (1e3, size):  # the first of them is as large as a feature can tell
        model, mask = network(), nn.Parameter(torch.full((4, 4), value).triu(1))
        start, before = theta(model), mask.detach().clone()
        optimizer = LearnedOptimizer([*model.parameters(), mask], controller(0.1))
        for step in range(10):
            optimizer.zero_grad()
            mask.grad = torch.zeros_like(mask)
            loss(model, step).backward()
            optimizer.step()
        assert optimizer.skipped_steps == 0
        torch.testing.assert_close(mask.detach(), before, equal_nan=True, rtol=0, atol=0)
        moved.append(theta(model) - start)
    torch.testing.assert_close(*moved)


def test_a_scale_may_be_any_number(any_way):
    rule, model = controller(0.1), network()
    optimizer = LearnedOptimizer(model.parameters(), rule, scale=torch.tensor(0.5))
    train(model, optimizer, range(5))
    want = network()
    train(want, LearnedOptimizer(want.parameters(), rule, scale=0.5), range(5))
    assert torch.equal(theta(model), theta(want))


@pytest.mark.parametrize("other", ["kernel", "triton"])
def test_every_way_takes_the_same_steps_where_clocks_differ(other, monkeypatch):
    rule, ends = controller(0.1), []
    for name in ("torch", other):
        with monkeypatch.context() as patch:
            take(name, patch)
            model = network()
            model[2].requires_grad_(False)
            optimizer = LearnedOptimizer(model.parameters(), rule)
            train(model, optimizer, range(3))
            model[2].requires_grad_(True)
            train(model, optimizer, range(3, 12))
            ends.append(theta(model))
    assert [optimizer.state[p]["step"] for p in model.parameters()] == [12, 12, 9, 9, 12, 12]
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("lr", "start"), [(0.02, 1.0), (2e-3, 1.0), (2e-4, 1e-2), (1e-7, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_small_steps_add_up_in_any_precision(dtype, lr, start):
    """Steps of 6e-5 are rounded away in half precision, of 6e-6 in a remainder of bfloat16 too. Zeros keep 3e-10."""
    p = torch.full((4, 4), start, dtype=dtype, requires_grad=True)
    p.grad = torch.ones_like(p)
    optimizer = LearnedOptimizer([p], AdamController(), lr=lr)
    for _ in range(500):
        optimizer.step()
    got = exact(p.detach(), optimizer.state[p]["remainder"], torch.float32) if dtype.itemsize == 2 else p
    begin = torch.tensor(start, dtype=dtype).float()
    torch.testing.assert_close(begin - got, torch.full((4, 4), 500 * 0.003 * lr), rtol=0.02, atol=0)


def saved_and_loaded(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("at", [10, 11])
def test_a_state_dict_continues_to_the_next_bit(way, dtype, at):
    """Between two runs of the network, and between a guard's trigger and its return."""
    rule, model = controller(), network(dtype=dtype)
    settings = {"guard": True, "weight_decay": 0.01, "lr": 0.5}
    optimizer = LearnedOptimizer(model.parameters(), rule, **settings)

    def guarded(model, optimizer, steps):
        for step in steps:
            optimizer.observe(float("nan") if step == 5 else 1.0)
            train(model, optimizer, [step])

    guarded(model, optimizer, range(at))
    optimizer.guard.since = 150  # on its way back, so that both kinds of steps count
    saved, weights = saved_and_loaded([optimizer.state_dict(), model.state_dict()])
    other = network(dtype=dtype)
    other.load_state_dict(weights)
    resumed = LearnedOptimizer(other.parameters(), rule, **settings)
    resumed.load_state_dict(saved)
    for m, o in ((model, optimizer), (other, resumed)):
        guarded(m, o, range(at, at + 10))
    assert torch.equal(theta(model), theta(other)) and optimizer.guard == resumed.guard


def test_a_tensor_that_is_thawed_late_keeps_its_clock_in_a_state_dict(any_way):
    rule, model = controller(), network()
    model[0].requires_grad_(False)
    optimizer = LearnedOptimizer(model.parameters(), rule)
    train(model, optimizer, range(5))
    model[0].requires_grad_(True)
    train(model, optimizer, range(5, 8))
    saved, weights = saved_and_loaded([optimizer.state_dict(), model.state_dict()])
    other = network()
    other.load_state_dict(weights)
    resumed = LearnedOptimizer(other.parameters(), rule)
    resumed.load_state_dict(saved)
    assert [resumed.state[p]["step"] for p in other.parameters()] == [3, 3, 8, 8, 8, 8]
    for m, o in ((model, optimizer), (other, resumed)):
        train(m, o, range(8, 14))
    assert torch.equal(theta(model), theta(other))


def test_a_state_of_other_shapes_is_refused():
    model = network()
    optimizer = LearnedOptimizer(model.parameters(), controller())
    train(model, optimizer, range(2))
    others = [torch.zeros(2, requires_grad=True) for _ in model.parameters()]
    with pytest.raises(ValueError, match="loaded state dict has"):
        LearnedOptimizer(others, controller()).load_state_dict(optimizer.state_dict())


def test_the_scale_of_the_loss_and_a_skipped_step_do_not_matter(way):
    rule, model, scaled = controller(0.1), network(), network()
    train(model, LearnedOptimizer(model.parameters(), rule), range(20))
    optimizer = LearnedOptimizer(scaled.parameters(), rule)
    train(scaled, optimizer, range(10), factor=1e4)
    train(scaled, optimizer, range(1), factor=float("nan"))
    assert optimizer.skipped_steps == 1
    train(scaled, optimizer, range(10, 20), factor=1e4)
    torch.testing.assert_close(theta(scaled), theta(model), rtol=1e-3, atol=1e-4)


def test_empty_and_single_number_parameters(way):
    ps = [torch.ones(shape, requires_grad=True) for shape in ((), (1,), (1, 1), (0, 3), (3, 1))]
    optimizer = LearnedOptimizer(ps, controller())
    for _ in range(9):
        for p in ps:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert all(p.isfinite().all() for p in ps)


def test_groups_have_rates_of_their_own(way):
    model, still = network(), network()
    groups = [{"params": model[0].parameters()}, {"params": model[2:].parameters(), "lr": 0.0}]
    train(model, LearnedOptimizer(groups, controller()), range(3))
    assert torch.equal(theta(model[2:]), theta(still[2:]))
    assert not torch.equal(theta(model[0]), theta(still[0]))


def test_cores_share_the_work(monkeypatch):
    """As many as torch has at a step, which may change between two of them."""
    rule, results, used = controller(directions=["gradient"]), [], []

    def counting(threads, *arguments):
        used.append(threads)
        return map_on_cores(threads, *arguments)

    monkeypatch.setattr(kernel, "map_on_cores", counting)
    for later in (1, 2):
        p = torch.linspace(-1, 1, 300_000).reshape(500, 600).requires_grad_()
        optimizer = LearnedOptimizer([p], rule)
        for step, threads in enumerate((1, later, later)):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            p.grad = torch.randn(500, 600, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        results.append(p.detach())
        assert set(used) == ({2} if later == 2 else set())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
