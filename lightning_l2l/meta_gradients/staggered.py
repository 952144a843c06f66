"""Runs that outlive their meta-batch."""

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import InvalidInputError, require_positive
from lightning_l2l.meta_gradients.base import MetaGradient, Plan, Truncation
from lightning_l2l.meta_gradients.kept_runs import pack, unpack_episodes, unpack_run
from lightning_l2l.rules import UpdateRule
from lightning_l2l.unroll import Run


class InProgress(NamedTuple):
    """A meta-batch whose runs go on."""

    rule: UpdateRule  # as prepared for these episodes
    episodes: Episodes
    plan: Plan
    run: Run


class Staggered(MetaGradient):
    """Takes another meta-gradient's truncations from several meta-batches in turn.

    Successive meta-steps then see early and late truncations, and different tasks, where one meta-batch after the other
    would let φ follow the phase of its runs (step-unlocked workers, arXiv:2304.12180). A meta-batch that arrives joins
    those in progress, with its own horizon. All are given truncations in turn, one for each meta-step, until fewer than
    ``batches`` are in progress. The first meta-batches start about T / K / ``batches`` truncations apart; the last ones
    are not finished. ``train/meta_loss`` adds up the truncations of a training step, whichever runs they belong to.

    Args:
        meta_gradient: whose truncations are taken.
        batches: meta-batches in progress; 1 gives the same meta-steps as the meta-gradient alone.
    """

    def __init__(self, meta_gradient: MetaGradient, batches: int = 6) -> None:
        require_positive("batches", batches)
        self.meta_gradient = meta_gradient
        self.batches = batches
        self.in_progress: deque[InProgress] = deque()  # the next one first
        self.packed: dict[str, Any] = {}  # a checkpoint's, until there are episodes to rebuild it with

    def check(self, rule: UpdateRule, episodes: Episodes) -> None:
        own = type(self.meta_gradient)
        if own.truncations is not MetaGradient.truncations:
            raise InvalidInputError(
                f"model.stages has Staggered around {own.__name__}, which chooses between truncations of its own: give "
                f"{own.__name__} with Staggered as its meta_gradient instead."
            )
        self.meta_gradient.check(rule, episodes)

    def left_out(self, rule: UpdateRule) -> str:
        return self.meta_gradient.left_out(rule)

    def prepare(self, rule: UpdateRule, episodes: Episodes, plan: Plan) -> UpdateRule:
        return self.meta_gradient.prepare(rule, episodes, plan)

    def start(self, rule: UpdateRule, episodes: Episodes) -> Run:
        return self.meta_gradient.start(rule, episodes)

    def truncation(self, rule: UpdateRule, episodes: Episodes, run: Run, plan: Plan) -> Truncation:
        return self.meta_gradient.truncation(rule, episodes, run, plan)

    def truncations(self, rule: UpdateRule, episodes: Episodes, plan: Plan) -> Iterator[Truncation]:
        if self.packed:
            self._unpack(rule, episodes, plan)
        self.in_progress.appendleft(self._begin(rule, episodes, plan))
        count = len(self.in_progress)
        least = 1 if count >= self.batches else max(1, count * plan.horizon // (plan.unroll * self.batches))
        while self.in_progress and (least > 0 or len(self.in_progress) >= self.batches):
            batch = self.in_progress.popleft()
            truncation = self.truncation(batch.rule, batch.episodes, batch.run, batch.plan)
            if truncation.run.step < batch.plan.horizon:
                self.in_progress.append(batch._replace(run=truncation.run))
            least -= 1
            yield truncation
            del batch, truncation  # and its graph, which must not exist when the next steps are recorded for a GPU

    def release(self) -> None:
        self.in_progress.clear()
        self.packed = {}
        self.meta_gradient.release()

    def state_dict(self) -> dict[str, Any]:
        if self.packed:
            return self.packed
        runs = [
            pack(batch.episodes, batch.run) | {"horizon": batch.plan.horizon, "unroll": batch.plan.unroll}
            for batch in self.in_progress
        ]
        inner = self.meta_gradient.state_dict()
        return {"runs": runs, "meta_gradient": inner} if runs or inner else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.packed = state

    def _begin(self, rule: UpdateRule, episodes: Episodes, plan: Plan) -> InProgress:
        rule = self.prepare(rule.bind(episodes.layout), episodes, plan)
        return InProgress(rule, episodes, plan, self.start(rule, episodes))

    def _unpack(self, rule: UpdateRule, like: Episodes, plan: Plan) -> None:
        for packed in self.packed["runs"]:
            own_plan = plan._replace(horizon=packed["horizon"], unroll=packed["unroll"])
            with torch.random.fork_rng(devices=[like.theta.device] if like.theta.is_cuda else []):
                begun = self._begin(rule, unpack_episodes(packed, like), own_plan)
            self.in_progress.append(begun._replace(run=unpack_run(packed, begun.run)))
        self.meta_gradient.load_state_dict(self.packed["meta_gradient"])  # beginning runs has changed it
        self.packed = {}
