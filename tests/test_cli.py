"""The commands as a user meets them, and bad settings."""

import shlex
import shutil

import pytest
import torch
from command_line import LINEARIZED, RUN, fit, results, tiny
from conftest import same, weights

from lightning_l2l.cli import main


def test_help_reads_the_docstrings(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "K, steps between two meta-steps" in text
    assert "or pretrained:NAME, a rule of this package" in text and '"hpc"' not in text


def test_fit_test_and_validate(capsys):
    fit()
    command = capsys.readouterr().out.strip().splitlines()[-1]
    assert command.endswith(f"--ckpt_path {RUN}/checkpoints/best.ckpt")
    main(shlex.split(command.partition("-m lightning_l2l ")[2]))
    assert "SGD" in capsys.readouterr().out
    rows = results()
    assert [row["rule"] for row in rows] == ["LSTM", "SGD", "NAG", "RMSprop", "Adam"]
    assert {(row["experiment"], row["variant"], row["episodes"], row["horizon"]) for row in rows} == {
        ("quadratic", "uniform", "8", "10")
    }
    assert {row["at_20"] for row in rows} == {""}
    assert all((RUN / name).is_file() for name in ("curves.npz", "curves.png", "config.yaml", "test.yaml"))
    main(tiny("validate", "--ckpt_path", f"{RUN}/checkpoints/last.ckpt"))
    assert "val/meta_loss" in capsys.readouterr().out


def test_a_run_needs_no_progress_bar(capsys):
    fit("--trainer.enable_progress_bar=false")
    assert "meta_loss" not in capsys.readouterr().err
    assert (RUN / "checkpoints" / "best.ckpt").is_file()


def test_the_same_seed_gives_the_same_run_bit_for_bit():
    for _ in range(2):
        fit(config="mnist.yaml")
    fit("--seed_everything=1", config="mnist.yaml")
    first, second, other = (weights(f"runs/mnist/version_{i}/checkpoints/last.ckpt") for i in range(3))
    assert same(first, second)
    assert not same(first, other)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precision_is_the_trainers(precision):
    fit(f"--trainer.precision={precision}")
    dtype = torch.float64 if precision == "64-true" else torch.float32
    assert {tensor.dtype for tensor in weights(RUN / "checkpoints" / "last.ckpt").values()} == {dtype}


def test_every_way_of_running_the_rule_learns_the_same(monkeypatch):
    """In float64, for which the kernel steps aside: Adam makes much of float32's rounding."""
    ways = {"kernel": ("1", "4"), "eager": ("0", "4"), "replayed": ("0", "0")}
    for name, (compiled, memory) in ways.items():
        monkeypatch.setenv("LIGHTNING_L2L_COMPILED", compiled)
        monkeypatch.setenv("LIGHTNING_L2L_MEMORY", memory)
        fit("--trainer.precision=64-true", f"--trainer.logger.init_args.name={name}")
    learned = [weights(f"runs/{name}/version_0/checkpoints/last.ckpt") for name in ways]
    for other in learned[1:]:
        for key in other:
            torch.testing.assert_close(other[key], learned[0][key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--data.horizon=12"], ["data.horizon is 12", "model.unroll=5"]),
        (["--data.horizon=0"], ["data.horizon is 0", "positive"]),
        (["--model.unroll=-5"], ["model.unroll is -5", "positive"]),
        (["--model.learning_rate=0"], ["model.learning_rate is 0", "positive"]),
        (["--model.rule.init_args.hidden_size=0"], ["hidden_size is 0", "positive"]),
        (["--data.train_episodes=7"], ["data.train_episodes is 7", "multiple"]),
        (["--comparison.rates_per_decade=0"], ["comparison.rates_per_decade is 0"]),
        (["--model.stages=[{horizon: 5}, {horizon: 7}]"], ["model.stages[1].horizon is 7", "model.unroll=5"]),
        (["--model.stages=[{horizon: 15}]"], ["model.stages[0].horizon is 15", "data.horizon is 10"]),
        (["--model.stages=[{horizon: [10, 5]}]"], ["model.stages[0].horizon is 5", "the smaller one first"]),
        (["--model.stages=[{share: 0}]"], ["model.stages[0].share is 0"]),
        (["--model.stages=[]"], ["model.stages is []"]),
        ([f"--model.stages=[{{meta_gradient: {LINEARIZED.replace('every: 2', 'every: 0')}}}]"], ["hessian_every is 0"]),
        (["--model.stages=[{unroll: 4}]"], ["data.horizon is 10", "model.stages[0].unroll=4"]),
        (["--model.loss_weights=[1,2]"], ["model.loss_weights has 2", "data.horizon is 10"]),
        (["--model.unrol=5"], ["unrol"]),
        (["--data.distribution=cauchy"], ["distribution", "uniform", "gaussian"]),
        (["--model.unroll=many"], ["unroll", "many"]),
        (["--trainer.precision=16-true"], ["trainer.precision is 16-true", "bf16-mixed"]),
        (["--trainer.max_epochs=-1"], ["trainer.max_epochs is -1"]),
        (["--data.seed=-1"], ["data.seed is -1"]),
        (["--trainer.devices=0"], ["devices"]),
        (["--ckpt_path=nowhere.ckpt"], ["--ckpt_path is nowhere.ckpt", "no such file"]),
        (["--ckpt_path=last"], ["--ckpt_path is last", "run fit first"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_bad_settings_get_one_sentence(flags, names, fails):
    sentence = fails(*tiny("fit", *flags))
    assert all(name in sentence for name in names)


def test_test_needs_a_checkpoint(fails):
    assert "--ckpt_path is missing" in fails(*tiny("test"))


def test_nothing_is_lost_by_a_second_run(fitted):
    before = weights(RUN / "checkpoints" / "last.ckpt")
    fit("--seed_everything=3")
    assert same(weights(RUN / "checkpoints" / "last.ckpt"), before)
    shutil.rmtree(RUN)
