"""Imitation of another rule."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.meta_gradients.base import MetaGradient, Plan, Truncation, constants, update_size, with_objective
from lightning_l2l.meta_gradients.first_order import FirstOrder
from lightning_l2l.rules import State, Tape, UpdateRule
from lightning_l2l.rules.base import full_precision
from lightning_l2l.unroll import Run, unroll

SMALLEST = 1e-30  # of a squared length that errors are divided by


class Imitation(MetaGradient):
    """Lets the rule imitate a teacher, such as a tuned Adam, in a share of the meta-batches (arXiv:2010.09089).

    In those the teacher moves θ, and the rule sees the same gradients, which are taken as constant. It minimises a
    relative error: the squared length of the difference between its step and the teacher's over that of the teacher's,
    each summed over a truncation's steps, averaged over episodes. ``train/meta_loss`` is this error there. The other
    meta-batches have the usual meta-loss. A learned start is not imitated.

    Args:
        teacher: the rule to imitate, with its learning rate; a race prints tuned ones.
        share: of the meta-batches that imitate, spread evenly, above 0 and up to 1.
        meta_gradient: that of the other meta-batches; null is ``FirstOrder``.
    """

    def __init__(self, teacher: UpdateRule, share: float = 0.5, meta_gradient: MetaGradient | None = None) -> None:
        if not 0 < share <= 1:
            raise InvalidInputError(f"share of Imitation is {share}: give a number above 0, and up to 1.")
        self.teacher = teacher
        self.share = share
        self.meta_gradient = meta_gradient or FirstOrder()
        self.meta_batches = 0

    def check(self, rule: UpdateRule, episodes: Episodes) -> None:
        self.meta_gradient.check(rule, episodes)
        self.teacher.bind(episodes.layout)

    def left_out(self, rule: UpdateRule) -> str:
        return self.meta_gradient.left_out(rule) or constants(rule, "the gradients, where it imitates")

    def truncations(self, rule: UpdateRule, episodes: Episodes, plan: Plan) -> Iterator[Truncation]:
        before = int(self.share * self.meta_batches)
        self.meta_batches += 1
        if int(self.share * self.meta_batches) > before:
            return super().truncations(rule, episodes, plan)
        return self.meta_gradient.truncations(rule, episodes, plan)

    def start(self, rule: UpdateRule, episodes: Episodes) -> Run:
        run = super().start(rule, episodes)
        teacher = self.teacher.to(run.theta).bind(episodes.layout)
        return run._replace(state=(run.state, teacher.init(run.theta)))

    def truncation(self, rule: UpdateRule, episodes: Episodes, run: Run, plan: Plan) -> Truncation:
        with torch.no_grad():
            lesson = Lesson(rule, self.teacher.bind(episodes.layout), run.theta, plan.unroll)
            end, trajectory = unroll(lesson, episodes, run, plan.unroll)
            with full_precision(run.theta):
                error, meta_grads = lesson.graded()
        size = update_size(trajectory)
        return Truncation(end.detach(), trajectory.losses, size, error.mean(), with_objective(rule, meta_grads))

    def release(self) -> None:
        self.meta_gradient.release()

    def state_dict(self) -> dict[str, Any]:
        return {"meta_batches": self.meta_batches, "meta_gradient": self.meta_gradient.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.meta_batches = state.get("meta_batches", 0)
        self.meta_gradient.load_state_dict(state.get("meta_gradient", {}))


class Lesson(Tape):
    """Takes the teacher's steps, and records those that the rule would have taken.

    Args:
        rule: the one that learns.
        teacher: the one that steps.
        theta: like the θ they will run on, [N, P].
        steps: K, at most.
    """

    def __init__(self, rule: UpdateRule, teacher: UpdateRule, theta: Tensor, steps: int) -> None:
        super().__init__(rule)
        self.tape = rule.tape(theta, steps)
        self.teacher = teacher
        self.sees = tuple({*rule.sees, *teacher.sees})
        self.errors: list[Tensor] = []  # of each step, [N, P]
        self.length = torch.zeros_like(theta[:, 0])  # squared, of all steps of the teacher, [N]

    def update(self, grad: Tensor, state: State, *args: Any, **seen: Tensor) -> tuple[Tensor, State]:
        own, others = state
        step, own = self.tape.update(grad, own, **{name: seen[name] for name in self.rule.sees})
        wanted, others = self.teacher.update(grad, others, **{name: seen[name] for name in self.teacher.sees})
        self.errors.append(step - wanted)
        self.length = self.length + wanted.square().sum(1)
        return wanted, (own, others)

    def graded(self) -> tuple[Tensor, list[Tensor]]:
        """The relative error of each episode, [N], and the gradient of its mean with respect to φ."""
        length = self.length.clamp_min(SMALLEST)
        error = torch.stack(self.errors).square().sum((0, 2)) / length
        weight = 2 / length / len(length)
        return error, self.tape.backward([weight[:, None] * error for error in self.errors])
