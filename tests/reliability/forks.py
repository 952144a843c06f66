"""Runs command lines in forks of a process that has imported the package, which costs seconds each time otherwise."""

import json
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

MEMORY = 4 << 30  # bytes that a fork may take
LONGEST = 300  # characters of an error's sentence
TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Ended:
    """How a command line ended.

    Attributes:
        status: its exit status; below 0 the number of the signal that killed it.
        output: what it printed.
        hung: whether it went on until its time was up.
        figures: what it told of itself, if it was not killed: the seconds of CPU that it took.
    """

    status: int
    output: str
    hung: bool
    figures: dict[str, float]

    @property
    def sentence(self) -> str:
        """What it says is wrong with its input; empty if nothing is."""
        lines = [line for line in self.output.splitlines() if line.startswith("error: ")]
        return lines[0] if len(lines) == 1 else ""

    @property
    def fault(self) -> str:
        """What is wrong with an end that is neither a success nor one sentence; empty for a good one."""
        if self.hung:
            return "it hangs"
        if self.status < 0:
            return f"it is killed by {signal.Signals(-self.status).name}"
        if "Traceback (most recent call last)" in self.output:
            lines = self.output.strip().splitlines()
            places = [line.strip() for line in lines if line.lstrip().startswith("File ")]
            return f"traceback: {lines[-1]} ({places[-1] if places else 'nowhere'})"
        if self.status not in (0, 2) or (self.status == 2 and not self.sentence):
            return f"status {self.status} without a sentence"
        if len(self.sentence) > LONGEST:
            return f"a sentence of {len(self.sentence)} characters: {self.sentence}"
        return ""


class Forks:
    """A server of forks; it starts at the first run, and ends with the process that made it."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["reliability.preloaded"])
        self.path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])

    def run(
        self,
        command: Sequence[str],
        folder: Path,
        *before: Callable[[], None],
        timeout: float = 120.0,
        **environment: str,
    ) -> Ended:
        """Runs a command line.

        Args:
            command: its arguments.
            folder: where it runs.
            before: what its process calls first.
            timeout: seconds, after which SIGTERM must end it, and SIGKILL does.
            environment: variables for it.
        """
        target = (list(command), str(folder.absolute()), before, environment)
        process = self.context.Process(target=_main, args=target)
        with pytest.MonkeyPatch.context() as server:  # which the first start brings up
            server.setenv("PYTHONPATH", self.path)
            server.setenv("CUDA_VISIBLE_DEVICES", "")  # since CUDA does not run in a fork
            process.start()
        process.join(timeout)
        hung = process.is_alive() and not _stops(process)
        output = (folder / "output").read_text(errors="replace") if (folder / "output").exists() else ""
        figures = folder / "figures"
        ended = Ended(process.exitcode or 0, output, hung, json.loads(figures.read_text()) if figures.exists() else {})
        process.close()
        return ended


def _stops(process: BaseProcess) -> bool:
    """Whether a process that is asked to stop, and then to stop at once, does so."""
    assert process.pid
    for number, patience in ((signal.SIGTERM, 5), (signal.SIGTERM, 15), (signal.SIGKILL, 60)):
        os.kill(process.pid, number)
        process.join(patience)
        if not process.is_alive():
            return number != signal.SIGKILL
    return False


def _main(command: list[str], folder: str, before: Sequence[Callable[[], None]], environment: dict[str, str]) -> None:
    """What a fork does."""
    os.chdir(folder)
    Path("figures").unlink(missing_ok=True)
    with open("output", "wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.update(environment)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for prepare in before:
        prepare()
    from lightning_l2l.cli import main

    began = time.process_time()
    try:
        main(command)
    finally:
        Path("figures").write_text(json.dumps({"seconds": time.process_time() - began}))
