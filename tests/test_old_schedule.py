"""Settings that the table of stages replaced: each gets the table that says the same, and nothing else runs instead."""

from pathlib import Path

import pytest
import torch
import yaml
from command_line import FOLDER, RUN, fit, tiny
from conftest import same, weights

from lightning_l2l.cli import main
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.learners.old_schedule import old_table, refuse_old_schedule

LINEARIZED = {"class_path": "lightning_l2l.meta_gradients.Linearized"}
EVERY_OTHER = {**LINEARIZED, "init_args": {"hessian_every": 2}}
CIFAR10 = {"curriculum": [200, 200, 200, 500, 500], "second_order": 0.4, "hessian_every": 2, "second_order_unroll": 500}
MOMENTA = {"curriculum": [200, 500], "second_order": 0.75, "hessian_every": 2, "second_order_unroll": 500}
MNIST = {"curriculum": None, "second_order": 0.4, "hessian_every": 1, "second_order_unroll": 100}


@pytest.mark.parametrize(
    ("settings", "epochs", "want"),
    [
        (
            CIFAR10,
            15,
            [
                {"share": 3, "horizon": 200},
                {"share": 2, "horizon": 500, "unroll": 500, "meta_gradient": EVERY_OTHER},
            ],
        ),
        (
            MOMENTA,
            12,
            [
                {"share": 1, "horizon": 200},
                {"share": 1, "horizon": 200, "unroll": 500, "meta_gradient": EVERY_OTHER},
                {"share": 2, "horizon": 500, "unroll": 500, "meta_gradient": EVERY_OTHER},
            ],
        ),
        (MNIST, 20, [{"share": 3}, {"share": 2, "unroll": 100, "meta_gradient": LINEARIZED}]),
        (
            {"second_order": 1.0},
            4,
            [{"share": 1, "meta_gradient": {"class_path": "lightning_l2l.meta_gradients.Exact"}}],
        ),
        ({"curriculum": [5, 10]}, 5, [{"share": 3, "horizon": 5}, {"share": 2, "horizon": 10}]),
        ({"curriculum": None}, 5, [{"share": 1}]),
    ],
    ids=["cifar10", "cifar10_momenta", "mnist", "all of second order", "epochs that do not divide", "the default"],
)
def test_the_old_settings_as_a_table(settings, epochs, want):
    assert old_table(settings, epochs) == want


def comparable(table):
    """Shares as parts of the run, and no unroll longer than its horizon: what runs alike compares alike."""
    total = sum(row["share"] for row in table)
    alike = [row | {"share": pytest.approx(row["share"] / total)} for row in table]
    return [
        row | ({"unroll": min(row["unroll"], row.get("horizon", row["unroll"]))} if "unroll" in row else {})
        for row in alike
    ]


@pytest.mark.parametrize(
    ("config", "settings", "epochs"),
    [("cifar10", CIFAR10, 15), ("cifar10_momenta", MOMENTA, 12), ("mnist", MNIST, 20)],
)
def test_shipped_configs_have_the_table_that_their_old_settings_spelled(config, settings, epochs):
    now = yaml.safe_load((FOLDER / f"{config}.yaml").read_text())
    assert now["trainer"]["max_epochs"] == epochs
    assert comparable(now["model"]["stages"]) == comparable(old_table(settings, epochs))


TABLE = (
    "--model.stages=[{share: 3, horizon: 5}, "
    "{share: 2, horizon: 10, meta_gradient: {class_path: lightning_l2l.meta_gradients.Linearized}}]"
)


def test_old_keys_in_a_config_get_their_table(fails):
    Path("old.yaml").write_text("model:\n  curriculum: [5, 5, 5, 10, 10]\n  second_order: 0.4\n  hessian_every: 1\n")
    sentence = fails(*tiny("fit", "--config=old.yaml", "--trainer.max_epochs=5"))
    assert "model.curriculum is [5, 5, 5, 10, 10], model.second_order is 0.4, model.hessian_every is 1" in sentence
    assert TABLE in sentence


def test_old_keys_of_a_config_and_of_flags_are_one_schedule(fails):
    Path("old.yaml").write_text("model: {init_args: {curriculum: [5, 5, 5, 10, 10]}}\ntrainer: {max_epochs: 5}\n")
    flags = ["--model.second_order=0.4", "--model.init_args.hessian_every", "1"]
    assert TABLE in fails("fit", "--config", "quadratic.yaml", "--config", "old.yaml", *flags)


def test_old_keys_are_printed_as_yaml_and_to_be_removed():
    with pytest.raises(InvalidInputError) as refused:
        refuse_old_schedule({"curriculum": None, "compiled": True}, 5)
    assert str(refused.value) == (
        "model.curriculum is null, model.compiled is true, but those are no longer a setting: remove them and give "
        "the table below, and for compiled set the environment variable LIGHTNING_L2L_COMPILED."
    )
    assert refused.value.to_copy == "--model.stages=[{share: 1}]"


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({"curriculum": 20}, "model.curriculum is 20, which was never valid"),
        ({"curriculum": [20, 0]}, "model.curriculum is [20, 0], which"),
        ({"second_order": "abc"}, "model.second_order is abc, which"),
        ({"second_order": 2}, "model.second_order is 2, which"),
        ({"second_order": True}, "model.second_order is true, which"),
        ({"hessian_every": 0}, "model.hessian_every is 0, which"),
        ({"second_order_unroll": 0.5}, "model.second_order_unroll is 0.5, which"),
    ],
)
def test_old_keys_with_values_that_were_never_valid(settings, want):
    with pytest.raises(InvalidInputError) as refused:
        refuse_old_schedule(settings, 5)
    (key,) = settings
    assert want in str(refused.value) and f"remove {key}, and give model.stages=[" in str(refused.value)


@pytest.mark.parametrize("epochs", [10.5, -1, 0, "many", None])
def test_where_the_number_of_epochs_is_unknown_shares_are_still_right(epochs):
    assert old_table(MNIST, epochs) == old_table(MNIST, 20)
    assert old_table({"curriculum": [5, 10]}, epochs) == [{"share": 1, "horizon": 5}, {"share": 1, "horizon": 10}]


@pytest.mark.parametrize(("key", "value"), [("memory", "2"), ("compiled", "false")])
def test_what_was_about_the_machine_is_an_environment_variable(key, value, fails):
    sentence = fails(*tiny("fit", f"--model.{key}={value}"))
    assert f"model.{key} is" in sentence and "model.stages" not in sentence
    assert f"set the environment variable LIGHTNING_L2L_{key.upper()}" in sentence


OLD = {"curriculum": [5, 10], "second_order": 0.5, "hessian_every": 2, "second_order_unroll": 10}
STAGES = (
    "model.stages=[{share: 1, horizon: 5}, {share: 1, horizon: 10, unroll: 10, meta_gradient: "
    "{class_path: lightning_l2l.meta_gradients.Linearized, init_args: {hessian_every: 2}}}]"
)


def make_old(path: Path) -> None:
    """Gives a checkpoint the settings of one that was written before there were stages."""
    checkpoint = torch.load(path, weights_only=True)
    settings = checkpoint["hyper_parameters"]
    for key in ("class_path", "stages", "meta_loss"):
        del settings[key]
    settings.update(OLD, memory=4.0, compiled=True)
    del checkpoint["meta_gradients"]
    torch.save(checkpoint, path)


def test_an_old_checkpoint_goes_on_under_its_own_table_only(fails):
    fit(f"--{STAGES}")
    with pytest.raises(SystemExit):
        fit(f"--{STAGES}", "--trainer.callbacks+=forks.StopAfter", "--trainer.callbacks.batches=2")
    last = Path("runs/quadratic/version_1/checkpoints/last.ckpt")
    make_old(last)
    sentence = fails(*tiny("fit", "--ckpt_path=last"))
    assert "model.stages is null, but the checkpoint was trained with the table below: give that" in sentence
    assert sentence.endswith(f"--{STAGES}")
    other = STAGES.replace("hessian_every: 2", "hessian_every: 1")
    assert STAGES in fails(*tiny("fit", f"--{other}", "--ckpt_path=last"))
    fit(f"--{STAGES}", "--ckpt_path=last")
    assert same(weights(last), weights(RUN / "checkpoints" / "last.ckpt"))


def test_an_old_checkpoint_is_tested_run_and_exported(fitted):
    best = RUN / "checkpoints" / "best.ckpt"
    main(tiny("test", "--ckpt_path=best"))
    rows = (RUN / "results.csv").read_text()
    make_old(best)
    main(tiny("test", "--ckpt_path=best"))
    assert (RUN / "results.csv").read_text() == rows
    main(tiny("validate", "--ckpt_path=best"))
    main(tiny("predict", "--ckpt_path=best"))
    assert (RUN / "predictions" / "0000.npz").is_file()
    main(["export", f"--ckpt_path={best}", "--output=old.safetensors"])
    main(tiny("test", "--ckpt_path=pretrained:old.safetensors"))
    assert Path("runs/quadratic/version_1/results.csv").read_text() == rows
