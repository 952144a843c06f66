"""Two processes on the CPU do what one does with both halves."""

import subprocess
import sys

import torch
from conftest import TINY, weights


def test_two_processes_give_the_meta_gradient_of_one():
    """φ after a few meta-steps shows it: in float64, since Adam divides by |∇| and makes much of float32's rounding."""
    for name, flags in {
        "one": ["--trainer.devices=1", "--data.episodes_per_batch=4"],
        "two": ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.episodes_per_batch=2"],
    }.items():
        command = [sys.executable, "-m", "lightning_l2l", "fit", "--config", "quadratic.yaml", *TINY, *flags]
        command += [f"--trainer.logger.init_args.name={name}", "--trainer.precision=64-true"]
        subprocess.run(command, check=True, timeout=300)
    one, two = (weights(f"runs/{name}/version_0/checkpoints/last.ckpt") for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-9, atol=1e-12)
    subprocess.run(
        [sys.executable, "-m", "lightning_l2l", "test", "--config", "quadratic.yaml", *TINY, "--ckpt_path=best"]
        + ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.logger.init_args.name=two"],
        check=True,
        timeout=300,
    )
