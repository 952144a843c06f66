"""Numbers that are not numbers are refused at the door, or said when they occur."""

import json
import logging
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import RUN, fit, tiny
from conftest import weights
from safetensors.torch import load_file, save_file

import lightning_l2l.learners.meta_learner
from lightning_l2l import LearnedOptimizer
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.learners import MetaLearner
from lightning_l2l.optimizees import ImageClassification, ModuleTraining
from lightning_l2l.optimizees.quadratic import QuadraticEpisodes
from lightning_l2l.optimizees.reference import FOLDER as REFERENCES
from lightning_l2l.optimizees.reference import read_reference
from lightning_l2l.rules import SGD, CoordinatewiseLSTM, PerCoordinateMLP
from lightning_l2l.rules.files import DIGEST_KEY, FOLDER, KEY, VERSION_KEY, load_rule, read_rule, save_rule

LSTM = "lightning_l2l.rules.CoordinatewiseLSTM"
SMALL = {"hidden_size": 3, "num_layers": 1}
CHECKPOINT = RUN / "checkpoints" / "last.ckpt"


def saved(name: str = "mine.safetensors") -> dict[str, torch.Tensor]:
    """The tensors of a small rule, and its file."""
    rule = CoordinatewiseLSTM(**SMALL)
    save_rule(rule, name, {"class_path": LSTM, "init_args": SMALL})
    return {key: tensor.clone() for key, tensor in load_file(name).items()}


def write(tensors: dict[str, torch.Tensor], init_args: object = SMALL, **header: str) -> None:
    """A file without a digest, as the first version wrote it, unless the header has one."""
    save_file(tensors, "mine.safetensors", {KEY: json.dumps({"class_path": LSTM, "init_args": init_args}), **header})


def test_a_damaged_rule_is_never_another_rule():
    whole = (FOLDER / "quadratic.safetensors").read_bytes()
    settings, tensors = read_rule("quadratic")
    random = np.random.default_rng(0)
    header = struct.unpack("<Q", whole[:8])[0] + 8
    for place in (*random.integers(0, header, 300), *random.integers(header, len(whole), 100)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.integers(8)
        Path("bad.safetensors").write_bytes(damaged)
        try:
            found, numbers = read_rule("bad.safetensors")
        except InvalidInputError:
            continue
        assert found == settings  # a flip that JSON does not tell apart
        assert all(torch.equal(numbers[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_rule_has_finite_numbers(value):
    tensors = saved()
    tensors["output.weight"][0, 1] = value
    write(tensors)
    with pytest.raises(InvalidInputError, match=r"mine\.safetensors, in which output\.weight has numbers that are not"):
        load_rule("mine.safetensors")
    with pytest.raises(ValueError, match="not finite"):
        LearnedOptimizer([torch.zeros(2, requires_grad=True)], "mine.safetensors")


def test_a_rule_of_whole_numbers_is_refused():
    write({key: tensor.to(torch.int64) for key, tensor in saved().items()})
    for rule in (None, CoordinatewiseLSTM(**SMALL)):
        with pytest.raises(InvalidInputError, match=r"is whole numbers of shape .* there, and numbers of"):
            load_rule("mine.safetensors", rule)


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_size": 6000},
        {"hidden_size": 10**9},
        {"hidden_size": 3, "num_layers": 10**9},
        {"hidden_size": 3, "preprocessing": float("nan")},
        {"hidden_size": 3, "output_scale": float("inf")},
    ],
    ids=str,
)
def test_a_header_is_compared_before_anything_is_built(settings):
    write(saved(), settings)
    before = time.process_time()
    with pytest.raises(InvalidInputError, match=r"rule is mine\.safetensors|num_layers is 1000000000"):
        load_rule("mine.safetensors")
    assert time.process_time() - before < 0.5


def test_a_later_version_is_told_from_damage(caplog):
    tensors = saved()
    load_rule("mine.safetensors")
    assert not caplog.records
    write(tensors, **{VERSION_KEY: "3", DIGEST_KEY: "0", "lightning_l2l.colour": "red"})
    with pytest.raises(InvalidInputError, match=r"is of version 3 .* knows those up to 2: install a later version"):
        load_rule("mine.safetensors")
    write(tensors)
    load_rule("mine.safetensors")
    assert "written before files of rules had a digest" in caplog.text


def test_a_rule_written_over_itself_stays_whole():
    """The tensors that are read lie in the file itself until it is closed."""
    tensors = saved()
    _, read = read_rule("mine.safetensors")
    save_rule(CoordinatewiseLSTM(5), "mine.safetensors", {"class_path": LSTM, "init_args": {"hidden_size": 5}})
    assert all(torch.equal(read[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_rules_refuse_settings_that_are_no_rates(value):
    for rule in (SGD, PerCoordinateMLP):
        with pytest.raises(InvalidInputError, match=r"learning_rate is .*, but it must be positive and finite"):
            rule(learning_rate=value)
    with pytest.raises(InvalidInputError, match="learning_rate"):
        SGD(torch.tensor([[0.1], [value]]))


def damage(place: str, value: float) -> None:
    checkpoint = torch.load(CHECKPOINT, weights_only=True)
    if place == "weights":
        checkpoint["state_dict"]["rule.output.weight"][0, 0] = value
    elif place == "adam":
        checkpoint["optimizer_states"][0]["state"][0]["exp_avg"][0] = value
    elif place == "rate":
        checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] = value
    else:
        checkpoint["lr_schedulers"][0]["base_lrs"] = [value]
    torch.save(checkpoint, "bad.ckpt")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("weights", torch.nan),
        ("adam", torch.nan),
        ("adam", torch.inf),
        ("rate", torch.nan),
        ("rate", torch.inf),
        ("rate", -1.0),
        ("schedule", -1.0),
    ],
)
def test_a_checkpoint_has_finite_numbers(place, value, fails, fitted):
    damage(place, value)
    assert "--ckpt_path is " in (sentence := fails(*tiny("fit", "--ckpt_path=bad.ckpt", "--trainer.max_epochs=3")))
    keys = {"weights": "rule.output.weight", "adam": "state.0.exp_avg", "rate": "0.lr", "schedule": "base_lrs.0"}
    assert f"{keys[place]} has " in sentence


def test_a_checkpoint_with_another_bit_is_damaged(fails, fitted):
    data = bytearray(CHECKPOINT.read_bytes())
    place = data.find(weights(CHECKPOINT)["rule.output.weight"].numpy().tobytes())
    data[place] ^= 1
    Path("bad.ckpt").write_bytes(data)
    assert "is truncated or not a checkpoint" in fails(*tiny("test", "--ckpt_path=bad.ckpt"))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_pixels_are_finite(value):
    images = np.zeros((24, 8, 8))
    images[3, 2, 1] = value
    labels = np.arange(24) % 2
    np.savez("images.npz", x_train=images, y_train=labels, x_test=images[:12], y_test=labels[:12])
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    for data in (
        ImageClassification(network, source="images.npz"),
        ModuleTraining(network, torch.nn.CrossEntropyLoss(), "images.npz"),
    ):
        with pytest.raises(InvalidInputError, match=r"data\.source is images\.npz, where x_train has numbers that are"):
            data.setup()


def test_reference_losses_are_finite():
    table = dict(np.load(REFERENCES / "everyday.npz"))
    table["losses"][0, 0] = np.nan
    np.savez("table.npz", **table)
    with pytest.raises(InvalidInputError, match=r"data\.reference is table\.npz, where losses has numbers that are"):
        read_reference("table.npz", [], 10, "")


@pytest.mark.parametrize(
    "flag", ["--model.learning_rate=.nan", "--data.random_scaling=.NaN", "--trainer.max_time=.nan"]
)
def test_no_setting_is_nan(flag, fails):
    assert f"{flag.partition('=')[0]}'s value is YAML that has" in fails(*tiny("fit", flag))
    Path("mine.yaml").write_text("model:\n  unroll: 5\n  gradient_clip: .nan\n")
    assert "--config is mine.yaml, which is YAML that has .nan in line 3" in fails(
        *tiny("fit", "--config", "mine.yaml")
    )


def losses_not_finite(monkeypatch) -> None:
    evaluate = QuadraticEpisodes.value_and_grad
    monkeypatch.setattr(
        QuadraticEpisodes, "value_and_grad", lambda self, *args: (evaluate(self, *args)[0] * torch.inf, self.theta)
    )


def meta_gradient_not_finite(monkeypatch) -> None:
    step = MetaLearner.meta_step
    monkeypatch.setattr(MetaLearner, "meta_step", lambda self, objective: step(self, objective * torch.nan))


def validation_not_finite(monkeypatch) -> None:
    evaluate = lightning_l2l.learners.meta_learner.evaluate
    monkeypatch.setattr(
        lightning_l2l.learners.meta_learner, "evaluate", lambda *args: (evaluate(*args)[0] * torch.nan, None)
    )


@pytest.mark.parametrize(
    ("inject", "said"),
    [
        (losses_not_finite, ["Losses of training episodes: not finite", "Losses of val episodes: not finite"]),
        (meta_gradient_not_finite, ["The meta-gradient is not finite: its meta-step is skipped"]),
        (validation_not_finite, ["Losses of val episodes: not finite", "val/meta_loss: not finite"]),
    ],
)
def test_fit_says_each_fault_once(inject, said, monkeypatch, caplog):
    inject(monkeypatch)
    with caplog.at_level(logging.WARNING):
        fit()
    for sentence in said:
        assert caplog.text.count(sentence) == 1


def test_weights_that_are_not_finite_are_not_saved(fails):
    fit()
    checkpoint = torch.load(CHECKPOINT, weights_only=True)
    adam = checkpoint["optimizer_states"][0]["state"][0]
    adam["exp_avg"].fill_(3e38)  # over next to nothing, more than float32 holds
    adam["exp_avg_sq"].fill_(0)
    torch.save(checkpoint, CHECKPOINT)
    before = CHECKPOINT.read_bytes()
    sentence = fails(*tiny("fit", "--ckpt_path=last", "--trainer.max_epochs=3"))
    assert "in meta-batch 5 a meta-step made weights that are not finite" in sentence
    assert CHECKPOINT.read_bytes() == before


def test_a_learning_rate_fits_float32(fails):
    assert "model.learning_rate is 1e+39" in fails(*tiny("fit", "--model.learning_rate=1e39"))
