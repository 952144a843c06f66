"""NTM-BFGS: its memory, and BFGS under a controller whose arithmetic is exact."""

from typing import NamedTuple

import pytest
import torch
from forks import QUADRATICS, train_race_kill_and_resume
from own_loop import assert_steps_and_resumes, network, train
from small_problem import assert_agrees_with_finite_differences, first_order_by_autograd, meta_gradient, problem
from torch import Tensor

from lightning_l2l import LearnedOptimizer
from lightning_l2l.cli import main
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.meta_gradients import Exact, FirstOrder, Linearized
from lightning_l2l.optimizees import Quadratics
from lightning_l2l.pretrained import load_rule
from lightning_l2l.rules import NTMBFGS
from lightning_l2l.rules.ntm_bfgs import Heads
from lightning_l2l.unroll import start, unroll

FORMS = [None, 2]  # of the memory: a matrix, and what the last steps wrote


def rule_far_from_its_start(**settings):
    rule = NTMBFGS(**{"hidden_size": 4, "averaged": 2, "output_scale": 1.0, **settings}).double()
    for parameter in rule.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return rule


class Remembered(NamedTuple):
    """What the exact controller knows at a step; all but the phase [N, P]."""

    phase: str  # "move", or "search" for the step's length, or "rest" to read and sum
    step: Tensor  # s, the last one
    length: Tensor  # α of the last step s = −α H ∇
    last_grad: Tensor  # ∇ before it
    change_step: Tensor  # yᵀs and ∇ᵀs, the same for all coordinates
    grad_step: Tensor


class ExactController(NTMBFGS):
    """BFGS by the rule's own memory and two averages; the controller's arithmetic is exact.

    With H the memory, q = H y and ρ = 1 / yᵀs, BFGS's update is H − ρ s qᵀ − ρ q sᵀ + ρ (1 + ρ yᵀq) s sᵀ. The last step
    is s = −α H ∇_last, so q = H ∇ + s / α: one read will do. α is 1, or that of an exact line search: on a quadratic
    function the gradient after a step of length 1 tells where along it the minimum is.
    """

    searches = False

    def init(self, theta: Tensor):
        zero, one = torch.zeros_like(theta), torch.ones_like(theta)
        return super().init(theta)._replace(controller=Remembered("rest", zero, one, zero, zero, zero))

    def inner_products(self, *products: Tensor) -> Tensor:
        """Sums over an episode's coordinates, from the two averaged units, each [N, P]."""
        return products[0].shape[1] * self.outgoing(torch.stack(products))

    def control(self, grad, read, state):
        zero, step, change = torch.zeros_like(grad), state.step, grad - state.last_grad
        none = torch.stack([zero] * 3)
        if state.phase == "search":
            change_step, last_step = self.inner_products(change * step, state.last_grad * step)
            length = -last_step / change_step
            after = state._replace(phase="rest", step=length * step, length=length)
            return Heads((length - 1) * step, zero, none, none), after
        if state.phase == "rest":
            change_step, grad_step = self.inner_products(change * step, grad * step)
            after = state._replace(phase="move", change_step=change_step, grad_step=grad_step)
            return Heads(zero, grad, none, none), after
        rho = torch.where(state.change_step == 0, 0, 1 / state.change_step)  # before the first move there is no s
        q = read + step / state.length
        change_q, grad_q = self.inner_products(change * q, grad * q)
        of_step = rho * (1 + rho * change_q)
        a, b = torch.stack([-rho * step, -rho * q, of_step * step]), torch.stack([q, step, step])
        direction = read - rho * step * grad_q - rho * q * state.grad_step + of_step * step * state.grad_step
        phase = "search" if self.searches else "rest"
        return Heads(-direction, zero, a, b), Remembered(phase, -direction, torch.ones_like(grad), grad, zero, zero)


class LineSearchController(ExactController):
    searches = True


def quadratics():
    return Quadratics(dimension=5).episodes("test", range(4)).to("cpu", torch.float64)


def steps_on_quadratics(controller, moves, memory):
    """θ_0, θ_1, ... of the rule, of BFGS, each [4, moves + 1, 5], and all θ of the rule, [4, steps + 1, 5]."""
    initial, phases = 0.5, 3 if controller.searches else 2
    episodes = quadratics()
    rule = controller(averaged=2, memory=memory, initial=initial).double()
    with torch.no_grad():
        _, trajectory = unroll(rule, episodes, start(rule, episodes), phases * moves + 1)
    thetas = torch.stack([episodes.theta, *trajectory.thetas], 1)
    ones = ({name: value[[number]] for name, value in episodes.tensor_fields().items()} for number in range(4))
    want = torch.stack([bfgs(episodes.with_tensors(one), initial, moves, controller.searches) for one in ones])
    return thetas[:, 1::phases], want, thetas


def assert_equal_up_to_rounding(got, want):
    for one, other in zip(got, want, strict=True):
        assert (one - other).norm(dim=1).max() <= 1e-11 * other.diff(dim=0).norm(dim=1).min()


@pytest.mark.parametrize("memory", [None, 24])
def test_an_exact_controller_takes_the_steps_of_bfgs(memory):
    """Unit steps: two inner products a step, one read head and three write heads; θ rests in every second step."""
    got, want, thetas = steps_on_quadratics(ExactController, 12, memory)
    assert_equal_up_to_rounding(got, want)
    assert torch.equal(thetas[:, 1::2], thetas[:, :-1:2])


@pytest.mark.parametrize("memory", [None, 12])
def test_an_exact_controller_searches_along_the_line(memory):
    """A step of unit length, its correction, and a rest; then BFGS ends at the minimum after 5 moves."""
    got, want, _ = steps_on_quadratics(LineSearchController, 4, memory)
    assert_equal_up_to_rounding(got, want)
    got, _, _ = steps_on_quadratics(LineSearchController, 5, memory and 15)
    losses = [quadratics().value_and_grad(theta, 0)[0] for theta in (got[:, 0], got[:, -1])]
    assert (losses[1] <= 1e-15 * losses[0]).all()


def bfgs(episode, initial, moves, searches):
    """θ_0, θ_1, ... of BFGS, as textbooks have it (Nocedal and Wright, equation 6.17).

    Its steps have length 1, or end where the slope along them is zero.
    """

    def gradient(theta):
        return episode.value_and_grad(theta[None], 0)[1][0]

    theta = episode.theta[0]
    identity, thetas, grad = torch.eye(len(theta), dtype=theta.dtype), [theta], gradient(theta)
    inverse = initial * identity
    for _ in range(moves):
        step = -inverse @ grad
        if searches:  # the slope is linear on a quadratic function
            slopes = grad @ step, gradient(theta + step) @ step
            step = slopes[0] / (slopes[0] - slopes[1]) * step
        theta, before = theta + step, grad
        grad = gradient(theta)
        rho = 1 / ((grad - before) @ step)
        left = identity - rho * torch.outer(step, grad - before)
        inverse = left @ inverse @ left.T + rho * torch.outer(step, step)
        thetas.append(theta)
    return torch.stack(thetas)


def steps_of(rule, grads):
    """The steps on gradients [T, N, P], and the last state."""
    state, steps = rule.init(grads[0]), []
    for grad in grads:
        step, state = rule.update(grad, state)
        steps.append(step)
    return torch.stack(steps), state


def test_a_window_as_long_as_the_run_is_the_full_memory():
    full, grads = rule_far_from_its_start(initial=0.5), torch.randn(6, 2, 5, dtype=torch.float64)
    for memory in (5, 9):  # what the last step writes is not read
        limited = rule_far_from_its_start(initial=0.5, memory=memory)
        limited.load_state_dict(full.state_dict())
        torch.testing.assert_close(steps_of(limited, grads)[0], steps_of(full, grads)[0], rtol=1e-12, atol=1e-12)
    shorter = rule_far_from_its_start(initial=0.5, memory=2)
    shorter.load_state_dict(full.state_dict())
    difference = (steps_of(shorter, grads)[0] - steps_of(full, grads)[0]).abs().amax((1, 2))
    assert (difference[:4] < 1e-12).all() and (difference[4:] > 1e-6).all()  # it forgets the first write in step 4


@pytest.mark.parametrize("memory", FORMS)
def test_reads_and_writes_are_those_of_a_matrix(memory):
    rule, vectors = NTMBFGS(memory=memory, initial=2.0), torch.randn(3, 7, 2, 5, dtype=torch.float64)
    state = rule.init(vectors[0, 0]).memory
    for a, b in zip(vectors[:, :3], vectors[:, 3:6], strict=True):
        state = rule.write(state, Heads(a[0], a[0], a, b))
    for n, r in enumerate(vectors[0, 6]):
        last = 3 if memory is None else memory
        matrix = 2 * torch.eye(5).double() + sum(
            torch.outer(a, b) for t in vectors[-last:] for a, b in zip(t[:3, n], t[3:6, n], strict=True)
        )
        torch.testing.assert_close(rule.read(state, vectors[0, 6])[n], matrix @ r)


def test_what_is_read_arrives_in_the_next_step():
    rule, grads = rule_far_from_its_start(), torch.randn(3, 1, 4, dtype=torch.float64)
    state = rule.init(grads[0])
    _, after = rule.update(grads[0], state)
    other = after._replace(read=after.read + 1)
    assert not torch.allclose(rule.update(grads[1], after)[0], rule.update(grads[1], other)[0])
    other = state._replace(memory=state.memory + torch.randn(4, 4).double())
    assert torch.equal(rule.update(grads[0], state)[0], rule.update(grads[0], other)[0])
    assert not torch.allclose(rule.update(grads[0], state)[1].read, rule.update(grads[0], other)[1].read)


def test_an_untrained_rule_leaves_the_memory_as_it_is():
    _, state = steps_of(NTMBFGS(initial=0.5), torch.randn(5, 2, 4))
    assert torch.equal(state.memory, 0.5 * torch.eye(4).expand(2, -1, -1)) and state.read.abs().min() > 0


@pytest.mark.parametrize("memory", FORMS)
def test_episodes_do_not_mix(memory):
    rule, grads = rule_far_from_its_start(memory=memory), torch.randn(5, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(steps_of(rule, grads)[0][:, 1:2], steps_of(rule, grads[:, 1:2])[0])
    order = torch.randperm(4)
    torch.testing.assert_close(steps_of(rule, grads[..., order])[0], steps_of(rule, grads)[0][..., order])


@pytest.mark.parametrize("memory", FORMS)
@pytest.mark.parametrize("preprocessing", [None, 10.0])
def test_meta_gradients(memory, preprocessing):
    rule, (_, episodes) = rule_far_from_its_start(memory=memory, preprocessing=preprocessing), problem()
    first = meta_gradient(FirstOrder(), rule, episodes)
    torch.testing.assert_close(first, first_order_by_autograd(rule, episodes), rtol=1e-9, atol=1e-9)
    assert meta_gradient(Linearized(), rule, episodes).isfinite().all()
    got = meta_gradient(Exact(), rule, episodes)
    torch.testing.assert_close(meta_gradient(Exact(1e9), rule, episodes), got)  # by a φ for each episode
    assert_agrees_with_finite_differences(got, rule, episodes, atol=1e-6)


@pytest.mark.parametrize("memory", FORMS)
def test_the_optimizer_steps_a_param_group_as_one_vector(memory):
    rule, model = rule_far_from_its_start(memory=memory), torch.nn.Linear(200, 3).double()
    assert_steps_and_resumes(rule, model, 4, rtol=1e-9, atol=1e-9)


def test_the_memory_stays_in_float32():
    """Many small writes would be rounded away in bfloat16."""
    p = torch.nn.Parameter(torch.ones(4))
    p.grad = torch.ones(4)
    for memory in FORMS:
        optimizer = LearnedOptimizer([p], NTMBFGS(memory=memory), bfloat16_state=True)
        optimizer.step()
        kept = {value.dtype for name, value in optimizer.state[p].items() if name.startswith("memory")}
        assert kept == {torch.float32} and optimizer.state[p]["controller.cell.0"].dtype == torch.bfloat16


def test_a_matrix_for_too_many_coordinates_is_refused():
    sentence = "NTM-BFGS would keep a matrix of 9,183 x 9,183 numbers for each episode: set its memory to"
    with pytest.raises(InvalidInputError, match=sentence):
        NTMBFGS().init(torch.zeros(1, 9183))
    model = network()
    optimizer = LearnedOptimizer(model.parameters(), NTMBFGS())
    with pytest.raises(InvalidInputError, match=sentence):
        train(model, optimizer, 1)
    train(model, LearnedOptimizer(model.parameters(), NTMBFGS(memory=2)), 1)


@pytest.mark.parametrize("setting", ["memory", "initial"])
def test_settings_must_be_positive(setting):
    with pytest.raises(InvalidInputError, match=f"{setting} is 0, but it must be positive"):
        NTMBFGS(**{setting: 0})


RULE = """
model:
  rule: {class_path: lightning_l2l.rules.NTMBFGS, init_args: {hidden_size: 4, averaged: 2, memory: 5}}
  unroll: 10
  learning_rate: 0.02
"""


def test_a_yaml_file_trains_resumes_and_exports_it():
    row = train_race_kill_and_resume(RULE, QUADRATICS)["NTM-BFGS"]
    assert float(row["last10"]) < 0.9 * float(row["initial"])
    main(["export", "--ckpt_path=runs/fork/version_0/checkpoints/best.ckpt", "--output=mine.safetensors"])
    loaded = load_rule("mine.safetensors")
    assert isinstance(loaded, NTMBFGS) and loaded.memory == 5 and loaded.output.weight[2:5].all()
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    LearnedOptimizer([p], "mine.safetensors").step()
    assert (p != 1).all()
