"""Tests of the package's reliability at random: of each kind as many as --runs says, each with a seed of its own.

``uv run pytest tests/reliability --runs 300`` kills 300 fits, and mutates 1,200 configs and as many files; it
takes two hours of one core. Without --runs there are a few of each. ``--first-seed`` chooses others.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from reliability.forks import Forks

FEW = 3  # runs of each kind, in two minutes of one core
CASES = {"kills": 1, "configs": 4, "files": 4, "numbers": 2}  # cases for each run
COUNTED = "reliability"  # what a test's report calls its figures


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runs", type=int, help="how many kills; four times as many configs and files are mutated")
    parser.addoption("--first-seed", type=int, help="seed of the first case of each kind")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives each case its seed, which its name shows."""
    if "seed" in metafunc.fixturenames:
        runs = metafunc.config.getoption("--runs", None) or FEW
        first = metafunc.config.getoption("--first-seed", None) or 0
        metafunc.parametrize("seed", range(first, first + runs * CASES[kind_of(metafunc.module.__name__)]))


@pytest.fixture(scope="session")
def forks() -> Forks:
    """The server of this process."""
    return Forks()


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Counts something for the line of figures."""
    return lambda what: request.node.user_properties.append((COUNTED, what))


def kind_of(module: str) -> str:
    return module.rpartition("test_")[2].removesuffix(".py")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line of figures for each kind, and how to repeat each failure alone."""
    figures: dict[str, Counter[str]] = {}
    repeats = []
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            path, _, name = report.nodeid.partition("::")
            if Path(path).parent.name != "reliability" or report.when != "call":
                continue
            counted = [what for key, what in report.user_properties if key == COUNTED]
            figures.setdefault(kind_of(path), Counter()).update([outcome, *counted])
            if outcome == "failed":
                seed = name.partition("[")[2].removesuffix("]")
                repeats.append(f"uv run pytest -n 0 '{report.nodeid}' --first-seed {seed}")
    for kind, counted in sorted(figures.items()):
        passed, failed = counted.pop("passed", 0), counted.pop("failed", 0)
        parts = ", ".join(f"{number} {what}" for what, number in sorted(counted.items()))
        terminalreporter.write_line(f"{kind}: {passed + failed} ({parts}), {passed} as they must be, {failed} failed")
    for line in repeats:
        terminalreporter.write_line(line)
