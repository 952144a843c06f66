"""Two processes on the CPU do what one does with both halves."""

import subprocess
import sys

import pytest
import torch
from command_line import LINEARIZED, TINY, results
from conftest import weights

from lightning_l2l.cli import main

EXACT = "{class_path: lightning_l2l.meta_gradients.Exact, init_args: {episode_clip: 0.5}}"
STAGGERED = f"{{class_path: lightning_l2l.meta_gradients.Staggered, init_args: {{meta_gradient: {EXACT}, batches: 2}}}}"
STAGES = f"--model.stages=[{{}}, {{meta_gradient: {STAGGERED}}}, {{meta_gradient: {LINEARIZED}}}]"  # an epoch each
ONE = ["--trainer.devices=1", "--data.episodes_per_batch=4"]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.episodes_per_batch=2"]


def command(name: str, run: str, *flags: str) -> list[str]:
    arguments = [name, "--config", "quadratic.yaml", *TINY, "--trainer.precision=64-true", "--trainer.max_epochs=3"]
    return [*arguments, STAGES, *flags, f"--trainer.logger.init_args.name={run}"]


def in_two_processes(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "lightning_l2l", *arguments], check=True, timeout=300)


@pytest.mark.usefixtures("many_processes")
def test_two_processes_do_what_one_does():
    """φ after a few meta-steps shows it: in float64, since Adam divides by |∇| and makes much of float32's rounding."""
    main(command("fit", "one", *ONE))
    in_two_processes(*command("fit", "two", *TWO))
    one, two = (weights(f"runs/{name}/version_0/checkpoints/last.ckpt") for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-9, atol=1e-12)
    main(command("test", "one", *ONE, "--ckpt_path=best"))
    in_two_processes(*command("test", "two", *TWO, "--ckpt_path=best"))
    rows = [results(f"runs/{name}/version_0") for name in ("one", "two")]
    for one_row, two_row in zip(*rows, strict=True):
        assert one_row["episodes"] == two_row["episodes"] == "8"
        assert float(two_row["sum"]) == pytest.approx(float(one_row["sum"]), rel=1e-5)
