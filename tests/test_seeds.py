"""One config on several meta-seeds, raced on the same episodes."""

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from command_line import TINY
from conftest import same, weights
from pytorch_lightning import Callback

from lightning_l2l.callbacks import Interrupt
from lightning_l2l.cli import main

RUNS = Path("runs, old/quadratic")  # a comma separates names in a list of flags
FLAGS = ["--config", "quadratic.yaml", *TINY, f"--trainer.logger.init_args.save_dir={RUNS.parent}"]


def seeds(*numbers: int, flags: tuple[str, ...] = ()) -> None:
    main(["seeds", "--seeds", *map(str, numbers), *FLAGS, *flags])


def rows(run: str) -> dict[str, dict[str, str]]:
    with (RUNS / run / "results.csv").open() as file:
        return {row["rule"]: row for row in csv.DictReader(file)}


def last(seed: int) -> Path:
    return RUNS / f"seed_{seed}" / "checkpoints" / "last.ckpt"


class StopInSeedOne(Callback):
    """Presses Ctrl-C in the second epoch of the second run, while a file says so."""

    def on_train_batch_start(self, trainer, *_):
        if Path("stop").exists() and trainer.current_epoch == 1 and trainer.log_dir.endswith("seed_1"):
            next(c for c in trainer.callbacks if isinstance(c, Interrupt)).requested = True


def test_seeds_train_and_race_on_the_same_episodes():
    seeds(0, 5)
    found = rows("seed_0")
    assert list(found) == ["LSTM seed 0", "LSTM seed 5", "SGD", "NAG", "RMSprop", "Adam"]
    assert len({row["initial"] for row in found.values()}) == 1
    config = yaml.safe_load((RUNS / "seed_5" / "config.yaml").read_text())
    assert (config["seed_everything"], config["data"]["init_args"]["seed"]) == (5, 5)
    main(["fit", *FLAGS, "--seed_everything=5", "--data.seed=5"])  # what it stands for
    assert same(weights(last(5)), weights(RUNS / "version_0" / "checkpoints" / "last.ckpt"))
    main(["test", *FLAGS, f"--ckpt_path={RUNS}/version_0/checkpoints/best.ckpt"])
    alone = rows("version_0")["LSTM"]
    assert all(found["LSTM seed 5"][name] == alone[name] for name in ("initial", "last10", "sum", "sum_half_width"))


def test_broken_off_seeds_go_on_and_finished_ones_are_left_alone(fails):
    callback = ("--trainer.callbacks+=test_seeds.StopInSeedOne",)
    Path("stop").touch()
    with pytest.raises(SystemExit) as stopped:
        seeds(0, 1, flags=callback)
    assert stopped.value.code != 0
    assert not (RUNS / "seed_0" / "results.csv").exists()
    before = last(0).stat().st_mtime_ns
    longer = (*callback, "--trainer.max_epochs=3")
    sentence = fails("seeds", "--seeds", "1", *FLAGS, *longer)  # whose learning rate would come down later
    assert f"{RUNS}/seed_1 cannot resume; to start anew, move it away: trainer.max_epochs is 3" in sentence
    Path("stop").unlink()
    seeds(0, 1, flags=callback)
    assert last(0).stat().st_mtime_ns == before
    assert list(rows("seed_0"))[:3] == ["LSTM seed 0", "LSTM seed 1", "SGD"]
    main(["fit", *FLAGS, "--seed_everything=1", "--data.seed=1"])
    assert same(weights(last(1)), weights(RUNS / "version_0" / "checkpoints" / "last.ckpt"))
    assert "trainer.max_epochs is 3, but the run began with 2" in fails("seeds", "--seeds", "1", *FLAGS, *longer)
    assert torch.load(last(1), weights_only=True)["epoch"] == 1


@pytest.mark.usefixtures("many_processes")
def test_ctrl_c_stops_all_of_it():
    command = [
        sys.executable,
        "-m",
        "lightning_l2l",
        "seeds",
        "--seeds",
        "0",
        "1",
        *FLAGS,
        "--trainer.max_epochs=10000",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 240
        while not last(0).exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Traceback" not in said
    assert not last(1).parent.exists()


def test_bad_flags_get_one_sentence(fails, capsys):
    assert "--seeds is 0 1 0, with one twice" in fails("seeds", "--seeds", "0", "1", "0", *FLAGS)
    assert "--seeds" in fails("seeds", *FLAGS)
    assert "invalid int value: 'x'" in fails("seeds", "--seeds", "x", *FLAGS)
    assert "unrol" in fails("seeds", "--seeds", "0", *FLAGS, "--model.unrol=5")
    assert "leave it out" in fails("seeds", "--seeds", "0", *FLAGS, "--ckpt_path", "last")
    assert "trainer.logger is False" in fails("seeds", "--seeds", "0", *FLAGS, "--trainer.logger=false")
    assert not RUNS.parent.exists()
    with pytest.raises(SystemExit) as stopped:
        main(["seeds", "--help"])
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Trains a rule on each meta-seed" in shown and "all flags of fit" in shown


def test_other_settings_than_a_runs_own_are_refused(fails):
    seeds(3)
    sentence = fails("seeds", "--seeds", "3", *FLAGS, "--model.learning_rate=0.5")
    assert f"{RUNS}/seed_3 cannot resume" in sentence and "model.init_args.learning_rate is 0.5" in sentence
    first = "--ckpt_path=pretrained:quadratic"
    assert "ckpt_path is pretrained:quadratic, but the run began with None" in fails(
        "seeds", "--seeds", "3", *FLAGS, first
    )


def test_seeds_may_begin_from_a_trained_rule():
    seeds(0)
    main(["export", f"--ckpt_path={last(0)}", "--output=first.safetensors"])
    still = (
        "--model.learning_rate=1e-9",
        "--model.final_learning_rate=1e-9",
        "--ckpt_path",
        "pretrained:first.safetensors",
    )
    seeds(1, 2, flags=still)
    for seed in (1, 2):
        assert all(
            torch.allclose(value, weights(last(0))[key], atol=1e-6) for key, value in weights(last(seed)).items()
        )


def test_rivals_of_the_config_race_as_well():
    seeds(0, 1, flags=("--comparison.rivals=[pretrained:quadratic]", "--comparison.baselines=[]"))
    assert len(rows("seed_0")) == 3 and {"LSTM seed 0", "LSTM seed 1"} < rows("seed_0").keys()
