"""Recorded truncations against the steps they were recorded from.

Where there is no GPU, a stand-in for the recorder runs the function again on the recorder's own tensors: what is
recorded, copied and told apart is tested everywhere, the recorder itself on a GPU only.
"""

import logging
from copy import deepcopy

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_l2l.meta_gradients import Plan, recordings
from lightning_l2l.meta_gradients.base import with_objective
from lightning_l2l.meta_gradients.first_order import first_order_steps
from lightning_l2l.meta_gradients.recordings import Recordings
from lightning_l2l.meta_losses import LogLoss, WeightedSum
from lightning_l2l.optimizees import MLP, ImageClassification, Quadratics
from lightning_l2l.optimizees.sources.images import LabelledImages
from lightning_l2l.rules import SGD, CoordinatewiseLSTM, Grouped
from lightning_l2l.rules.fast.cuda_graph import CudaGraph
from lightning_l2l.unroll import start

PLAN = Plan(WeightedSum(), horizon=6, unroll=3)


class RunAgain:
    """Overwrites its own inputs and outputs each time, as a CUDA graph does."""

    def __init__(self, function, inputs):
        self.function, self.inputs = function, [tensor.clone() for tensor in inputs]
        self.outputs = [output.clone() for output in function(self.inputs)]
        self.calls = 0

    def __call__(self, inputs):
        self.calls += 1
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        for own, result in zip(self.outputs, self.function(self.inputs), strict=True):
            own.copy_(result)
        return [output.clone() for output in self.outputs]


def classification(**settings: float) -> ImageClassification:
    torch.manual_seed(0)
    data = ImageClassification(MLP(inputs=16, hidden_sizes=(5,)), batch_size=8, init_std=0.1, horizon=6, **settings)
    images = torch.randint(256, (50, 1, 4, 4), dtype=torch.uint8)
    data.images = LabelledImages(images, torch.randint(10, (50,)), {"train": (0, 50)}, "noise")
    return data


def meta_train(compute, rule, data, device):
    """Three meta-batches of two truncations; returns all losses, ends and meta-gradients."""
    seen = []
    for batch in range(3):
        episodes = data._collate("train", [2 * batch, 2 * batch + 1]).to(device)
        bound = rule.bind(episodes.layout)
        run = start(bound, episodes)
        for _ in range(2):
            steps = compute(bound, episodes, run, PLAN)
            rule.zero_grad()
            with_objective(bound, steps.meta_grads).backward()
            seen += [steps.losses, steps.run.theta, *(p.grad.clone() for p in rule.parameters())]
            with torch.no_grad():
                for parameter in rule.parameters():
                    parameter -= 0.01 * parameter.grad
            run = steps.run
    return seen


DEVICES = [
    ("cpu", RunAgain),
    pytest.param(
        "cuda", CudaGraph, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
    ),
]


@pytest.mark.parametrize(("device", "record"), DEVICES)
@pytest.mark.parametrize(
    "data",
    [Quadratics(horizon=6), classification(), classification(random_scaling=1.0)],
    ids=["quadratics", "classification", "scaled"],
)
def test_recordings_equal_steps(data, device, record):
    results = []
    for compute in (first_order_steps, recorded := Recordings(first_order_steps, record)):
        torch.manual_seed(0)
        results.append(meta_train(compute, CoordinatewiseLSTM(4).to(device), data, device))
    assert len(recorded.recordings) == 2  # one for each truncation, made in the first of three meta-batches
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("device", "record"), DEVICES)
def test_groups_with_states_of_numbers_are_recorded(device, record):
    results = []
    for compute in (first_order_steps, Recordings(first_order_steps, record)):
        torch.manual_seed(0)
        rule = Grouped(
            {"a": CoordinatewiseLSTM(4, momenta=[0.9]), "b": SGD(0.1)}, {"a": ["*weight"], "b": ["*bias"]}
        ).to(device)
        results.append(meta_train(compute, rule, classification(), device))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


class OneDevice(TorchDispatchMode):
    """Refuses operations that copy between devices or read a number in Python, as a recording does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        assert len({tensor.device for tensor in tensors}) < 2 and "_local_scalar_dense" not in str(func), func
        return result


GROUPED = Grouped({"a": CoordinatewiseLSTM(4, momenta=[0.9]), "b": SGD(0.1)}, {"a": ["*weight"], "b": ["*bias"]})
META_LOSSES = [WeightedSum(), WeightedSum("last"), WeightedSum("linear"), WeightedSum([1, 0, 2, 0, 1, 3]), LogLoss()]


@pytest.mark.parametrize("meta_loss", META_LOSSES, ids=lambda loss: getattr(loss, "weights", "log"))
@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (Quadratics(horizon=6), CoordinatewiseLSTM(4)),
        (classification(random_scaling=1.0), CoordinatewiseLSTM(4)),
        (classification(), GROUPED),
    ],
    ids=["quadratics", "classification", "groups"],
)
def test_steps_stay_on_their_device(monkeypatch, data, rule, meta_loss):
    """A device of shapes without numbers stands for the GPU."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device="": False)  # which knows no such device
    episodes = data._collate("train", [0, 1])
    bound = deepcopy(rule).bind(episodes.layout).to("meta")
    episodes, plan = episodes.to("meta"), Plan(meta_loss, 6, 3)
    first_order_steps(bound, episodes, run := start(bound, episodes), plan)  # may set something up
    with OneDevice():
        assert first_order_steps(bound, episodes, run, plan).losses.is_meta


def test_a_recording_is_replayed_for_each_later_meta_batch():
    made = []

    def record(function, inputs):
        made.append(RunAgain(function, inputs))
        return made[-1]

    meta_train(Recordings(first_order_steps, record), CoordinatewiseLSTM(4), Quadratics(horizon=6), "cpu")
    assert [recording.calls for recording in made] == [3, 3]  # one check and two meta-batches


def test_recordings_hold_no_graph_of_the_runs_they_were_given():
    made = []

    def record(function, inputs):
        made.append(RunAgain(function, inputs))
        return made[-1]

    meta_train(
        Recordings(first_order_steps, record), CoordinatewiseLSTM(4), classification(), "cpu"
    )  # begun with a graph
    assert not any(tensor.requires_grad for recording in made for tensor in recording.inputs)


@pytest.mark.parametrize(("device", "record"), DEVICES)
def test_recordings_equal_steps_in_mixed_precision(device, record):
    results = []
    for compute in (first_order_steps, recorded := Recordings(first_order_steps, record)):
        torch.manual_seed(0)
        rule = CoordinatewiseLSTM(4).to(device)
        with torch.autocast(device, torch.bfloat16):
            results.append(meta_train(compute, rule, classification(), device))
    assert len(recorded.recordings) == 2
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


class Wrong(RunAgain):
    def __call__(self, inputs):
        return [output + 1 for output in super().__call__(inputs)]


class Impossible:
    def __init__(self, function, inputs):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


@pytest.mark.parametrize("record", [Wrong, Impossible])
def test_what_cannot_be_recorded_runs_as_it_is(record, caplog):
    results = []
    with caplog.at_level(logging.INFO, "lightning_l2l"):
        for compute in (first_order_steps, Recordings(first_order_steps, record)):
            torch.manual_seed(0)
            results.append(meta_train(compute, CoordinatewiseLSTM(4), Quadratics(horizon=6), "cpu"))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert sum("launched one by one" in message for message in caplog.messages) == 1


def test_truncations_that_never_come_again_stop_being_recorded(monkeypatch, caplog):
    monkeypatch.setattr(recordings, "MOST", 1)
    meta_train(compute := Recordings(first_order_steps, RunAgain), CoordinatewiseLSTM(4), Quadratics(horizon=6), "cpu")
    assert compute.full and len(compute.recordings) == 1
    assert sum("only 1 recorded truncations" in message for message in caplog.messages) == 1
