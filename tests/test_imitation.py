"""Imitation of a teacher in a share of the meta-batches."""

import pytest
import torch
from command_line import fit, tiny
from conftest import same, weights
from small_problem import plan, problem

from lightning_l2l.cli import main
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.meta_gradients import Exact, FirstOrder, Imitation
from lightning_l2l.rules import SGD, Adam, CoordinatewiseLSTM, MetaLearnerLSTM
from lightning_l2l.unroll import learning_curves

TEACHER = "{class_path: lightning_l2l.rules.Adam, init_args: {learning_rate: 0.1}}"
FLAGS = [
    f"--model.stages=[{{meta_gradient: {{class_path: lightning_l2l.meta_gradients.Imitation, "
    f"init_args: {{teacher: {TEACHER}, share: 0.5}}}}}}]",
    "--comparison.baselines=[]",
]


def error(rule, teacher, episodes, steps):
    """By hand: θ follows the teacher."""
    theta, state, others = episodes.theta, rule.init(episodes.theta), teacher.init(episodes.theta)
    wrong = length = 0.0
    for step in range(steps):
        loss, grad = episodes.value_and_grad(theta, step)
        seen = {"theta": theta.detach(), "loss": loss.detach()}
        own, state = rule.update(grad.detach(), state, **{name: seen[name] for name in rule.sees})
        wanted, others = teacher.update(grad.detach(), others)
        wrong, length = wrong + (own - wanted).square().sum(1), length + wanted.square().sum(1)
        theta = theta.detach() + wanted
    return (wrong / length).mean()


@pytest.mark.parametrize("rule", [CoordinatewiseLSTM(4, output_scale=1.0), MetaLearnerLSTM(3)], ids=["LSTM", "sees θ"])
def test_its_gradient_is_that_of_the_error(rule):
    rule, (_, episodes) = rule.double(), problem()
    imitation, whole = Imitation(Adam(0.1), share=1.0), plan()
    (truncation,) = imitation.truncations(rule, episodes, whole)
    got = torch.autograd.grad(truncation.objective, list(rule.parameters()))
    by_hand = error(rule, Adam(0.1), episodes, whole.horizon)
    want = torch.autograd.grad(by_hand, list(rule.parameters()))
    torch.testing.assert_close(truncation.meta_loss, by_hand.detach())
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)
    taught = learning_curves(Adam(0.1).double(), episodes, whole.horizon)[:, 1:]
    torch.testing.assert_close(truncation.losses, taught.T)


def test_a_rule_learns_the_teachers_steps():
    _, episodes = problem()
    rule = CoordinatewiseLSTM(4, preprocessing=None, output_scale=1.0).double()
    imitation, adam = Imitation(SGD(0.05), share=1.0), torch.optim.Adam(rule.parameters(), 0.02)
    errors = []
    for _ in range(60):
        for truncation in imitation.truncations(rule, episodes, plan()):
            adam.zero_grad()
            truncation.objective.backward()
            adam.step()
            errors.append(truncation.meta_loss.item())
    assert errors[-1] < 0.3 * errors[0]


def test_the_meta_batches_that_imitate_are_spread_evenly(monkeypatch):
    rule, episodes = problem()
    taken = []
    for kind in (Imitation, FirstOrder):
        truncation = kind.truncation
        monkeypatch.setattr(kind, "truncation", lambda self, *a, t=truncation: taken.append(type(self)) or t(self, *a))
    imitation = Imitation(SGD(0.1), share=0.4)
    for _ in range(5):
        list(imitation.truncations(rule, episodes, plan()))
    assert [one is Imitation for one in taken] == [False, False, True, False, True]


def test_a_fit_resumes_to_the_bit():
    fit(*FLAGS, "--trainer.max_epochs=3", "--trainer.logger.init_args.version=whole")
    fit(*FLAGS, "--trainer.max_epochs=3", "--data.train_episodes=4", "--trainer.logger.init_args.version=other")
    stop = "--trainer.callbacks+=forks.StopAfter", "--trainer.callbacks.batches=3"
    with pytest.raises(SystemExit):
        fit(*FLAGS, "--trainer.max_epochs=3", *stop, "--trainer.logger.init_args.version=cut")
    main(tiny("fit", *FLAGS, "--trainer.max_epochs=3", "--ckpt_path=runs/quadratic/cut/checkpoints/last.ckpt"))
    whole, cut, other = (weights(f"runs/quadratic/{name}/checkpoints/last.ckpt") for name in ("whole", "cut", "other"))
    assert same(whole, cut) and not same(whole, other)


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(InvalidInputError, match="share of Imitation is"):
        Imitation(SGD(0.1), share)


def test_what_it_leaves_out_is_said():
    rule, _ = problem()
    assert "the gradients" in Imitation(SGD(0.1)).left_out(rule)
    assert "imitates" in Imitation(SGD(0.1), meta_gradient=Exact()).left_out(rule)
