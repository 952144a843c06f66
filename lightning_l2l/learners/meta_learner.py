"""Meta-training as a LightningModule."""

import logging
import time
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import InvalidInputError, require_positive, require_within
from lightning_l2l.guard import all_finite
from lightning_l2l.learners.base import dtype_of, log_counted, monitor_of
from lightning_l2l.learners.cosine_schedule import cosine_schedule
from lightning_l2l.learners.stages import Stage, Stages
from lightning_l2l.meta_losses import MetaLoss, WeightedSum, Weights
from lightning_l2l.optimizees import EpisodeDataModule
from lightning_l2l.rules import UpdateRule
from lightning_l2l.unroll import evaluate, final_loss, optimize

log = logging.getLogger(__name__)


class MetaLearner(LightningModule):
    """Learns an update rule: Adam on φ descends L(φ) = E_f[Σ_t w_t f(θ_t)] (arXiv:1606.04474, section 2, equation 3).

    Each meta-batch is a number of episodes side by side, run over a horizon and cut into truncations of ``unroll``
    steps. Each truncation gives one step of Adam; θ and the rule's state are carried to the next.

    Args:
        rule: the update rule to learn.
        unroll: K, steps between two meta-steps; must divide the horizon.
        learning_rate: of Adam on φ at the start.
        final_learning_rate: of Adam on φ at the end, approached along half a cosine over the epochs, or over
            ``trainer.max_steps`` or ``trainer.max_time`` where that ends first; null keeps it constant.
        gradient_clip: largest norm of the meta-gradient; it is scaled down to it.
        loss_weights: w_t, the weights of the losses: uniform, last, linear or a list of one for each step of the
            horizon (see ``WeightedSum``); null is uniform, as in the paper.
        meta_loss: a meta-loss to use instead of the weighted sum.
        stages: a table of how meta-training changes over the epochs; each row has a share of the epochs, a horizon, an
            unroll and a meta-gradient. Null is one row: the data's horizon, ``unroll`` and the paper's first-order
            meta-gradient, which treats gradients as constants, and so learns smaller steps than the best ones.
    """

    monitor = "val/meta_loss"

    def __init__(
        self,
        rule: UpdateRule,
        unroll: int = 20,
        learning_rate: float = 0.001,
        final_learning_rate: float | None = None,
        gradient_clip: float = 1.0,
        loss_weights: Weights | None = None,
        meta_loss: MetaLoss | None = None,
        stages: list[Stage] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.save_hyperparameters(ignore=["rule", "meta_loss", "stages"])
        self.rule = rule
        self.learning_rate = learning_rate
        self.final_learning_rate = learning_rate if final_learning_rate is None else final_learning_rate
        self.gradient_clip = gradient_clip
        self.skipped_steps = 0
        self.said: set[str] = set()  # faults
        self.stage = 0
        require_positive("model.unroll", unroll)
        require_positive("model.gradient_clip", gradient_clip)
        for key, value in (("", learning_rate), ("final_", self.final_learning_rate)):
            require_positive(f"model.{key}learning_rate", value)
            require_within(f"model.{key}learning_rate", value, 1e-30, 1e30)  # what Adam can take in float32
        if meta_loss is not None and loss_weights is not None:
            raise InvalidInputError(
                f"model.loss_weights is {loss_weights}, but model.meta_loss is given, too: give one of them."
            )
        self.meta_loss = meta_loss or WeightedSum(loss_weights or "uniform")
        self.stages = Stages(stages if stages is not None else [Stage()], unroll, self.meta_loss)

    def setup(self, stage: str) -> None:
        """Runs the checks that need the data."""
        self.save_hyperparameters({"variant": self.datamodule.variant})
        self.check(self.datamodule)
        if stage == "fit":
            self._check_fit()

    def check(self, datamodule: EpisodeDataModule) -> None:
        """Refuses data that the rule or the meta-loss does not fit, and a rule that learns nothing.

        Raises:
            InvalidInputError: says why.
        """
        episodes = datamodule.episodes("val", [0])
        self.rule.bind(episodes.layout).start(episodes.theta)  # which may make its parameters
        if not list(self.rule.parameters()):
            raise InvalidInputError(
                f"model.rule is {type(self.rule).__name__}, which has no parameters to learn: give a learned rule."
            )
        self.meta_loss.check(datamodule.horizon)

    def _check_fit(self) -> None:
        """Refuses settings that meta-training cannot use, and logs what its meta-gradients leave out."""
        if self.trainer.precision in ("16-mixed", "16-true", "bf16-true"):
            raise InvalidInputError(
                f"trainer.precision is {self.trainer.precision}, which is too coarse for meta-gradients: use "
                "bf16-mixed."
            )
        if (self.trainer.max_epochs or 0) < 1:
            raise InvalidInputError(
                f"trainer.max_epochs is {self.trainer.max_epochs}, but the learning rate's decay needs an end: give a "
                "number above 0."
            )
        self.stages.check(self.datamodule)
        episodes = self.datamodule.episodes("val", [0]).to("cpu", dtype_of(self))
        rule = self.rule.bind(episodes.layout)
        for meta_gradient in self.stages.meta_gradients:
            meta_gradient.check(rule, episodes)
            if left_out := meta_gradient.left_out(rule):
                log.info("The meta-gradient %s takes as constant: %s.", type(meta_gradient).__name__, left_out)

    @property
    def datamodule(self) -> EpisodeDataModule:
        """Where the episodes come from."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam on φ, its learning rate decayed once a meta-batch."""
        optimizer = torch.optim.Adam(self.rule.parameters(), lr=self.learning_rate)
        end = self.final_learning_rate / self.learning_rate
        schedule = cosine_schedule(optimizer, self.trainer, end)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule}}

    def on_after_batch_transfer(self, batch: Episodes, dataloader_idx: int) -> Episodes:
        """Casts the episodes to the rule's floating-point type."""
        return batch.to(self.device, dtype_of(self))

    def on_train_start(self) -> None:
        """Ends a run that is resumed after its last stage has stalled."""
        self.trainer.should_stop = self.trainer.should_stop or self.stages.over

    def on_train_batch_start(self, batch: Episodes, batch_idx: int) -> None:
        """Enters the stage that the epoch belongs to; a run resumed inside an epoch does not start that epoch again."""
        before, self.stage = self.stage, self.stages.at(self.current_epoch, self.trainer.max_epochs or 1)
        if before != self.stage:
            self.stages.meta_gradients[before].release()

    def training_step(self, episodes: Episodes, batch_idx: int) -> None:
        """Runs the episodes over their horizon, with one meta-step for each truncation."""
        began = time.perf_counter()
        plan = self.stages.plan(self.stage, self.datamodule, self.trainer.fit_loop.total_batch_idx)
        meta_gradient = self.stages.meta_gradients[self.stage]
        taken = []
        for truncation in meta_gradient.truncations(self.rule, episodes, plan):
            norm = self.meta_step(truncation.objective)
            self._say_unless_finite("Losses of training episodes", truncation.losses)
            taken.append((truncation.meta_loss, norm, truncation.update_size, truncation.dropped))
            del truncation  # and its graph
        self.lr_schedulers().step()  # type: ignore[union-attr]
        losses, norms, sizes, dropped = torch.tensor(taken).T
        metrics = {
            "train/meta_loss": losses.sum(),
            "train/meta_gradient_norm": norms.mean(),
            "train/update_size": sizes.mean(),
            "train/meta_learning_rate": self.optimizers().param_groups[0]["lr"],  # type: ignore[union-attr]
            "train/episodes_per_second": len(episodes) * self.trainer.world_size / (time.perf_counter() - began),
            "train/skipped_steps": float(self.skipped_steps),
            "train/dropped_episodes": dropped.sum(),
        }
        for name, value in metrics.items():
            self._say_unless_finite(name, torch.as_tensor(value))
        if dropped.sum() > 0:
            self._say_once("Episodes are left out of the meta-gradient, since they are not finite")
        self.log_dict(metrics, batch_size=len(episodes))

    def meta_step(self, objective: Tensor) -> Tensor:
        """Takes one step of Adam on φ and returns the meta-gradient's norm; skips the step if that is not finite."""
        optimizer = self.optimizers()
        optimizer.zero_grad()  # type: ignore[union-attr]
        self.manual_backward(objective)
        norm = torch.nn.utils.clip_grad_norm_(self.rule.parameters(), self.gradient_clip)
        if norm.isfinite():  # the same in every process, since DDP has averaged the gradients
            optimizer.step()  # type: ignore[union-attr]
        else:
            self.skipped_steps += 1
            self._say_once("The meta-gradient is not finite: its meta-step is skipped")
        self._check_finite()
        return norm

    def _check_finite(self) -> None:
        """Stops before weights that are no numbers are saved."""
        if not all_finite(self.rule.parameters()):
            raise InvalidInputError(
                f"model.learning_rate is {self.learning_rate}, but in meta-batch "
                f"{self.trainer.fit_loop.total_batch_idx + 1} a meta-step made weights that are not finite: start anew "
                "with a smaller one."
            )

    def _say_unless_finite(self, name: str, values: Tensor) -> None:
        if not values.isfinite().all():
            self._say_once(f"{name}: not finite")

    def _say_once(self, fault: str) -> None:
        """Logs a fault when it first occurs."""
        if fault not in self.said:
            self.said.add(fault)
            where = f"meta-batch {self.trainer.fit_loop.total_batch_idx + 1}" if self.trainer.training else "evaluation"
            log.warning("%s (%s; said once).", fault, where)

    def on_train_end(self) -> None:
        """Says how much of the training did not count, and whether the last stage has ended it."""
        if self.stages.over:
            log.info("Training has ended early, since model.stages[%d].patience is over.", len(self.stages.rows) - 1)
        if self.skipped_steps:
            log.warning(
                "%d of %d meta-steps were skipped, because their meta-gradients were not finite.",
                self.skipped_steps,
                self.skipped_steps + self.trainer.global_step,
            )

    def validation_step(self, episodes: Episodes, batch_idx: int) -> dict[str, Tensor]:
        """Runs whole horizons without meta-gradients.

        Returns:
            curves: f(θ_0) .. f(θ_T), [N, T + 1].
            accuracy: at θ_T, [N]; left out where episodes have none.
        """
        return self._evaluate(episodes, "val", batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Ends a stage that has stalled."""
        metric = self.trainer.callback_metrics.get(monitor_of(self))
        if self.trainer.state.fn == "fit" and metric is not None and not self.trainer.sanity_checking:
            over = self.stages.stalled(self.current_epoch, self.trainer.max_epochs or 1, metric.item())
            self.trainer.should_stop = self.trainer.should_stop or over

    def test_step(self, episodes: Episodes, batch_idx: int) -> dict[str, Tensor]:
        """As ``validation_step``, on fresh episodes."""
        return self._evaluate(episodes, "test", batch_idx)

    def predict_step(self, episodes: Episodes, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Runs whole horizons; returns the optimized θ_T, [N, P], and the learning curves, [N, T + 1]."""
        return optimize(self.rule, episodes, self.datamodule.horizon)

    def _evaluate(self, episodes: Episodes, stage: str, batch_idx: int) -> dict[str, Tensor]:
        horizon = self.datamodule.horizon
        curves, accuracy = evaluate(self.rule, episodes, horizon)
        metrics = {
            f"{stage}/meta_loss": self.meta_loss(curves[:, 1:].T, 0, horizon, episodes.reference(0, horizon)),
            f"{stage}/final_loss": final_loss(curves, self.datamodule.last_steps),
        }
        if accuracy is not None:
            metrics[f"{stage}/accuracy"] = accuracy
        means = log_counted(self, metrics, episodes, batch_idx)
        for name, values in {f"Losses of {stage} episodes": curves, **means}.items():
            self._say_unless_finite(name, values)
        return {"curves": curves} if accuracy is None else {"curves": curves, "accuracy": accuracy}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the count of skipped meta-steps, and what the meta-gradients keep in each process."""
        checkpoint["skipped_steps"] = self.skipped_steps
        checkpoint["stages"] = self.stages.state_dict()
        own = [meta_gradient.state_dict() for meta_gradient in self.stages.meta_gradients]
        of_all = [own] * self.trainer.world_size
        if any(own) and torch.distributed.is_initialized():
            torch.distributed.all_gather_object(of_all, own)
        checkpoint["meta_gradients"] = of_all

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores what ``on_save_checkpoint`` kept."""
        self.skipped_steps = checkpoint.get("skipped_steps", 0)
        if "stages" in checkpoint:
            self.stages.load_state_dict(checkpoint["stages"])
        of_all = checkpoint.get("meta_gradients")
        if not of_all or self.trainer.state.fn != "fit":
            return
        if any(map(any, of_all)) and len(of_all) != self.trainer.world_size:
            raise InvalidInputError(
                f"trainer.devices gives {self.trainer.world_size} processes, but the checkpoint's meta-gradients "
                f"keep something of each of {len(of_all)}: give that many."
            )
        own = of_all[self.trainer.global_rank % len(of_all)]
        for meta_gradient, state in zip(self.stages.meta_gradients, own, strict=False):
            meta_gradient.load_state_dict(state)
