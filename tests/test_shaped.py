"""Rules whose parameters have the optimizee's shapes, from the command line."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import skip, weights
from forks import QUADRATICS, train_race_kill_and_resume

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
TRANSFORMS = "{class_path: lightning_l2l.rules.GradientTransforms, init_args: {transform: %s}}"
CLASS = "{class_path: learn2learn.optim.MetaCurvatureTransform, init_args: {lr: 0.5}}"
BEST = "runs/fork/version_0/checkpoints/best.ckpt"
FLAGS = ["--config=0.yaml", "--config=1.yaml"]


def config(rule, meta_gradient="FirstOrder"):
    for number, text in enumerate((MODEL.format(rule=rule, meta_gradient=meta_gradient), QUADRATICS)):
        Path(f"{number}.yaml").write_text(text)


@pytest.mark.parametrize("meta_gradient", ["FirstOrder", "Exact"])
def test_it_is_trained_raced_resumed_and_exported(meta_gradient, fails):
    rows = train_race_kill_and_resume(MODEL.format(rule=RATES, meta_gradient=meta_gradient), QUADRATICS)
    initial = float(rows["learned start + PerCoordinateSGD"]["initial"])
    episodes = Quadratics(dimension=3).episodes("test", range(16))
    assert initial < 0.9 * episodes.loss(episodes.theta, 0).mean()
    main(["export", "--ckpt_path", BEST, "--output", "rule.safetensors"])
    curves = learning_curves(load_rule("rule.safetensors"), episodes, 20)
    assert curves[:, 0].mean().item() == pytest.approx(initial, rel=1e-3)
    main(["validate", *FLAGS, "--ckpt_path=pretrained:rule.safetensors", "--trainer.logger=false"])
    for path in ("pretrained:rule.safetensors", BEST):
        sentence = fails("validate", *FLAGS, "--data.dimension=4", f"--ckpt_path={path}")
        assert "each of 3 coordinates, but the optimizee has 4 parameters" in sentence


@pytest.mark.parametrize("transform", ["kronecker", CLASS], ids=["by name", "by class path"])
def test_a_transform_is_trained_and_exported(transform):
    if not find_spec("learn2learn"):
        skip("learn2learn is an extra: uv sync --extra learn2learn")
    config(TRANSFORMS % transform)
    main(["fit", *FLAGS, "--trainer.max_epochs=1"])
    main(["export", "--ckpt_path", BEST, "--output", "rule.safetensors"])
    for path in ("pretrained:rule.safetensors", BEST):
        main(["validate", *FLAGS, f"--ckpt_path={path}"])


@pytest.mark.usefixtures("many_processes")
def test_two_processes_learn_one_start():
    config(RATES)
    same = ["--trainer.precision=64-true", "--trainer.max_epochs=1", "--data.train_episodes=32"]
    one, two = (["fit", *FLAGS, *same, f"--trainer.logger.init_args.name={name}"] for name in ("one", "two"))
    main([*one, "--data.episodes_per_batch=8"])
    more = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.episodes_per_batch=4"]
    subprocess.run([sys.executable, "-m", "lightning_l2l", *two, *more], check=True, timeout=300)
    want, got = (weights(f"runs/{name}/version_0/checkpoints/last.ckpt") for name in ("one", "two"))
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, rtol=1e-9, atol=1e-12)


def test_a_rule_that_learns_nothing_is_refused(fails):
    config(RATES)
    sentence = fails("fit", *FLAGS, "--model.rule=lightning_l2l.rules.SGD")
    assert "model.rule is SGD, which has no parameters to learn" in sentence
