"""Rules whose parameters have the optimizee's size, from the command line: trained, raced, resumed and exported."""

from pathlib import Path

import pytest
import torch
from forks import QUADRATICS, checkpoint, train_race_kill_and_resume

from lightning_l2l.cli import main
from lightning_l2l.optimizees import Quadratics
from lightning_l2l.rules.files import load_rule
from lightning_l2l.unroll import learning_curves

MODEL = """
model:
  rule: {{class_path: lightning_l2l.rules.LearnedStart, init_args: {{rule: {rule}}}}}
  unroll: 20
  learning_rate: 0.05
  stages: [{{meta_gradient: {{class_path: lightning_l2l.meta_gradients.{meta_gradient}}}}}]
"""
RATES = "{class_path: lightning_l2l.rules.PerCoordinateSGD, init_args: {learning_rate: 0.01}}"


@pytest.mark.parametrize("meta_gradient", ["FirstOrder", "Exact"])
def test_it_is_trained_raced_resumed_and_exported(meta_gradient, fails):
    row = train_race_kill_and_resume(MODEL.format(rule=RATES, meta_gradient=meta_gradient), QUADRATICS)
    row = row["learned start + PerCoordinateSGD"]
    plain = Quadratics(dimension=3).episodes("test", range(16))
    assert float(row["initial"]) < 0.9 * plain.loss(plain.theta, 0).mean()
    main(["export", "--ckpt_path", "runs/fork/version_0/checkpoints/best.ckpt", "--output", "rule.safetensors"])
    rule = load_rule("rule.safetensors")
    curves = learning_curves(rule, Quadratics(dimension=3).episodes("test", range(16)), 20)
    assert curves[:, 0].mean().item() == pytest.approx(float(row["initial"]), rel=1e-3)
    flags = ["--config=0.yaml", "--config=1.yaml"]
    main(["test", *flags, "--ckpt_path=pretrained:rule.safetensors", "--trainer.logger.init_args.name=again"])
    for path in ("pretrained:rule.safetensors", "runs/fork/version_0/checkpoints/best.ckpt"):
        sentence = fails("validate", *flags, "--data.dimension=4", f"--ckpt_path={path}")
        assert "each of 3 coordinates, but the optimizee has 4 parameters" in sentence
