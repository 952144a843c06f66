"""Meta-training as a LightningModule."""

import time
from functools import partial
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from lightning_l2l import meta_gradient
from lightning_l2l.comparison import final_loss
from lightning_l2l.cuda_graph import GraphedFirstOrder
from lightning_l2l.errors import InvalidInputError, first_line
from lightning_l2l.optimizees import EpisodeDataModule, Episodes
from lightning_l2l.optimizees.base import require_positive
from lightning_l2l.rules import UpdateRule, fastest
from lightning_l2l.schedule import cosine_decay
from lightning_l2l.unroll import learning_curves, optimize, start


class MetaLearner(LightningModule):
    """Learns an update rule: Adam on φ descends L(φ) = E_f[Σ_t w_t f(θ_t)] (arXiv:1606.04474, section 2, equation 3).

    Each meta-batch is a number of episodes side by side, run over a horizon and cut into truncations of ``unroll``
    steps. Each truncation gives one step of Adam; θ and the rule's state are carried to the next.

    Args:
        rule: the update rule to learn.
        unroll: K, steps between two meta-steps; must divide the horizon.
        learning_rate: of Adam on φ at the start.
        final_learning_rate: of Adam on φ at the end, approached along half a cosine; null keeps it constant.
        curriculum: horizons of meta-training, each for an equal share of the epochs, so that long runs are met when
            short ones are mastered; null is the data's horizon all along.
        gradient_clip: largest norm of the meta-gradient; it is scaled down to it.
        loss_weights: w_1 .. w_T, one for each step of the horizon; null weighs every step 1, as the paper does.
        second_order: share of the epochs, the last ones, whose meta-gradient goes through the optimizee's gradients as
            well. The paper's takes them as given in all epochs, which is 0, and so learns smaller steps than are best.
        hessian_every: the meta-gradient of second order takes the rule for the linear filter that is closest to its
            steps, and a Hessian of the loss at every so many steps: fewer are faster, and less exact. Null takes the
            exact one of each truncation, which explodes in long ones, takes three to six times as long as the first
            order on a CPU, and the memory of an unroll's whole graph, whatever ``memory`` and ``compiled`` say.
        second_order_unroll: K in the epochs of second order, or the whole horizon where that is shorter; null is
            ``unroll``. With ``hessian_every`` it may be long, and then learns what pays off late.
        memory: gigabytes that the activations of one unroll may take; beyond them they are computed again, slice by
            slice, which is slower; 0 always does that.
        compiled: run the LSTM by a kernel that is compiled on this machine, where it has a C++ compiler; on a GPU,
            record each truncation of first order as a CUDA graph.
    """

    def __init__(
        self,
        rule: UpdateRule,
        unroll: int = 20,
        learning_rate: float = 0.001,
        final_learning_rate: float | None = None,
        curriculum: list[int] | None = None,
        gradient_clip: float = 1.0,
        loss_weights: list[float] | None = None,
        second_order: float = 0.0,
        hessian_every: int | None = None,
        second_order_unroll: int | None = None,
        memory: float = 4.0,
        compiled: bool = True,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.save_hyperparameters(ignore=["rule"])
        self.rule = rule
        self.unroll = unroll
        self.learning_rate = learning_rate
        self.final_learning_rate = learning_rate if final_learning_rate is None else final_learning_rate
        self.curriculum = curriculum
        self.gradient_clip = gradient_clip
        self.loss_weights = loss_weights
        self.second_order = second_order
        self.hessian_every = hessian_every
        self.second_order_unroll = second_order_unroll
        self.first_order: meta_gradient.MetaGradient = meta_gradient.first_order
        self.memory = memory
        self.compiled = compiled
        self.skipped_steps = 0
        if not list(rule.parameters()):
            raise InvalidInputError(
                f"model.rule is {type(rule).__name__}, which has no parameters to learn: give a learned rule."
            )
        for key in ("unroll", "learning_rate", "final_learning_rate", "gradient_clip"):
            require_positive(f"model.{key}", getattr(self, key))
        for key in ("hessian_every", "second_order_unroll"):
            if getattr(self, key) is not None:
                require_positive(f"model.{key}", getattr(self, key))
        if not 0 <= second_order <= 1:
            raise InvalidInputError(
                f"model.second_order is {second_order}, but it is a share of the epochs: give a number from 0 to 1."
            )

    def setup(self, stage: str) -> None:
        """Checks what needs the data to be known."""
        self.save_hyperparameters({"variant": self.datamodule.variant})
        self.check(self.datamodule)
        if stage == "fit":
            self._check_fit()

    def _check_fit(self) -> None:
        """Refuses what meta-training would stumble over."""
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
        epochs = range(self.trainer.max_epochs or 0)
        for key, horizon, unroll_key, unroll in (
            *((*stage, "model.unroll", self.unroll) for stage in self._horizons()),  # met by an epoch or not
            *((*self._horizon_in(epoch), *self._unroll_in(epoch)) for epoch in epochs),
        ):
            if horizon % unroll:
                raise InvalidInputError(
                    f"{key} is {horizon}, which {unroll_key}={unroll} does not divide: make the horizon a multiple of "
                    "the unroll."
                )
            if not 0 < horizon <= self.datamodule.horizon:
                raise InvalidInputError(
                    f"{key} is {horizon}, but data.horizon is {self.datamodule.horizon}: give a positive number that "
                    "is not above it."
                )
        if self.second_order > 0:
            self._check_second_order(self.datamodule)

    def check(self, datamodule: EpisodeDataModule) -> None:
        """Refuses data that the rule or the weights of the losses do not fit.

        Raises:
            InvalidInputError: says why.
        """
        self.rule.bind(datamodule.episodes("val", [0]).layout)
        horizon = datamodule.horizon
        if self.loss_weights is not None and len(self.loss_weights) != horizon:
            raise InvalidInputError(
                f"model.loss_weights has {len(self.loss_weights)} entries, but data.horizon is {horizon}: give one for "
                "each step."
            )

    def _check_second_order(self, datamodule: EpisodeDataModule) -> None:
        """Refuses an optimizee without second derivatives now, not when the first epochs are over."""
        episodes = datamodule.episodes("val", [0])
        theta = episodes.theta.clone().requires_grad_()
        try:
            with torch.random.fork_rng(devices=[]), torch.enable_grad():  # dropout must not change what comes
                grad = episodes.value_and_grad(theta, 0)[1]
                grad.square().sum().backward()
        except RuntimeError as error:
            raise InvalidInputError(
                f"model.second_order is {self.second_order}, but the optimizee cannot be differentiated twice "
                f"({first_line(error)}): give 0."
            ) from error

    @property
    def datamodule(self) -> EpisodeDataModule:
        """Where the episodes come from."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def _horizons(self) -> list[tuple[str, int]]:
        """All horizons of meta-training, with their keys."""
        stages = enumerate(self.curriculum or [])
        return [("data.horizon", self.datamodule.horizon), *((f"model.curriculum[{n}]", stage) for n, stage in stages)]

    def _horizon_in(self, epoch: int) -> tuple[str, int]:
        """Steps of an episode of meta-training, after the setting that says so."""
        stages = self._horizons()[1:] or self._horizons()
        return stages[epoch * len(stages) // (self.trainer.max_epochs or 1)]

    def _unroll_in(self, epoch: int) -> tuple[str, int]:
        """K, after the setting that says so."""
        if self.second_order_unroll and self._is_second_order_in(epoch):
            return "model.second_order_unroll", min(self.second_order_unroll, self._horizon_in(epoch)[1])
        return "model.unroll", self.unroll

    def _is_second_order_in(self, epoch: int) -> bool:
        return epoch >= round((1 - self.second_order) * (self.trainer.max_epochs or 1))

    @property
    def is_second_order(self) -> bool:
        """Whether this epoch's meta-gradient goes through the optimizee's gradients."""
        return self._is_second_order_in(self.current_epoch)

    @property
    def is_exact(self) -> bool:
        """Whether it goes through the rule, too, just as it is."""
        return self.is_second_order and self.hessian_every is None

    @property
    def step_weights(self) -> Tensor:
        """w_1 .. w_T, [T]."""
        weights = self.loss_weights or [1.0] * self.datamodule.horizon
        return torch.tensor(weights, device=self.device, dtype=self.rule_dtype)

    @property
    def rule_dtype(self) -> torch.dtype:
        """The floating point type of φ, in which episodes are run."""
        return next(self.rule.parameters()).dtype

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the count of skipped meta-steps."""
        checkpoint["skipped_steps"] = self.skipped_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of a rule of another shape; goes on with its count of skipped meta-steps."""
        self.check_shapes(checkpoint["state_dict"], str(self.trainer.ckpt_path))
        self.skipped_steps = checkpoint.get("skipped_steps", 0)

    def check_shapes(self, weights: dict[str, Tensor], path: str) -> None:
        """Refuses weights of a rule of another shape.

        Raises:
            InvalidInputError: names the first that differs.
        """
        kept = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        own = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        if kept != own:
            name = next(iter(dict(kept.items() ^ own.items())))
            raise InvalidInputError(
                f"--ckpt_path is {path}, in which {name} has shape {kept.get(name)}, but here {own.get(name)}: give "
                "the model.rule it was trained with."
            )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam on φ, its learning rate decayed once a meta-batch."""
        optimizer = torch.optim.Adam(self.rule.parameters(), lr=self.learning_rate)
        # Lightning's own estimate would start the loader before a checkpoint can tell it where to go on
        meta_batches = (self.trainer.max_epochs or 1) * self.datamodule.train_batches(self.trainer.world_size)
        decay = cosine_decay(meta_batches, self.final_learning_rate / self.learning_rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, decay)}}

    def on_fit_start(self) -> None:
        """Spares a GPU waiting for Python."""
        if self.device.type == "cuda" and self.compiled:
            self.first_order = GraphedFirstOrder()

    def on_after_batch_transfer(self, batch: Episodes, dataloader_idx: int) -> Episodes:
        """Gives the episodes the rule's floating point type."""
        return batch.to(self.device, self.rule_dtype)

    def training_step(self, episodes: Episodes, batch_idx: int) -> None:
        """Runs the episodes over their horizon, with one meta-step for each truncation."""
        began = time.perf_counter()
        rule = self.fastest_rule(episodes)
        steps = self.choose_meta_gradient()
        with torch.set_grad_enabled(self.is_exact):
            run = start(rule, episodes)
        truncations = []
        horizon, unroll = self._horizon_in(self.current_epoch)[1], self._unroll_in(self.current_epoch)[1]
        for weights in self.step_weights[:horizon].split(unroll):
            truncation = steps(rule, episodes, run, weights)
            norm = self.meta_step(truncation.objective)
            truncations.append((weights @ truncation.losses.mean(1), norm, truncation.update_size))
            run = truncation.run
            del truncation  # with its graph, which must not be there when the next steps are recorded
        self.lr_schedulers().step()  # type: ignore[union-attr]
        losses, norms, sizes = torch.tensor(truncations).T
        metrics = {
            "train/meta_loss": losses.sum(),
            "train/meta_gradient_norm": norms.mean(),
            "train/update_size": sizes.mean(),
            "train/meta_learning_rate": self.optimizers().param_groups[0]["lr"],  # type: ignore[union-attr]
            "train/episodes_per_second": len(episodes) * self.trainer.world_size / (time.perf_counter() - began),
            "train/skipped_steps": float(self.skipped_steps),
        }
        self.log_dict(metrics, batch_size=len(episodes))

    def choose_meta_gradient(self) -> meta_gradient.MetaGradient:
        """How this epoch's truncations give a meta-gradient."""
        if not self.is_second_order:
            return self.first_order
        self.first_order = meta_gradient.first_order  # frees what a GPU has recorded
        if self.hessian_every is None:
            return meta_gradient.exact
        return partial(meta_gradient.linearized, hessian_every=self.hessian_every)

    def fastest_rule(self, episodes: Episodes) -> UpdateRule:
        """The rule as it is run: autograd sees through it, for the exact meta-gradient, only if it is left as it is."""
        rule = self.rule.bind(episodes.layout)
        if self.is_exact:
            return rule
        return fastest(rule, episodes.theta, self._unroll_in(self.current_epoch)[1], self.memory, self.compiled)

    def meta_step(self, objective: Tensor) -> Tensor:
        """Takes one step of Adam on φ and returns the meta-gradient's norm; skips the step where that is not finite."""
        optimizer = self.optimizers()
        optimizer.zero_grad()  # type: ignore[union-attr]
        self.manual_backward(objective)
        norm = torch.nn.utils.clip_grad_norm_(self.rule.parameters(), self.gradient_clip)
        if norm.isfinite():  # the same in every process, since DDP has averaged the gradients
            optimizer.step()  # type: ignore[union-attr]
        else:
            self.skipped_steps += 1
        return norm

    def validation_step(self, episodes: Episodes, batch_idx: int) -> Tensor:
        """Runs whole horizons without meta-gradients; returns the learning curves f(θ_0) .. f(θ_T), [N, T + 1]."""
        return self._evaluate(episodes, "val")

    def test_step(self, episodes: Episodes, batch_idx: int) -> Tensor:
        """As ``validation_step``, on fresh episodes."""
        return self._evaluate(episodes, "test")

    def predict_step(self, episodes: Episodes, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Runs whole horizons; returns the optimized θ_T, [N, P], and the learning curves, [N, T + 1]."""
        return optimize(self.rule, episodes, self.datamodule.horizon, self.compiled)

    def _evaluate(self, episodes: Episodes, stage: str) -> Tensor:
        curves = learning_curves(self.rule, episodes, self.datamodule.horizon, self.compiled)
        metrics = {
            f"{stage}/meta_loss": (curves[:, 1:] @ self.step_weights).mean(),
            f"{stage}/final_loss": final_loss(curves).mean(),
        }
        self.log_dict(metrics, batch_size=len(episodes), sync_dist=True)
        return curves
