"""A fork's new learner lives in one file, with a YAML; the package is not touched."""

from pathlib import Path

import torch
from forks import QUADRATICS, checkpoint, train_race_kill_and_resume
from pytorch_lightning import LightningModule
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from lightning_l2l.cli import main
from lightning_l2l.episodes import Episodes
from lightning_l2l.rules import UpdateRule
from lightning_l2l.unroll import learning_curves, optimize, start, unroll


class LastLoss(LightningModule):
    """Learns by Lightning's automatic optimization, from the last loss of a few steps; it monitors a metric of its own.

    Args:
        rule: what is learned.
        steps: of a run in training.
    """

    monitor = "val/last"
    label = "few steps"

    def __init__(self, rule: UpdateRule, steps: int = 10) -> None:
        super().__init__()
        self.rule = rule
        self.steps = steps

    def training_step(self, episodes: Episodes, batch_idx: int) -> Tensor:
        _, trajectory = unroll(self.rule, episodes, start(self.rule, episodes), self.steps)
        loss = trajectory.losses[-1].mean()
        self.log("train/last", loss, batch_size=len(episodes))
        return loss

    def validation_step(self, episodes: Episodes, batch_idx: int) -> Tensor:
        curves = learning_curves(self.rule, episodes, self.trainer.datamodule.horizon)
        self.log("val/last", curves[:, -1].mean(), batch_size=len(episodes))
        return curves

    def test_step(self, episodes: Episodes, batch_idx: int) -> Tensor:
        return learning_curves(self.rule, episodes, self.trainer.datamodule.horizon)

    def predict_step(self, episodes: Episodes, batch_idx: int) -> tuple[Tensor, Tensor]:
        return optimize(self.rule, episodes, self.trainer.datamodule.horizon)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.05)


class WithCritic(LastLoss):
    """Has settings by names that the default learner has, too, and weights beside the rule's; it returns no curves."""

    def __init__(self, rule: UpdateRule, learning_rate: float = 0.5, unroll: int = 7, curriculum: float = 0.1) -> None:
        super().__init__(rule)
        self.settings = learning_rate, unroll, curriculum
        self.critic = torch.nn.Linear(2, 1)

    def training_step(self, episodes: Episodes, batch_idx: int) -> Tensor:
        return super().training_step(episodes, batch_idx) + self.critic.weight.square().sum()

    def validation_step(self, episodes: Episodes, batch_idx: int) -> Tensor:
        super().validation_step(episodes, batch_idx)
        return torch.zeros(len(episodes), 3)  # which are no learning curves


class NoMetric(LastLoss):
    """Forgets to say what it monitors."""

    monitor = "val/meta_loss"


LEARNER = """
model:
  class_path: test_forking_learner.LastLoss
  init_args:
    rule: {class_path: test_forking_rule.LearnedMomentum, init_args: {log_rate: -4.0}}
    steps: 8
"""


def test_a_new_learner(capsys, fails):
    rows = train_race_kill_and_resume(LEARNER, QUADRATICS)
    assert list(rows) == ["few steps", "SGD", "NAG", "RMSprop", "Adam"]
    assert float(rows["few steps"]["last10"]) < 0.5 * float(rows["few steps"]["initial"])
    assert "lowest val/last with" in capsys.readouterr().out
    kept = checkpoint(0)
    monitors = [state["monitor"] for key, state in kept["callbacks"].items() if "monitor" in state]
    assert "val/last" in monitors and "val/meta_loss" not in monitors
    assert kept["hyper_parameters"]["class_path"] == "test_forking_learner.LastLoss"
    events = EventAccumulator("runs/fork/version_0").Reload()
    assert {"hp/best_val_last", "val/last"} <= set(events.Tags()["scalars"])
    assert "val/curves" in events.Tags()["images"]
    flags = ["--config", "0.yaml", "--config", "1.yaml"]
    main(["predict", *flags, "--ckpt_path=best"])
    assert list(Path("runs/fork").glob("version_*/predictions/0000.npz"))
    sentence = fails("fit", *flags, "--model.steps=9", "--ckpt_path=last")
    assert "model.steps is 9, but the checkpoint was trained with 8" in sentence
    another = "model.class_path is lightning_l2l.learners.MetaLearner, but the checkpoint was trained with test_forking"
    Path("other.yaml").write_text("model: {rule: {class_path: test_forking_rule.LearnedMomentum}}")
    assert another in fails("test", "--config", "other.yaml", "--config", "1.yaml", "--ckpt_path=best")


def given(name: str, *settings: str) -> list[str]:
    rule = "{class_path: test_forking_rule.LearnedMomentum}"
    Path("0.yaml").write_text(f"model: {{class_path: test_forking_learner.{name}, init_args: {{rule: {rule}}}}}")
    Path("1.yaml").write_text(QUADRATICS)
    return ["--config", "0.yaml", "--config", "1.yaml", "--trainer.max_epochs=1", *settings]


def test_a_learner_has_its_own_defaults_and_weights():
    main(["fit", *given("WithCritic", "--model.curriculum=0.2")])
    settings = checkpoint(0)["hyper_parameters"]
    assert (settings["learning_rate"], settings["unroll"], settings["curriculum"]) == (0.5, 7, 0.2)
    Path("runs/fork/version_0/checkpoints/last.ckpt").rename("last.ckpt")
    main(["export", "--ckpt_path=last.ckpt", "--output=mine.safetensors"])
    flags = given("WithCritic", "--ckpt_path=pretrained:mine.safetensors", "--model.curriculum=0.2")
    main(["validate", *(flag for flag in flags if "max_epochs" not in flag)])


def test_a_learner_that_does_not_log_what_it_monitors_is_named(fails):
    sentence = fails("fit", *given("NoMetric"))
    assert "model is NoMetric, which logged" in sentence and "but not val/meta_loss" in sentence
