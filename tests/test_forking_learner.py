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


class NoRace(LastLoss):
    """Returns no learning curves, as a learner from elsewhere may not."""

    monitor = "val/last"

    def validation_step(self, episodes: Episodes, batch_idx: int) -> None:
        super().validation_step(episodes, batch_idx)


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
    assert "lowest val/last against" in capsys.readouterr().out
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


def test_a_learner_without_learning_curves_is_not_raced(capsys):
    Path("0.yaml").write_text(LEARNER.replace("LastLoss", "NoRace"))
    Path("1.yaml").write_text(QUADRATICS)
    main(["fit", "--config", "0.yaml", "--config", "1.yaml", "--trainer.max_epochs=1"])
    assert Path("runs/fork/version_0/checkpoints/best.ckpt").is_file()
