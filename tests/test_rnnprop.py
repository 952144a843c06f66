"""RNNprop: what it sees, how far it steps, and its faster forms."""

import pytest
import torch
from own_loop import assert_steps_and_resumes, network

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules import RNNprop
from lightning_l2l.rules.base import Tape

STEPS = 6


def rnnprop(**settings):
    torch.manual_seed(0)
    return RNNprop(**{"hidden_size": 5} | settings)


def gradients(dtype=torch.float32):
    """Of all sizes, some of them 0; and as many cotangents."""
    random = torch.Generator().manual_seed(1)
    sizes = 10 ** torch.empty(2, 77).uniform_(-6, 3, generator=random)
    grads = [sizes * torch.randn(2, 77, generator=random) for _ in range(STEPS)]
    for grad in grads:
        grad[:, 5] = 0
    return [grad.to(dtype) for grad in grads], [torch.randn(2, 77, generator=random).to(dtype) for _ in grads]


def run(rule, tape, grads, cotangents):
    """The steps that a tape records, and the meta-gradient."""
    state, steps = rule.init(grads[0]), []
    for grad in grads:
        step, state = tape.update(grad, state)
        steps.append(step)
    return torch.stack(steps).detach(), tape.backward(cotangents)


def test_it_sees_what_adam_sees():
    (means,) = rnnprop().double().init(torch.zeros(1, 1, dtype=torch.float64)).momenta
    grads, seen = torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64), []
    for grad in grads.view(3, 1, 1):
        means = means.after(grad, 0.95)
        seen.append(means.relative(grad).flatten())
    weights = 0.95 ** torch.arange(2, -1, -1, dtype=torch.float64)
    mean, square = ((weights * power).sum() / weights.sum() for power in (grads, grads**2))
    torch.testing.assert_close(seen[-1], torch.stack([grads[-1], mean]) / square.sqrt())
    torch.testing.assert_close(seen[0], torch.ones(2, dtype=torch.float64))


def test_the_losss_scale_does_not_matter():
    grads, cotangents = gradients(torch.float64)
    rule = rnnprop().double()
    steps, _ = run(rule, Tape(rule), grads, cotangents)
    scaled, _ = run(rule, Tape(rule), [1e4 * grad for grad in grads], cotangents)
    visible = grads[0].abs() > 1e-4  # the square of the others is near what is added under the root
    torch.testing.assert_close(scaled[:, visible], steps[:, visible], rtol=1e-6, atol=1e-12)


def test_no_step_is_larger_than_its_scale():
    rule = rnnprop(output_scale=0.3)
    with torch.no_grad():
        rule.output.weight.mul_(1e3)
    steps, _ = run(rule, Tape(rule), *gradients())
    assert 0.29 < steps.abs().max() <= 0.3


def test_the_tape_is_what_autograd_computes():
    rule, given = rnnprop().double(), gradients(torch.float64)
    steps, meta_gradient = run(rule, Tape(rule), *given)
    fast, by_tape = run(rule, rule.tape(given[0][0], STEPS), *given)
    torch.testing.assert_close(fast, steps, rtol=1e-10, atol=1e-14)
    for got, want in zip(by_tape, meta_gradient, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("way", ["kernel"], indirect=True)
def test_the_kernel_is_what_autograd_computes(layers, way):
    rule, given = rnnprop(num_layers=layers, hidden_size=20), gradients()
    steps, meta_gradient = run(rule, Tape(rule), *given)
    kernel = rule.compiled(given[0][0], 1)
    compiled, by_kernel = run(kernel, kernel.tape(given[0][0], STEPS), *given)
    torch.testing.assert_close(compiled, steps, rtol=1e-4, atol=1e-6)
    for got, want in zip(by_kernel, meta_gradient, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_a_subclass_is_not_run_by_them():
    class Doubled(RNNprop):
        def readout(self, hidden):
            return 2 * super().readout(hidden)

    rule = Doubled(hidden_size=5)
    assert rule.compiled(torch.zeros(1, 3), 1) is None and type(rule.tape(torch.zeros(1, 3), 1)) is Tape


def test_it_is_an_optimizer_that_resumes(way):
    assert_steps_and_resumes(rnnprop(), network(), 3, rtol=1e-4, atol=1e-5)


def test_a_decay_that_is_none_is_refused():
    with pytest.raises(InvalidInputError, match=r"decay is 1\.0: give a number between 0 and 1"):
        RNNprop(decay=1.0)
