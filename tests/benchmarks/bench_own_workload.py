"""A rule fitted to one workload, beside the rule that the fit began with, and Adam tuned for the same CPU seconds.

    uv run pytest -n 0 -s tests/benchmarks/bench_own_workload.py

All three train on the same examples, from the same five starts, which neither the fit nor the tuning has seen. Held-out
losses are on examples that nothing trains on.
"""

import itertools
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from lightning_l2l.cli import main
from lightning_l2l.evaluation.suite.candidates import Candidate, learned
from lightning_l2l.evaluation.suite.problems import read_problems
from lightning_l2l.evaluation.suite.runs import Runs
from lightning_l2l.evaluation.suite.scores import bounded
from lightning_l2l.rules.files import load_rule, read_rule

RULE = os.environ.get("OWN_WORKLOAD_RULE", "everyday")  # a shipped rule, or a file's path
SECONDS = int(os.environ.get("OWN_WORKLOAD_SECONDS", 600))  # of the fit
STEPS = int(os.environ.get("OWN_WORKLOAD_STEPS", 1000))  # of a training run
DATA = Path(os.environ.get("OWN_WORKLOAD_DATA", Path(__file__).parents[2] / "data"))
SEEDS = 5
WORKLOADS = yaml.safe_load(Path(__file__).with_name("own_workloads.yaml").read_text())
RATES = sorted(np.geomspace(1e-4, 0.32, 15), key=lambda rate: abs(math.log(rate / 5e-3)))  # the likeliest first


@pytest.mark.parametrize("name", WORKLOADS)
def test_own_workload(name):
    """Prints the geometric mean of the ratios of losses after the last step."""
    settings = WORKLOADS[name]
    source = settings["init_args"]["source"]
    if "name" in source.get("init_args", {}):
        source["init_args"]["root"] = str(DATA)
    began = time.process_time()
    rule = fitted(settings)
    seconds = time.process_time() - began
    runs = Runs(read_problems({name: settings})[0], [STEPS])
    adam = tuned_adam(runs, seconds)
    own, begun = learned(rule, "own")[0], learned(load_rule(RULE), "everyday")[0]
    losses = {one.name: last_losses(runs, one) for one in (own, begun, adam)}
    print(f"\n{name}: {seconds:.0f} CPU seconds each; losses after {STEPS} steps, training and held out")
    for other, found in losses.items():
        ratios = np.exp(np.log(losses["own"] / found).mean(0))
        print(f"{other:24}", *(f"{loss:10.4g}" for loss in found.mean(0)), "  own / it", *(f"{r:6.3f}" for r in ratios))


def fitted(settings: dict) -> object:
    """What a user's commands make of the rule."""
    Path("mine.yaml").write_text(yaml.safe_dump({"data": settings}))
    given = [f"--model.rule={json.dumps(read_rule(RULE)[0])}", f"--ckpt_path=pretrained:{RULE}"]
    limit = f"--trainer.max_time=00:{SECONDS // 3600:02}:{SECONDS // 60 % 60:02}:{SECONDS % 60:02}"
    steps = [f"--data.horizon={STEPS}", "--trainer.accelerator=cpu"]
    main(["fit", "--config", "own_workload.yaml", "--config", "mine.yaml", *given, limit, *steps])
    checkpoint = "runs/own_workload/version_0/checkpoints/best.ckpt"
    main(["export", "--ckpt_path", checkpoint, "--output", "mine.safetensors"])
    return load_rule("mine.safetensors")


def tuned_adam(runs: Runs, seconds: float) -> Candidate:
    """Adam with cosine decay: tries all rates on one start, the better half on another, and so on, while time is left.

    Args:
        runs: those on the workload.
        seconds: of CPU time.
    """
    began = time.process_time()
    adam = Candidate("Adam", "torch.optim.Adam", cosine=True)
    left, means = RATES, {}
    for seed in itertools.count():
        found: dict[float, float] = {}
        for rate in left:
            if time.process_time() - began < seconds:
                record = runs.record(adam.with_rate(rate), seed, STEPS, "tune").numpy()
                found[rate] = float(np.log(bounded(record[-1, 1], record[0, 1])))
        if seed and len(found) < len(left):  # the time is up
            break
        means = {rate: (seed * means.get(rate, 0.0) + loss) / (seed + 1) for rate, loss in found.items()}
        left = sorted(found, key=means.__getitem__)[: max(3, -(-len(found) // 2))]
    best = adam.with_rate(left[0])
    return Candidate(f"Adam {left[0]:.2g} × cosine", best.class_path, best.settings, cosine=True)


def last_losses(runs: Runs, one: Candidate) -> np.ndarray:
    """Training and held-out losses after the last step of test runs, [SEEDS, 2]."""
    return np.stack([runs.record(one, seed, STEPS).numpy()[-1, [1, 3]] for seed in range(SEEDS)])
