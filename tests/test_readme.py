"""The README's commands do what it says, here with small settings."""

import re
import shlex
from pathlib import Path

import pytest
from command_line import TINY, TINY_ART, TINY_MNIST
from PIL import Image

from lightning_l2l.cli import main

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```bash\n(.*?)```", README.read_text(), flags=re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


def test_the_readme_gives_the_two_commands():
    assert "pip install uv && uv run python -m lightning_l2l fit --config mnist.yaml" in COMMANDS
    assert "uv run pytest" in COMMANDS


def test_the_readme_runs_benchmarks_one_at_a_time():
    """For pytest-benchmark measures nothing in workers."""
    assert "`uv run pytest -n 0 tests/benchmarks/bench_*.py`" in README.read_text()


def test_the_readmes_commands_run_in_their_order():
    ran = 0
    Image.new("RGB", (20, 16), "red").save("MY_PICTURE.jpg")
    for command in COMMANDS:
        _, found, arguments = command.partition("uv run python -m lightning_l2l ")
        if not found:
            continue
        flags = TINY_MNIST if "mnist" in command else TINY_ART if "neural_art" in command else TINY
        if "--print_config" in command:
            with pytest.raises(SystemExit) as stopped:
                main(shlex.split(arguments))
            assert stopped.value.code == 0
        else:
            if "pretrained:" in command:  # a rule of the size that it has
                flags = [flag for flag in flags if "rule" not in flag]
            more = ["--trainer.max_epochs=3"] if "last" in command else []
            main([*shlex.split(arguments), *flags, *more])
        ran += 1
    assert ran == 9
    for version in (0, 1):  # of the package's own rule, and of the one that fit learned
        assert Path(f"runs/mnist/version_{version}/results.csv").is_file()
        assert Path(f"runs/neural_art/version_{version}/predictions/MY_PICTURE.png").is_file()


def test_the_readmes_python_runs():
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
