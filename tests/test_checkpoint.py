"""Checkpoints that do not fit, or are none."""

import pickle
from pathlib import Path

import pytest
import torch
from command_line import RUN, tiny
from conftest import weights

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
