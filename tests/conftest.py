"""What several test files share.

The process that hands out the tests reads this file, too. It has no use for PyTorch and Lightning, which take most of
a gigabyte, so they are imported inside of functions.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

os.environ["OMP_NUM_THREADS"] = "1"  # as many tests run at a time as there are cores
if not Path("/dev/nvidiactl").exists():  # where there is no GPU, kernels for it are interpreted
    os.environ["TRITON_INTERPRET"] = "1"
SHARED = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_finish() -> None:
    """Leaves what was imported out of garbage collections, which take a third of a second each otherwise."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Lets the interpreter clear what was left out, which compiled modules complain of otherwise."""
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="module")
def small_process() -> Iterator[None]:
    """Gives back the memory that a file's tests took: cycles, buffers kept for the next run, and freed pages."""
    yield
    from lightning_l2l.rules.lstm.tape import _free_buffers

    _free_buffers.clear()
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # in glibc
        libc.malloc_trim(0)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Every test runs in a folder of its own, with the same random numbers."""
    import torch

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def one_fit(tmp_path_factory) -> Path:
    """The folder of one run of fit, to be copied."""
    from command_line import fit

    folder = tmp_path_factory.mktemp("fit")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit()
    return folder / "runs"


@pytest.fixture
def fitted(empty_folder, one_fit) -> None:
    """What ``fit()`` leaves behind, for a test that does not go on training from it: the run's paths are another's."""
    shutil.copytree(one_fit, "runs")


@pytest.fixture
def fails(capsys):
    """Runs a command line that must end with one sentence, and status 2 unless told; returns it and what to copy."""
    from lightning_l2l.cli import main

    def run(*arguments: str, status: int = 2) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments))
        assert stopped.value.code == status
        lines = capsys.readouterr().err.strip().splitlines()
        sentences = [line for line in lines if line.startswith("error: ")]
        assert len(sentences) == 1 and len(sentences[0]) < 300
        assert "Traceback" not in "\n".join(lines)
        to_copy = [line for line in lines if line.startswith("  --")]
        return "\n".join(sentences + to_copy)

    return run


@pytest.fixture(params=["kernel", "eager"])
def way(request, monkeypatch):
    """Both ways of running the LSTM."""
    import torch
    from own_loop import lstm

    from lightning_l2l.rules.lstm.kernel import CompiledLSTM

    if request.param == "eager":
        monkeypatch.setattr(CompiledLSTM, "of", classmethod(lambda *_: None))
    elif lstm().compiled(torch.zeros(1), 1) is None:
        skip("there is no C++ compiler")
    return request.param


@pytest.fixture
def real_mnist(tmp_path) -> Path:
    """A folder that holds the four files of MNIST."""
    raw = SHARED / "MNIST" / "raw"
    if not raw.is_dir():
        skip("the real MNIST is not at ../shared/data, and tests do not download")
    shutil.copytree(raw, tmp_path / "datasets" / "MNIST" / "raw")
    for file in (tmp_path / "datasets").rglob("*"):
        os.chmod(file, 0o755)
    return tmp_path / "datasets"


@pytest.fixture
def many_processes(tmp_path_factory) -> Iterator[None]:
    """Tests that start processes of the package do so one after another: each process takes most of a gigabyte."""
    with (tmp_path_factory.getbasetemp().parent / "many_processes").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def skip(reason: str) -> None:
    """Skips a test that needs what is not here; in CI, where all must be, it fails instead."""
    if os.environ.get("CI"):
        pytest.fail(f"not skipped in CI: {reason}")
    pytest.skip(reason)


def weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The meta-parameters that a checkpoint holds."""
    import torch

    return torch.load(path, weights_only=True)["state_dict"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of meta-parameters are equal bit for bit."""
    import torch

    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
