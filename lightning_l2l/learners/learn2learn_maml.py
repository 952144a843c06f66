"""learn2learn's MAML as a learner, to be raced against."""

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from lightning_l2l.errors import InvalidInputError, require_positive
from lightning_l2l.extras import learn2learn
from lightning_l2l.learners.base import log_counted
from lightning_l2l.learners.cosine_schedule import cosine_schedule
from lightning_l2l.optimizees import EpisodeDataModule, FewShot
from lightning_l2l.optimizees.few_shot import FewShotEpisodes
from lightning_l2l.optimizees.networks.conv4 import Conv4


class Learn2LearnMAML(LightningModule):
    """Trains learn2learn's own ``LightningMAML`` on the tasks of a FewShot, one after the other.

    It is the reference for ``LearnedStart`` with ``SGD``: the same tasks, inner steps of the same size, and Adam with
    the same decay of its rate. It needs learn2learn: ``uv sync --extra learn2learn``.

    Args:
        network: what is adapted to each task, the same as data.network; null is ``Conv4``.
        inner_learning_rate: of the steps of SGD on a task.
        learning_rate: of Adam on the network's start.
        final_learning_rate: of Adam at the end, approached along half a cosine over the epochs; null keeps it constant.
    """

    label = "learn2learn's MAML"

    def __init__(
        self,
        network: nn.Module | None = None,
        inner_learning_rate: float = 0.4,
        learning_rate: float = 0.001,
        final_learning_rate: float | None = None,
    ) -> None:
        super().__init__()
        require_positive("model.inner_learning_rate", inner_learning_rate)
        require_positive("model.learning_rate", learning_rate)
        final_learning_rate = learning_rate if final_learning_rate is None else final_learning_rate
        require_positive("model.final_learning_rate", final_learning_rate)
        self.end = final_learning_rate / learning_rate
        algorithms = learn2learn("model.class_path Learn2LearnMAML").algorithms
        self.losses = RecordedLosses()
        self.maml = algorithms.LightningMAML(
            network or Conv4(), self.losses, adaptation_lr=inner_learning_rate, lr=learning_rate
        )

    def check(self, datamodule: EpisodeDataModule) -> None:
        """Refuses data without tasks, or with tasks for another network.

        Raises:
            InvalidInputError: names the setting.
        """
        changed = datamodule.random_scaling or datamodule.relative_loss or datamodule.companion
        if not isinstance(datamodule, FewShot) or changed:
            raise InvalidInputError(
                f"data is {type(datamodule).__name__}, but learn2learn's MAML learns from a FewShot without "
                "random_scaling, relative_loss and companion: give one."
            )
        size = sum(p.numel() for p in self.maml.model.module.parameters())
        if size != (given := datamodule.episodes("val", [0]).theta.shape[1]):
            raise InvalidInputError(
                f"model.network has {size:,} parameters, but data.network has {given:,}: give the same network."
            )

    def training_step(self, episodes: FewShotEpisodes, batch_idx: int) -> Tensor:
        """The mean query loss of the tasks, for Lightning's automatic optimization."""
        losses = torch.stack([self._adapted(one)[0] for one in tasks_of(episodes)])
        self.log("train/meta_loss", losses.mean(), batch_size=len(episodes))
        return losses.mean()

    def validation_step(self, episodes: FewShotEpisodes, batch_idx: int) -> dict[str, Tensor]:
        """Runs each task; returns curves, f(θ_0) .. f(θ_T), [N, T + 1], and the accuracy at θ_T, [N]."""
        return self._evaluate(episodes, "val", batch_idx)

    def test_step(self, episodes: FewShotEpisodes, batch_idx: int) -> dict[str, Tensor]:
        """As ``validation_step``, on fresh tasks."""
        return self._evaluate(episodes, "test", batch_idx)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """LightningMAML's own Adam, its learning rate decayed once a meta-batch."""
        (optimizer,), _ = self.maml.configure_optimizers()
        schedule = cosine_schedule(optimizer, self.trainer, self.end)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _evaluate(self, episodes: FewShotEpisodes, stage: str, batch_idx: int) -> dict[str, Tensor]:
        curves, accuracies = [], []
        for one in tasks_of(episodes):
            accuracies.append(self._adapted(one)[1])
            curves.append(torch.stack(self.losses.values))
        outcomes = {"curves": torch.stack(curves), "accuracy": torch.stack(accuracies)}
        metrics = {f"{stage}/meta_loss": outcomes["curves"][:, -1], f"{stage}/accuracy": outcomes["accuracy"]}
        log_counted(self, metrics, episodes, batch_idx)
        return outcomes

    def _adapted(self, task: FewShotEpisodes) -> tuple[Tensor, Tensor]:
        """The query loss and the accuracy after the steps on one task."""
        self.losses.values = []
        self.maml.adaptation_steps = task.horizon
        _, ways, images = task.indices.shape
        inputs, labels = task.every_image()
        return self.maml.meta_learn((inputs[0], labels[0]), 0, ways, task.shots, images - task.shots)


class RecordedLosses(nn.CrossEntropyLoss):
    """Cross-entropy that remembers its values: those of a task's support set at each step, then the query set's."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = super().forward(logits, labels)
        self.values.append(loss.detach())
        return loss


def tasks_of(episodes: FewShotEpisodes) -> list[FewShotEpisodes]:
    """Each task alone."""
    apart = zip(*(tensor.split(1) for tensor in episodes.tensor_fields().values()), strict=True)
    return [episodes.with_tensors(dict(zip(episodes.tensor_fields(), one, strict=True))) for one in apart]
