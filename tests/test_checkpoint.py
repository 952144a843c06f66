"""Checkpoints that do not fit, or are none."""

import math
import pickle
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from command_line import RUN, fit, tiny
from conftest import weights

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules.files import read_safely
from lightning_l2l.trained.checkpoint import check_numbers

SPOILT = {
    "empty": lambda states: states[0].clear(),
    "no groups": lambda states: states[0].update(param_groups=None),
    "lists for numbers": lambda states: states[0]["param_groups"][0].update(params=[[0], [1]]),
    "complex": lambda states: states[0]["state"][0].update(exp_avg=states[0]["state"][0]["exp_avg"].to(torch.cfloat)),
}


IMPOSSIBLE = {  # a number of Adam's, and what the sentence calls it
    "step": (lambda state, group: state["step"].fill_(-7), "state.0.step has -7.0"),
    "squares": (lambda state, group: state["exp_avg_sq"].sub_(1), "state.0.exp_avg_sq has negative numbers"),
    "means": (lambda state, group: state["exp_avg"].div_(0), "state.0.exp_avg has numbers that are not finite"),
    "decay": (lambda state, group: group.update(betas=(0.9, 1.5)), "param_groups.0.betas.1 has 1.5"),
    "rate": (lambda state, group: group.update(lr=-1.0), "param_groups.0.lr has -1.0"),
}


HOLLOW = {  # tensors that stand for more than a file holds, or are none that a rule has
    "declared": lambda weight: torch.zeros(1).expand(10**10),
    "without numbers": lambda weight: weight.to("meta"),
    "sparse": lambda weight: torch.sparse_coo_tensor(torch.zeros(2, 0), torch.zeros(0), (10**6, 10**6)),
    "quantized": lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.quint8),
}
OTHER_FORMS = {  # of an optimizer's state and group, and what the sentence calls the first
    "shape": (lambda state, group: state.update(exp_avg=state["exp_avg"][:1]), "state.0.exp_avg"),
    "type": (lambda state, group: state.update(exp_avg_sq=1.0), "state.0.exp_avg_sq"),
    "missing": (lambda state, group: state.pop("step"), "state.0"),
    "parameters": (lambda state, group: group.update(params=[0] * 6), "param_groups.0.params"),
    "text": (lambda state, group: group.update(lr="fast"), "param_groups.0.lr"),
    "betas": (lambda state, group: group.update(betas=(0.9, 0.9, 0.9)), "param_groups.0.betas"),
    "direction": (lambda state, group: group.update(maximize=True), "param_groups.0.maximize"),
}
OTHER_PARTS = {
    "loops": ({}, "--ckpt_path cannot be used (KeyError"),
    "pytorch-lightning_version": ("x.y", "--ckpt_path cannot be used (InvalidVersion"),
    "optimizer_states": ([], "optimizer_states is not what this run's optimizer keeps"),
    "lr_schedulers": ("x", "lr_schedulers is not what this run's optimizer keeps"),
    "callbacks": (None, "truncated or not a checkpoint"),
    "datamodule_hyper_parameters": ({"data": "x"}, "truncated or not a checkpoint"),
}


class Opened:
    """Unpickling this leaves a file behind."""

    def __reduce__(self):
        return open, ("executed", "w")


def test_bad_checkpoints_get_one_sentence_and_execute_nothing(fails, fitted):
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


@pytest.mark.parametrize("spoil", SPOILT)
def test_an_optimizers_state_of_another_form_is_refused(spoil, fails, fitted):
    checkpoint = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)
    SPOILT[spoil](checkpoint["optimizer_states"])
    torch.save(checkpoint, "spoilt.ckpt")
    assert "spoilt.ckpt, which is truncated or not" in fails(*tiny("fit", "--ckpt_path=spoilt.ckpt"))


@pytest.mark.parametrize("spoil", IMPOSSIBLE)
def test_impossible_numbers_of_adam_are_refused(spoil, fails, fitted):
    checkpoint = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)
    change, words = IMPOSSIBLE[spoil]
    change(checkpoint["optimizer_states"][0]["state"][0], checkpoint["optimizer_states"][0]["param_groups"][0])
    torch.save(checkpoint, "spoilt.ckpt")
    assert words in fails(*tiny("fit", "--ckpt_path=spoilt.ckpt"))


def test_weights_may_have_any_name_and_a_plateau_any_best(fitted):
    checkpoint = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)
    named = {"rule.log_lr": torch.tensor(-3.0), "rule.step": torch.tensor([-1.0]), "rule.betas.0": -torch.ones(2)}
    checkpoint["state_dict"] |= named
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD([torch.zeros(1)], lr=0.1))
    checkpoint["lr_schedulers"] = [plateau.state_dict()]
    check_numbers(checkpoint, "it is one", resumes=True)
    for best in (math.nan, -1.0):  # the former is none, the latter a loss
        checkpoint["lr_schedulers"][0]["best"] = best
        with nullcontext() if best == best else pytest.raises(InvalidInputError, match=r"it is one, .*\.best has nan"):
            check_numbers(checkpoint, "it is one", resumes=True)


@pytest.mark.parametrize("change", HOLLOW.values(), ids=HOLLOW)
def test_weights_that_a_file_does_not_hold_are_refused(change, fails, fitted):
    checkpoint = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["state_dict"]["rule.weights.0"] = change(checkpoint["state_dict"]["rule.weights.0"])
    torch.save(checkpoint, "hollow.ckpt")
    assert "hollow.ckpt, which is truncated or not" in fails(*tiny("validate", "--ckpt_path=hollow.ckpt"))


def test_a_compressed_checkpoint_is_not_unpacked(fitted):
    with zipfile.ZipFile(RUN / "checkpoints" / "last.ckpt") as stored:
        parts = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile("small.ckpt", "w", zipfile.ZIP_DEFLATED) as small:
        for name, content in parts.items():
            small.writestr(name, content)
    assert read_safely("small.ckpt") is None


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_another_form_of_adams_state_is_refused_before_a_step(form, fails, fitted):
    checkpoint = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)
    change, name = OTHER_FORMS[form]
    change(checkpoint["optimizer_states"][0]["state"][0], checkpoint["optimizer_states"][0]["param_groups"][0])
    torch.save(checkpoint, "spoilt.ckpt")
    sentence = fails(*tiny("fit", "--ckpt_path=spoilt.ckpt"))
    assert f"in which optimizer_states.0.{name} is not what this run's optimizer keeps" in sentence


@pytest.mark.parametrize("part", OTHER_PARTS)
def test_another_part_in_a_checkpoint_is_one_sentence(part, fails, fitted):
    checkpoint = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint[part], words = OTHER_PARTS[part]
    torch.save(checkpoint, "spoilt.ckpt")
    assert words in fails(*tiny("fit", "--ckpt_path=spoilt.ckpt"))


def test_a_stages_setting_that_an_earlier_version_lacked_does_not_count(fails):
    stages = "--model.stages=[{share: 1}, {share: 2}]"
    fit(stages)
    path = RUN / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for row in checkpoint["hyper_parameters"]["stages"]:
        del row["patience"]
    torch.save(checkpoint, path)
    for other in ("[{share: 1}, {share: 3}]", "[{share: 1}]", "[{share: 1}, {share: 2}, {share: 2}]"):
        flags = f"--model.stages={other}", "--ckpt_path=last", "--trainer.max_epochs=3"
        assert "model.stages is" in fails(*tiny("fit", *flags))
    fit(stages, "--ckpt_path=last", "--trainer.max_epochs=3")


def test_a_checkpoint_of_another_shape_is_refused(fails, fitted):
    sentence = fails(*tiny("test", "--ckpt_path=best", "--model.rule.init_args.hidden_size=5"))
    assert "model.rule.init_args.hidden_size is 5, but the checkpoint was trained with 4" in sentence
    sentence = fails(*tiny("fit", "--ckpt_path=last", "--model.learning_rate=0.5"))
    assert "model.learning_rate is 0.5, but the checkpoint was trained with 0.003" in sentence
    sentence = fails(*tiny("fit", "--ckpt_path=last", "--data.distribution=gaussian"))
    assert "data.init_args.distribution is gaussian, but the checkpoint was trained with uniform" in sentence


def test_a_renamed_setting_does_not_hide_another_shape(fails, fitted):
    """A checkpoint without settings, as another program may write it, is still compared by shape."""
    checkpoint = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)
    del checkpoint["hyper_parameters"]
    torch.save(checkpoint, "bare.ckpt")
    sentence = fails(*tiny("test", "--ckpt_path=bare.ckpt", "--model.rule.init_args.hidden_size=5"))
    assert "bare.ckpt" in sentence
    assert "shape" in sentence


def test_a_class_in_place_of_no_value_is_another_setting(fails, fitted):
    loss = "{class_path: lightning_l2l.meta_losses.WeightedSum, init_args: {weights: last}}"
    sentence = fails(*tiny("fit", "--ckpt_path=last", f"--model.meta_loss={loss}"))
    assert "model.meta_loss is class_path lightning_l2l.meta_losses.WeightedSum, but the checkpoint was" in sentence
    assert "trained with None" in sentence
