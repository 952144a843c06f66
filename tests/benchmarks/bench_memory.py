"""Peak memory of meta-training a 20-unit LSTM on a million coordinates."""

import subprocess
import sys

import pytest

PROGRAM = r"""
import re, sys
sys.path.insert(0, {folder!r})
import torch
from benchmarks.workloads import Bare, classification, lstm
torch.set_num_threads(2)
def peak():
    return int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) * 1024 / 1e9
rule, unroll = lstm(), {unroll}
engine = Bare(classification(1, unroll, 1258), rule, unroll)
open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
before = peak()
engine.train()
print(peak() - before)
"""


@pytest.mark.parametrize(("unroll", "must", "stretch"), [(20, 1.5, 1.0), (200, 2.5, 1.9)])
def test_peak_memory(benchmark, request, unroll, must, stretch):
    """Gigabytes above what the process holds before its first meta-batch; on Linux."""
    program = PROGRAM.format(folder=str(request.path.parents[1]), unroll=unroll)

    def run() -> float:
        result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        return float(result.stdout.split()[-1])

    gigabytes = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info.update(gigabytes=gigabytes, must=must, stretch=stretch)
