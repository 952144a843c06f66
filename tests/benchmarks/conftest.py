"""What benchmarks share: threads, the machine's rate, and the table at the end."""

import time

import pytest
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

COLUMNS = (
    "seconds",
    "gigabytes",
    "bytes a coordinate",
    "reference",
    "ratio",
    "must",
    "stretch",
    "floor",
    "times the floor",
    "second order / s",
    "forward / s",
)


@pytest.fixture(autouse=True)
def restore_threads():
    """Leaves torch's threads as they were."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def operations_per_second() -> float:
    """What one core does in torch's own product of large matrices, in multiplications and additions a second."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    a, seconds = torch.randn(1024, 1024), []
    for _ in range(10):
        began = time.process_time()  # of one thread, and so what it would take alone
        a @ a
        seconds.append(time.process_time() - began)
    torch.set_num_threads(before)
    return 2 * 1024**3 / min(seconds)


@pytest.fixture
def against(benchmark):
    """Times a function, and another one alternately with it; keeps both medians and their ratio."""

    def run(ours, reference, timer, units: int = 1, rounds: int = 5, floor: float | None = None, **targets: float):
        seconds: list[float] = []

        def time_reference() -> None:
            began = timer()
            reference()
            seconds.append(timer() - began)

        ours()
        reference()
        benchmark._timer = timer
        benchmark.pedantic(ours, setup=time_reference, rounds=rounds, iterations=1)
        own = benchmark.stats.stats.median / units
        other = sorted(seconds)[len(seconds) // 2] / units
        benchmark.extra_info.update(seconds=own, reference=other, ratio=own / other, **targets)
        if floor:
            benchmark.extra_info.update({"floor": floor, "times the floor": own / floor})

    return run


def pytest_terminal_summary(terminalreporter, config):
    """Prints the table."""
    session = getattr(config, "_benchmarksession", None)
    if session is None or not session.benchmarks:
        return
    table = Table(title="Each number beside what it is compared with (lower is better)")
    table.add_column("benchmark")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for bench in session.benchmarks:
        numbers = [bench.extra_info.get(column) for column in COLUMNS]
        table.add_row(escape(bench.name), *("" if number is None else f"{number:.3g}" for number in numbers))
    Console(width=200).print(table)
