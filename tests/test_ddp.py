"""Two processes on the CPU do what one does with both halves."""

import subprocess
import sys

import pytest
import torch
from command_line import EXACT, LINEARIZED, TINY, results
from conftest import weights

ONE = ["--trainer.devices=1", "--data.episodes_per_batch=4"]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.episodes_per_batch=2"]


def run(command: str, name: str, *flags: str) -> None:
    arguments = [command, "--config", "quadratic.yaml", *TINY, "--trainer.precision=64-true", *flags]
    arguments += [f"--trainer.logger.init_args.name={name}"]
    subprocess.run([sys.executable, "-m", "lightning_l2l", *arguments], check=True, timeout=300)


@pytest.mark.parametrize("meta_gradient", [EXACT, LINEARIZED], ids=["exact", "linearized"])
def test_two_processes_give_the_meta_gradient_of_one(meta_gradient):
    """φ after a few meta-steps shows it: in float64, since Adam divides by |∇| and makes much of float32's rounding."""
    stages = f"--model.stages=[{{}}, {{meta_gradient: {meta_gradient}}}]"
    run("fit", "one", *ONE, stages)
    run("fit", "two", *TWO, stages)
    one, two = (weights(f"runs/{name}/version_0/checkpoints/last.ckpt") for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-9, atol=1e-12)
    run("test", "one", *ONE, "--ckpt_path=best")
    run("test", "two", *TWO, "--ckpt_path=best")
    rows = [results(f"runs/{name}/version_0") for name in ("one", "two")]
    for one_row, two_row in zip(*rows, strict=True):
        assert one_row["episodes"] == two_row["episodes"] == "8"
        assert float(two_row["sum"]) == pytest.approx(float(one_row["sum"]), rel=1e-5)
