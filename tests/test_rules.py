"""Update rules against known answers, and one list of rules over one list of properties."""

import math

import pytest
import torch
from conftest import skip

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules import (
    NAG,
    SGD,
    Adam,
    AdamW,
    CoordinatewiseLSTM,
    CosineAdam,
    Grouped,
    RMSprop,
    RNNprop,
    Tape,
    fastest,
    layout_of,
)
from lightning_l2l.rules.fast.sliced import Sliced
from lightning_l2l.rules.gradient_inputs import preprocess_gradient

RULES = {
    "SGD": lambda: SGD(0.1),
    "NAG": lambda: NAG(0.1),
    "RMSprop": lambda: RMSprop(0.1),
    "Adam": lambda: Adam(0.1),
    "AdamW": lambda: AdamW(0.1),
    "CosineAdam": lambda: CosineAdam(0.1, horizon=4),
    "LSTM": lambda: CoordinatewiseLSTM(hidden_size=5),
    "LSTM on plain gradients": lambda: CoordinatewiseLSTM(hidden_size=5, num_layers=1, preprocessing=None),
    "LSTM with momenta": lambda: CoordinatewiseLSTM(hidden_size=5, momenta=[0.9, 0.99]),
    "RNNprop": lambda: RNNprop(hidden_size=5),
}


@pytest.fixture(params=RULES)
def rule(request):
    return RULES[request.param]().double()


def run(rule, grads):
    """The steps that a rule takes on gradients [T, N, P]."""
    theta, steps = torch.zeros_like(grads[0]), []
    state = rule.init(theta)
    for grad in grads:
        step, state = rule.update(grad, state, **({"theta": theta} if rule.sees else {}))
        theta = theta + step
        steps.append(step)
    return torch.stack(steps)


@pytest.mark.parametrize(
    ("grad", "want"),
    [
        (1.0, (0.0, 1.0)),
        (math.exp(-10), (-1.0, 1.0)),
        (0.0, (-1.0, 0.0)),
        (-math.e, (0.1, -1.0)),
        (math.exp(-11), (-1.0, math.exp(-1))),
        (-math.exp(-12), (-1.0, -math.exp(-2))),
    ],
)
def test_preprocessing_has_the_values_of_appendix_a(grad, want):
    result = preprocess_gradient(torch.tensor([grad], dtype=torch.float64), p=10)
    torch.testing.assert_close(result[:, 0], torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("alternating", "want"), [(False, 1.0), (True, -1 / 19)])
def test_momenta_say_how_far_gradients_agree(alternating, want):
    """A mean of ±a with decay .9 tends to ±a (1 - .9) / (1 + .9) where signs alternate, of any size a."""
    rule = CoordinatewiseLSTM(momenta=[0.9]).double()
    grad = torch.tensor([[1e-6, -3.0, 0.0]], dtype=torch.float64)
    momenta = rule.init(grad).momenta
    for step in range(300):
        rows, momenta = rule.inputs(grad * (-1) ** (step * alternating), momenta)
        if step == 0:  # means begin at zero
            torch.testing.assert_close(rows[2, 0, :2].abs(), torch.full((2,), 0.1**0.5).double(), rtol=1e-3, atol=0)
    assert rows.shape == (3, 1, 3)
    torch.testing.assert_close(rows[2, 0], want * torch.tensor([1, -1, 0]).double(), rtol=1e-3, atol=1e-12)


def test_permuting_coordinates_permutes_steps(rule):
    grads = torch.randn(6, 2, 7, dtype=torch.float64)
    order = torch.randperm(7)
    torch.testing.assert_close(run(rule, grads[..., order]), run(rule, grads)[..., order])


def test_a_coordinates_step_ignores_the_others(rule):
    grads = torch.randn(4, 1, 3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda g: run(rule, g)[:, 0], grads)[:, :, :, 0]  # [T, P, T, P]
    across = jacobian.transpose(1, 2)[:, :, ~torch.eye(3, dtype=torch.bool)]
    assert jacobian.abs().max() > 0
    assert across.abs().max() == 0


def test_episodes_do_not_mix(rule):
    grads = torch.randn(5, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(run(rule, grads)[:, 1:2], run(rule, grads[:, 1:2]))


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        (SGD(0.03), lambda p: torch.optim.SGD(p, lr=0.03)),
        (NAG(0.03), lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, nesterov=True)),
        (RMSprop(0.03), lambda p: torch.optim.RMSprop(p, lr=0.03)),
        (Adam(0.03), lambda p: torch.optim.Adam(p, lr=0.03)),
        (AdamW(0.03, weight_decay=0.3), lambda p: torch.optim.AdamW(p, lr=0.03, weight_decay=0.3)),
        (CosineAdam(0.03, beta1=0.8, horizon=20), lambda p: torch.optim.Adam(p, lr=0.03, betas=(0.8, 0.999))),
    ],
    ids=["SGD", "NAG", "RMSprop", "Adam", "AdamW", "CosineAdam"],
)
def test_hand_designed_rules_step_as_torch_optim_does(rule, optimizer):
    theta = torch.nn.Parameter(torch.randn(2, 5, dtype=torch.float64))
    ours, state, optimizer = theta.detach().clone(), rule.init(theta), optimizer([theta])
    decays = isinstance(rule, CosineAdam)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20) if decays else None
    for _ in range(20):
        theta.grad = torch.randn_like(theta)
        optimizer.step()
        if schedule:
            schedule.step()
        step, state = rule.double().update(theta.grad, state, **({"theta": ours} if rule.sees else {}))
        ours = ours + step
        torch.testing.assert_close(ours, theta.detach(), rtol=1e-12, atol=1e-12)


def test_a_cosine_stays_at_its_end_and_needs_one():
    grads = torch.randn(6, 1, 3)
    assert run(CosineAdam(0.1, horizon=4), grads)[4:].abs().max() == 0
    with pytest.raises(InvalidInputError, match="CosineAdam's horizon is null"):
        CosineAdam(0.1).init(grads[0])


def test_a_tensor_of_rates_gives_each_episode_its_own():
    grads = torch.randn(3, 2, 4)
    both = run(Adam(torch.tensor([[0.1], [0.02]])), grads)
    torch.testing.assert_close(both[:, 0], run(Adam(0.1), grads)[:, 0])
    torch.testing.assert_close(both[:, 1], run(Adam(0.02), grads)[:, 1])


@pytest.mark.parametrize("make", [lambda: SGD(0.0), lambda: Adam(-1.0), lambda: CoordinatewiseLSTM(hidden_size=0)])
def test_non_positive_settings_are_refused(make):
    with pytest.raises(InvalidInputError, match="must be positive"):
        make()


def test_momenta_that_are_no_decays_are_refused():
    with pytest.raises(InvalidInputError, match=r"momenta has 1.0, but each is a decay: give numbers between 0 and 1"):
        CoordinatewiseLSTM(momenta=[0.9, 1.0])


LSTMS = [name for name in RULES if "LSTM" in name]
WAYS = {
    "written out": lambda rule: rule,
    "in slices": lambda rule: Sliced(rule, 3, threads=2),
    "replayed": lambda rule: Sliced(rule, 3, threads=2, replay=True),
    "compiled": lambda rule: compiled(rule, threads=2),
}


def compiled(rule, threads):
    """The rule by its kernel, in parts even where there is little to do."""
    made = rule.compiled(torch.zeros(1), threads)
    if made is None:
        skip("there is no C++ compiler")
    made._threads = lambda grad: threads
    return made


@pytest.mark.parametrize(
    ("way", "dtype", "tolerance"),
    [(way, torch.float32, 1e-5) for way in WAYS] + [(way, torch.float64, 1e-12) for way in WAYS if way != "compiled"],
)
@pytest.mark.parametrize("name", LSTMS)
def test_every_way_back_is_autograds(name, way, dtype, tolerance):
    rule = RULES[name]().to(dtype)
    for bias in rule.biases:
        torch.nn.init.normal_(bias)
    grads = torch.randn(7, 2, 75, dtype=dtype) * torch.logspace(-6, 2, 75)  # two blocks of the kernel and a bit
    cotangents = list(torch.randn(6, 2, 75, dtype=dtype))
    faster = WAYS[way](rule)
    results = []
    for tape, owner in ((Tape(rule), rule), *((faster.tape(grads[0], 6), faster) for _ in range(2))):
        state, steps = owner.init(grads[0]), []
        for grad in grads[:-1]:
            step, state = tape.update(grad, state)
            steps.append(step)
        results.append((torch.stack(steps), tape.backward(cotangents)))
    (want_steps, want), *others = results
    for steps, got in others:  # the second time on buffers used before
        torch.testing.assert_close(steps, want_steps.detach(), rtol=tolerance, atol=tolerance)
        for a, b in zip(got, want, strict=True):
            assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LSTMS)
def test_every_way_takes_the_same_steps_without_gradients(name, way):
    rule = RULES[name]()
    grads = torch.randn(4, 3, 111)
    with torch.no_grad():
        torch.testing.assert_close(run(WAYS[way](rule), grads), run(rule, grads), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LSTMS)
def test_the_kernel_lets_what_is_not_a_number_through(name):
    rule, grads = RULES[name](), torch.randn(3, 1, 40)
    grads[0, 0, 5], grads[0, 0, 6] = torch.nan, torch.inf
    with torch.no_grad():
        got, want = run(compiled(rule, 1), grads), run(rule, grads)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6, equal_nan=True)


class ClippedLSTM(CoordinatewiseLSTM):
    """A fork's own steps."""

    def update(self, grad, state):
        step, state = super().update(grad, state)
        return step.clamp(-0.01, 0.01), state


def test_a_subclass_is_trained_on_its_own_steps():
    rule, grad = ClippedLSTM(hidden_size=5), torch.randn(1, 6)
    torch.nn.init.constant_(rule.output.bias, 5.0)
    step, _ = rule.tape(grad, 1).update(grad, rule.init(grad))
    assert step.abs().max() <= 0.01


def grouped(**groups):
    """A rule for each group: an LSTM of its own, and one whose steps are easily told apart."""
    return Grouped(
        {"a": CoordinatewiseLSTM(hidden_size=3, momenta=[0.9]), "b": CoordinatewiseLSTM(hidden_size=4)}, groups
    )


LAYOUT = layout_of({"conv.weight": (8, 5), "conv.bias": (3,), "fc.weight": (1, 47), "fc.bias": (1,)})


@pytest.mark.parametrize("compiled", [True, False])
def test_each_group_steps_by_its_own_rule(compiled):
    rule = grouped(a=["conv.weight", "fc.bias"], b=["conv.bias", "fc.weight"])
    grads, cotangents = torch.randn(5, 2, 91), torch.randn(4, 2, 91)
    faster = fastest(rule.bind(LAYOUT), grads[0], 4, compiled=compiled)
    tape, state, steps = faster.tape(grads[0], 4), faster.init(grads[0]), []
    for grad in grads[:-1]:
        step, state = tape.update(grad, state)
        steps.append(step)
    got = tape.backward(list(cotangents))
    places = {"a": [*range(40), 90], "b": list(range(40, 90))}
    want = []
    for group, place in places.items():
        part, alone = Tape(rule.rules[group]), grads[:, :, place]
        state = rule.rules[group].init(alone[0])
        for grad, step in zip(alone[:-1], steps, strict=True):
            expected, state = part.update(grad, state)
            torch.testing.assert_close(step[:, place], expected, rtol=1e-5, atol=1e-6)
        want += part.backward(list(cotangents[:, :, place]))
    a, b = (torch.cat([grad.flatten() for grad in grads]) for grads in (got, want))
    assert (a - b).norm() <= 1e-5 * b.norm()
    with torch.no_grad():
        torch.testing.assert_close(run(faster, grads[:-1]), torch.stack(steps), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ({"a": ["conv.*"], "b": ["fc.weight"]}, "fc.bias belongs to no group"),
        ({"a": ["conv.*"], "b": ["*.weight", "fc.*"]}, "conv.weight belongs to groups a and b"),
        ({"a": ["*"], "b": ["bn*"]}, "no parameter belongs to group b"),
    ],
)
def test_a_parameter_must_belong_to_one_group(groups, sentence):
    with pytest.raises(InvalidInputError, match=sentence):
        grouped(**groups).bind(LAYOUT)


def test_groups_and_rules_must_have_the_same_names():
    with pytest.raises(InvalidInputError, match="name the same ones"):
        grouped(a=["*"])


@pytest.mark.parametrize("name", ["conv.weight", "keys", "training", ""])
def test_a_group_must_have_a_name_that_a_module_can_have(name):
    with pytest.raises(InvalidInputError, match=f"group called '{name}'"):
        Grouped({name: CoordinatewiseLSTM()}, {name: ["*"]})


def test_a_group_may_have_a_hand_designed_rule():
    rule = Grouped({"a": CoordinatewiseLSTM(hidden_size=3), "b": SGD(0.1)}, {"a": ["conv*"], "b": ["fc*"]}).bind(LAYOUT)
    grads = torch.randn(3, 1, 91)
    faster = fastest(rule, grads[0], 2)
    tape, state = faster.tape(grads[0], 2), faster.init(grads[0])
    for grad in grads[:2]:
        step, state = tape.update(grad, state)
        torch.testing.assert_close(step[:, 43:], -0.1 * grad[:, 43:])
    meta_grads = tape.backward(list(grads[1:]))
    assert len(meta_grads) == len(list(faster.parameters())) == len(list(rule.parameters()))
