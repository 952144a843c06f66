"""Fits that are killed at random moments and at random writes, and resumed: they end as if nothing had happened."""

import random
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command_line import HALF_EXACT, tiny

from reliability import kills
from reliability.forks import Forks
from reliability.outcomes import differences, newest, outcome

LONGER = ["--data.train_episodes=16", "--trainer.max_epochs=4", "--data.val_episodes=12"]
FITS = {
    "stages": tiny("fit", *LONGER, HALF_EXACT),
    "averaged": tiny("fit", *LONGER, "--trainer.callbacks+=lightning_l2l.callbacks.AveragedWeights"),
    "seldom validated": tiny("fit", *LONGER, "--trainer.check_val_every_n_epoch=3", "--comparison.baselines=[]"),
    "staggered": tiny("fit", "--data.train_episodes=8", "--trainer.max_time=null", config="own_workload.yaml"),
    "images": tiny("fit", "--data.val_episodes=8", config="mnist.yaml"),
}
SIGNALS = [[signal.SIGKILL], [signal.SIGKILL], [signal.SIGTERM], [signal.SIGINT], [signal.SIGINT, signal.SIGINT]]


@pytest.fixture(scope="module")
def unkilled(forks: Forks, tmp_path_factory):
    """What a fit leaves that nothing kills, the seconds it takes, and its changes of files."""
    known: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in known:
            folder = tmp_path_factory.mktemp("unkilled")
            ended = forks.run(FITS[name], folder, kills.count_writes)
            assert ended.status == 0, ended.output
            known[name] = outcome(folder), ended.figures["seconds"], (folder / "writes").stat().st_size
        return known[name]

    return get


def test_a_killed_fit_resumes_to_the_bit(seed, forks, unkilled, count, tmp_path):
    choices = random.Random(seed)
    name = choices.choice(list(FITS))
    expected, seconds, writes = unkilled(name)
    for _ in range(choices.randint(1, 3)):
        kind, kill = choose_kill(choices, seconds, writes)
        ended = forks.run(resumable(name, tmp_path), tmp_path, kill)
        if ended.status == 0:  # faster than the kill
            break
        count(kind)
        print(f"{name}: {kill}, status {ended.status}")
        if kind == "at a signal" and "SIGTERM" in str(kill):
            assert ended.status == 143, ended.output
    ended = forks.run(resumable(name, tmp_path), tmp_path)
    assert ended.status == 0, ended.output
    assert differences(outcome(tmp_path), expected) == []
    assert not list(newest(tmp_path).glob("checkpoints/.*"))  # a run killed before it had a checkpoint is left alone


def choose_kill(choices: random.Random, seconds: float, writes: int) -> tuple[str, partial[None]]:
    """One of the ways to kill, and what to call it."""
    if choices.random() < 0.4:
        size = choices.choice([None, choices.randint(0, 20_000)])
        return "at a write", partial(kills.at_write, choices.randint(1, writes), size)
    signals = choices.choice(SIGNALS)
    kind = "at a moment" if signals[0] == signal.SIGKILL else "at a signal"
    return kind, partial(kills.after, choices.uniform(0, seconds), *signals)


def resumable(name: str, folder: Path) -> list[str]:
    """The command line that goes on with what there is."""
    begun = any(folder.glob("runs/*/*/checkpoints/last.ckpt"))
    return [*FITS[name], *(["--ckpt_path=last"] if begun else [])]
