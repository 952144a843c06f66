"""A fork's new baseline lives in one file, with a YAML that names it; the package is not touched."""

import csv
from pathlib import Path

import pytest
import torch
from command_line import TINY
from torch import Tensor

import lightning_l2l.evaluation.comparison
from lightning_l2l.cli import main
from lightning_l2l.rules import State, UpdateRule


class SignDescent(UpdateRule):
    """g = −α (1 + t / τ)^−1 sgn ∇: all that makes it tunable is its attribute ``learning_rate``."""

    def __init__(self, half_life: float = 50.0) -> None:
        super().__init__()
        self.learning_rate = 1.0
        self.half_life = half_life

    def init(self, theta: Tensor) -> State:
        return (0,)

    def update(self, grad: Tensor, state: State) -> tuple[Tensor, State]:
        (step,) = state
        return -self.learning_rate / (1 + step / self.half_life) * grad.sign(), (step + 1,)


CONFIG = """
comparison:
  baselines:
    - lightning_l2l.rules.SGD
    - {class_path: test_forking_baseline.SignDescent, init_args: {half_life: 3.0}}
    - lightning_l2l.rules.CosineAdam
"""


def test_a_new_baseline_is_tuned_raced_killed_and_resumed(monkeypatch):
    Path("baselines.yaml").write_text(CONFIG)
    flags = ["--config", "quadratic.yaml", *TINY, "--config", "baselines.yaml", "--data.episodes_per_batch=8"]
    main(["fit", *flags])
    run, names = lightning_l2l.evaluation.comparison.evaluate, []

    def killed(rule, *args):
        names.append(rule.label)
        if names == ["SGD", "SignDescent", "CosineAdam"]:
            raise KeyError("killed")
        return run(rule, *args)

    monkeypatch.setattr("lightning_l2l.evaluation.comparison.evaluate", killed)
    with pytest.raises(KeyError, match="killed"):
        main(["test", *flags, "--ckpt_path=best"])
    main(["test", *flags, "--ckpt_path=best"])
    assert names == ["SGD", "SignDescent", "CosineAdam", "CosineAdam"]
    with Path("runs/quadratic/version_0/results.csv").open() as file:
        rows = {row["rule"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["LSTM", "SGD", "SignDescent", "CosineAdam"]
    own = rows["SignDescent"]
    assert float(own["learning_rate"]) in torch.logspace(-4, 1, 21).tolist()
    assert float(own["last10"]) < 0.7 * float(own["initial"])  # which it does not reach at its own rate of 1
    assert rows["CosineAdam"]["tuned_with"].startswith("beta1=")
