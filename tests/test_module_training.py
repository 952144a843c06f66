"""Any module, any loss of a batch, any tensors: four optimizees from YAML alone, to first and to second order."""

import csv
import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_l2l.cli import main
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.meta_gradients.base import refuse_once_differentiable
from lightning_l2l.optimizees import (
    MLP,
    Autoencoder,
    CharGRU,
    CharTransformer,
    Examples,
    ModuleTraining,
    Source,
    Table,
    TensorExamples,
    Text,
)
from lightning_l2l.optimizees.module_episodes import ModuleEpisodes, unflatten
from lightning_l2l.optimizees.sources.tensors import load_arrays
from lightning_l2l.rules import Adam
from lightning_l2l.unroll import learning_curves

TEXT = "the cat sat on the mat and the dog ran after the cat until both were tired. " * 10
VOCABULARY = 20

COMMON = """
model:
  rule: {class_path: lightning_l2l.rules.CoordinatewiseLSTM, init_args: {hidden_size: 4}}
  unroll: 3
  stages:
    - {}
    - {meta_gradient: {class_path: lightning_l2l.meta_gradients.Exact}}
    - {meta_gradient: {class_path: lightning_l2l.meta_gradients.Linearized}}
data:
  class_path: lightning_l2l.optimizees.ModuleTraining
  init_args: {horizon: 6, episodes_per_batch: 8, train_episodes: 8, val_episodes: 8, tuning_episodes: 8,
    test_episodes: 8, batch_size: 4}
comparison: {rates_per_decade: 1}
trainer:
  max_epochs: 3
  accelerator: cpu
  logger: {class_path: pytorch_lightning.loggers.TensorBoardLogger, init_args: {save_dir: runs, name: proof}}
"""
TASKS = {
    "autoencoder": """
data:
  init_args:
    network: {class_path: lightning_l2l.optimizees.Autoencoder, init_args: {inputs: 16, hidden_sizes: [5, 2]}}
    loss: {class_path: torch.nn.MSELoss}
    source: pictures.npz
""",
    "regression": """
data:
  init_args:
    network: {class_path: lightning_l2l.optimizees.MLP, init_args: {inputs: 10, hidden_sizes: [4], classes: 1}}
    loss: {class_path: torch.nn.SmoothL1Loss}
    source: {class_path: lightning_l2l.optimizees.Table, init_args: {name: diabetes}}
    init_std: 0.1
""",
    "gru": """
data:
  init_args:
    network:
      class_path: lightning_l2l.optimizees.CharGRU
      init_args: {vocabulary: 20, embedding_size: 3, hidden_size: 4}
    loss: {class_path: torch.nn.CrossEntropyLoss}
    source: {class_path: lightning_l2l.optimizees.Text, init_args: {path: cat.txt, length: 5}}
""",
    "attention": """
data:
  init_args:
    network:
      class_path: lightning_l2l.optimizees.CharTransformer
      init_args: {vocabulary: 20, length: 5, width: 4, heads: 2}
    loss: {class_path: torch.nn.CrossEntropyLoss}
    source: {class_path: lightning_l2l.optimizees.Text, init_args: {path: cat.txt, length: 5}}
""",
}


@pytest.fixture(autouse=True)
def files(empty_folder):
    """The files that the tasks name."""
    Path("cat.txt").write_text(TEXT)
    random = np.random.default_rng(0)
    pictures = {f"x_{part}": random.integers(256, size=(36, 1, 4, 4), dtype=np.uint8) for part in ("train", "test")}
    np.savez("pictures.npz", **pictures)


def task(name: str, **settings) -> ModuleTraining:
    settings = {"horizon": 3, "batch_size": 4} | settings
    if name == "autoencoder":
        return ModuleTraining(Autoencoder(16, (5, 2)), nn.MSELoss(), "pictures.npz", **settings)
    if name == "regression":
        return ModuleTraining(MLP(10, (4,), 1), nn.SmoothL1Loss(), Table("diabetes"), **settings)
    network = CharGRU(VOCABULARY, 3, 4) if name == "gru" else CharTransformer(VOCABULARY, 5, 4, 2)
    return ModuleTraining(network, nn.CrossEntropyLoss(), Text("cat.txt", 5), **settings)


def eight(name: str) -> ModuleEpisodes:
    return task(name).episodes("train", range(8)).to("cpu", torch.double)


@pytest.mark.parametrize("name", TASKS)
def test_a_yaml_is_enough_to_train_to_first_and_second_order_and_race(name):
    Path("common.yaml").write_text(COMMON)
    Path("task.yaml").write_text(TASKS[name])
    configs = ["--config", "common.yaml", "--config", "task.yaml"]
    main(["fit", *configs])
    main(["test", *configs, "--ckpt_path=last"])
    folder = Path("runs/proof/version_0")
    with (folder / "results.csv").open() as file:
        rows = {row["rule"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["LSTM", "SGD", "NAG", "RMSprop", "Adam"]
    assert all(np.isfinite(float(row[key])) for row in rows.values() for key in ("initial", "last10", "sum"))
    assert len({row["initial"] for row in rows.values()}) == 1
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 2


@pytest.mark.parametrize("name", TASKS)
def test_episodes_side_by_side_equal_each_alone(name):
    episodes = eight(name)
    with torch.no_grad():
        losses, grads = episodes.value_and_grad(episodes.theta, 1)
    with torch.inference_mode():
        inferred = episodes.value_and_grad(episodes.theta, 1)[1]
    torch.testing.assert_close(inferred, grads)
    inputs, targets = episodes.examples.minibatch(episodes.indices[:, 1], torch.double)
    for n in range(8):
        theta = episodes.theta[n].clone().requires_grad_()
        outputs = torch.func.functional_call(episodes.network, unflatten(theta, episodes.network), (inputs[n],))
        loss = episodes.criterion(outputs, targets[n])
        torch.testing.assert_close(losses[n], loss.detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(grads[n], torch.autograd.grad(loss, theta)[0], rtol=1e-9, atol=1e-12)
    assert not losses.requires_grad and len(losses.unique()) == 8


@pytest.mark.parametrize("name", TASKS)
def test_products_with_a_hessian_are_those_of_finite_differences(name):
    episodes = eight(name)
    vector = torch.randn_like(episodes.theta)
    product = episodes.hessian_product(episodes.theta, 1, vector)
    ahead, behind = (episodes.value_and_grad(episodes.theta + e * vector, 1)[1].detach() for e in (1e-5, -1e-5))
    torch.testing.assert_close(product, (ahead - behind) / 2e-5, rtol=1e-4, atol=1e-7)
    alone = episodes.first(1)
    torch.testing.assert_close(product[:1], alone.hessian_product(alone.theta, 1, vector[:1]))


@pytest.mark.parametrize(
    ("name", "batching", "fused"),
    [
        ("autoencoder", "losses", False),
        ("regression", "losses", False),
        ("gru", "gradients", True),
        ("attention", "losses", True),
    ],
)
def test_how_episodes_run_is_found_once(name, batching, fused):
    data = task(name)
    data.setup()
    assert (data.batching, data.fused) == (batching, fused)


class Gate(nn.Linear):
    """Looks at a number in Python, which vmap cannot."""

    def forward(self, inputs):
        outputs = super().forward(inputs)
        return outputs if float(outputs.detach().sum()) > 0 else -outputs


def test_what_vmap_cannot_run_runs_one_after_the_other():
    data = ModuleTraining(Gate(10, 1), nn.MSELoss(), Table("diabetes"), batch_size=4, horizon=2)
    episodes = data.episodes("train", range(3))
    assert data.batching == "none"
    losses, _ = episodes.value_and_grad(episodes.theta, 0)
    alone = data.episodes("train", [2])
    torch.testing.assert_close(losses[2:], alone.value_and_grad(alone.theta, 0)[0])
    refuse_once_differentiable("Exact", episodes)


def test_attention_alone_and_to_first_order_runs_its_fast_kernel():
    episodes = task("attention").episodes("train", [0])
    calls = []
    for differentiable in (False, True):
        with torch.set_grad_enabled(differentiable), torch.profiler.profile() as profile:
            episodes.value_and_grad(episodes.theta, 0)
        calls.append({event.key for event in profile.key_averages()})
    fast, plain = ("aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_attention_math")
    assert [(fast in called, plain in called) for called in calls] == [(True, False), (False, True)]


@pytest.mark.parametrize("name", TASKS)
def test_splits_share_nothing(name):
    data = task(name, horizon=60)
    seen = {}
    for split in ("train", "val", "tune", "test"):
        rows = data.episodes(split, range(4)).indices.flatten()
        if "Text" in type(data.examples).__name__:  # all characters of the windows, and the one after them
            rows = (rows[:, None] + torch.arange(6)).flatten()
        seen[split] = set(rows.tolist())
    assert seen["train"].isdisjoint(seen["val"] | seen["tune"] | seen["test"])
    assert seen["test"].isdisjoint(seen["val"] | seen["tune"])
    assert max(map(max, seen.values())) < len(data.examples)


@pytest.mark.parametrize("name", TASKS)
def test_adam_learns(name):
    episodes = task(name, horizon=60, batch_size=16).episodes("train", range(2))
    curves = learning_curves(Adam(0.03), episodes, 60)
    assert (curves[:, -10:].mean(1) < 0.9 * curves[:, :5].mean(1)).all()


def test_modules_start_as_torch_starts_them():
    data = task("attention")
    one, other = data.episodes("train", [1, 2]).theta
    places = data.episodes("train", [1]).layout
    weight = one[places["layers.0.self_attn.in_proj_weight"].coordinates]
    assert 0.5 * (6 / 16) ** 0.5 < weight.abs().max() <= (6 / 16) ** 0.5  # Xavier's bound for 4 in and 12 out
    assert (one[places["layers.0.self_attn.out_proj.bias"].coordinates] == 0).all()
    assert (one[places["layers.0.norm1.weight"].coordinates] == 1).all()
    assert not torch.equal(one, other)


def test_drawing_a_start_leaves_the_generators_of_gpus_alone(monkeypatch):
    data, seeded = task("regression"), []
    before = torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    data.episodes("train", [0])
    assert not seeded
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_starts_are_the_same_after_the_network_has_moved_to_a_gpu():
    data = task("regression")
    before = data.episodes("train", [0])
    theta = before.theta.clone()
    before.to("cuda")
    assert torch.equal(data.episodes("train", [0]).theta, theta)


def test_a_text_is_asked_for_its_next_characters():
    Path("abc.txt").write_text("abcé" * 12)
    examples = Text("abc.txt", length=3).load()
    inputs, targets = examples.minibatch(torch.tensor([[0, 2]]), torch.float32)
    assert inputs.tolist() == [[[0, 1, 2], [2, 3, 0]]]
    assert targets.tolist() == [[[1, 2, 3], [3, 0, 1]]]
    assert examples.ranges == {"train": (0, 37), "val": (40, 41), "test": (44, 45)}
    assert examples.source == "abc.txt, 4 different characters, 3 in a window"


def test_tables_are_standardised_by_their_training_rows():
    table = Table("diabetes").load()
    assert table.ranges == {"train": (0, 296), "val": (296, 369), "test": (369, 442)}
    for values in (table.inputs, table.targets):
        torch.testing.assert_close(values[:296].mean(0), torch.zeros(values.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(values[:296].std(0, correction=0), torch.ones(values.shape[1]))
    assert table.targets.shape == (442, 1)
    digits = Table("digits").load()
    assert digits.targets.dtype == torch.int64 and digits.targets.unique().tolist() == list(range(10))
    assert (digits.inputs[:, 0] == 0).all()  # a constant column


def test_a_classification_can_be_reconstructed_instead():
    episodes = ModuleTraining(
        Autoencoder(64, (4,)), nn.MSELoss(), Table("digits"), batch_size=8, horizon=1, reconstruct=True
    ).episodes("test", [0])
    inputs, targets = episodes.minibatch(episodes.theta, 0)
    assert inputs is targets and inputs.shape == (1, 8, 64)
    assert episodes.loss(episodes.theta, 0).item() > 0


class Waves(Source):
    """A source of one's own."""

    def load(self) -> Examples:
        inputs = torch.linspace(0, 6, 60, dtype=torch.float64)[:, None]
        return TensorExamples(inputs, inputs.sin(), {"train": (0, 40), "val": (40, 50), "test": (50, 60)}, "waves")


@pytest.mark.parametrize("source", [Waves(), Waves().load()], ids=["source", "examples"])
def test_sources_and_tensors_of_ones_own(source):
    data = ModuleTraining(nn.Linear(1, 1), nn.MSELoss(), source, batch_size=5, horizon=1)
    episodes = data.episodes("val", [0, 1])
    assert data.variant == "waves"
    inputs, targets = episodes.minibatch(episodes.theta, 1)
    assert inputs.dtype == torch.float32 and bool((inputs >= 4).all())
    torch.testing.assert_close(targets, inputs.sin())


def write_npz(**changes) -> str:
    random = np.random.default_rng(0)
    arrays = {"x_train": random.normal(size=(24, 3)), "x_test": random.normal(size=(12, 3))}
    arrays |= {"y_train": random.normal(size=(24, 1)), "y_test": random.normal(size=(12, 1))}
    np.savez("numbers.npz", **{name: array for name, array in (arrays | changes).items() if array is not None})
    return "numbers.npz"


def test_an_npz_keeps_its_rows_together():
    x = np.arange(24, dtype=np.float64)[:, None]
    examples = load_arrays(Path(write_npz(x_train=x, y_train=2 * x, x_test=x[:12], y_test=2 * x[:12])))
    assert torch.equal(examples.targets, 2 * examples.inputs)
    assert examples.ranges == {"train": (0, 22), "val": (22, 24), "test": (24, 36)}
    assert sorted(examples.inputs[:24, 0].tolist()) == list(range(24))


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({"x_test": None}, r"data\.source is numbers\.npz, which has no x_test"),
        ({"y_test": None}, "has only one of y_train and y_test"),
        ({"y_train": np.zeros((23, 1))}, "where train has 24 inputs and 23 rows"),
        ({"x_test": np.zeros((12, 4))}, "with rows of one shape"),
        ({"x_train": np.array([["a"] * 3] * 24), "x_test": np.array([["a"] * 3] * 12)}, "save integers or floating"),
        ({"x_test": np.full((12, 3), np.nan)}, "x_test has numbers that are not finite"),
        ({"x_train": np.full((24, 3), 1e300)}, "x_train has numbers that are not finite in float32"),
        ({"x_train": np.full((24, 3), np.inf, np.float16)}, "x_train has numbers that are not finite in float32"),
        (
            {"y_train": np.full((24, 1), 2**63, np.uint64), "y_test": np.zeros((12, 1), np.uint64)},
            "y_train has numbers above 9223372036854775807",
        ),
    ],
)
def test_a_bad_npz_is_refused(changes, want):
    with pytest.raises(InvalidInputError, match=want):
        load_arrays(Path(write_npz(**changes)))


def marked(npz: bytes, field: int, value: bytes) -> bytes:
    """Changes a field of both headers that a zip file has for each member; the second lies two bytes further on."""
    for signature, place in ((b"PK\x03\x04", field), (b"PK\x01\x02", field + 2)):
        for member in re.finditer(signature, npz):
            at = member.start() + place
            npz = npz[:at] + value + npz[at + 1 :]
    return npz


def with_header(shape: str) -> bytes:
    """An .npz whose arrays declare a shape and hold nothing."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as npz:
        for name in ("x_train", "x_test"):
            npz.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    return file.getvalue()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda npz: marked(npz, 6, b"\x01"), r"which is not an \.npz file that can be read \("),
        (lambda npz: marked(npz, 8, b"\x63"), r"which is not an \.npz file that can be read \("),
        (lambda _: with_header("(100000000000000, 3)"), "whose x_train declares"),
        (lambda _: with_header("(1000000000000000000000000000000,)"), "whose x_train declares"),
    ],
    ids=["encrypted", "compressed", "more than memory", "more than an integer"],
)
def test_an_npz_that_cannot_be_read_gets_one_sentence(damage, sentence):
    path = Path(write_npz())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InvalidInputError, match=rf"numbers\.npz, {sentence}"):
        load_arrays(path)


class Scale(nn.Module):
    """Has a parameter, and nothing that starts it."""

    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.factor = factor

    def forward(self, inputs):
        return self.weight * inputs.sum(1, keepdim=True) * self.factor


class Infinite(nn.Module):
    """A loss that is never a number."""

    def forward(self, outputs, targets):
        return (outputs - targets).square().mean() * torch.nan


class Counting(nn.Linear):
    """Counts its calls."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs):
        self.calls += 1
        return super().forward(inputs)


class Rounded(nn.Linear):
    """Has no gradient."""

    def forward(self, inputs):
        return super().forward(inputs).detach()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"network": nn.Linear(4, 1)}, r"data\.network does not take 4 examples of shape \(3,\) from numbers\.npz"),
        ({"network": nn.Linear(3, 2)}, r"data\.loss does not take float32 \(4, 2\) that data\.network makes, and"),
        ({"network": nn.Flatten()}, r"data\.network has no parameters"),
        ({"network": nn.Linear(3, 1).requires_grad_(False)}, r"has the parameter weight with requires_grad=False"),
        ({"network": nn.LSTM(3, 1)}, r"data\.loss does not take a tuple that data\.network makes"),
        ({"network": Rounded(3, 1)}, "has no gradient .* can be differentiated"),
        ({"network": Scale(), "init_std": None}, r"data\.init_std is null, but the network of data\.network has no"),
        ({"network": Counting(3, 1)}, r"data\.network changes its buffer calls"),
        ({"loss": nn.MSELoss(reduction="none")}, r"data\.loss makes float32 \(4, 1\) of .* it must be one number"),
        ({"loss": nn.CrossEntropyLoss(), "network": nn.Linear(3, 5)}, r"data\.loss does not take float32 \(4, 5\)"),
        ({"loss": Infinite()}, r"data\.loss is nan where an episode starts, on numbers\.npz"),
        ({"network": Scale(float("inf")), "init_std": 1.0}, r"data\.loss is inf where"),
        ({"init_std": -1.0}, r"data\.init_std is -1\.0"),
        ({"batch_size": 0}, r"data\.batch_size is 0"),
        ({"source": "numbers.csv"}, r"data\.source is numbers\.csv, which is no \.npz file"),
        ({"source": "nowhere.npz"}, r"data\.source is nowhere\.npz, which is not there"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_said_in_one_sentence(settings, sentence):
    source = write_npz()
    settings = {"network": nn.Linear(3, 1), "loss": nn.MSELoss(), "source": source, "batch_size": 4} | settings
    with pytest.raises(InvalidInputError, match=sentence):
        ModuleTraining(**settings).setup()


def test_targets_that_would_be_broadcast_are_refused():
    source = write_npz(y_train=np.zeros(24), y_test=np.zeros(12))
    with pytest.raises(InvalidInputError, match=r"data\.loss does not take .* targets of float32 \(4,\)"):
        ModuleTraining(nn.Linear(3, 1), nn.MSELoss(), source, batch_size=4).setup()


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (CharGRU(VOCABULARY - 1), rf"data\.network does not take 4 windows .* {VOCABULARY} different characters"),
        (CharTransformer(VOCABULARY, length=4), r"data\.network does not take 4 windows of shape \(5,\)"),
        (nn.Sequential(nn.Embedding(99, 3), nn.Flatten(), nn.Linear(15, 2)), r"data\.loss does not take"),
    ],
)
def test_a_text_must_fit_the_network(network, sentence):
    with pytest.raises(InvalidInputError, match=sentence):
        ModuleTraining(network, nn.CrossEntropyLoss(), Text("cat.txt", 5), batch_size=4).setup()


def test_classes_must_fit_the_network():
    with pytest.raises(InvalidInputError, match=r"data\.loss does not take .* from digits .*out of bounds"):
        ModuleTraining(nn.Linear(64, 9), nn.CrossEntropyLoss(), Table("digits"), batch_size=2).setup()


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (lambda: Table("titanic"), r"has the table titanic, which is unknown: choose diabetes"),
        (lambda: Table("california").load(), r"california, which is not on this machine"),
        (lambda: Text("nowhere.txt").load(), r"data\.source\.path is nowhere\.txt, which cannot be read"),
        (lambda: Text("pictures.npz").load(), r"data\.source\.path is pictures\.npz, which cannot be read"),
        (lambda: Text("cat.txt", 100).load(), r"which has 760 characters: give a text of 1212 or more"),
        (lambda: Text("cat.txt", 0), r"data\.source\.length is 0"),
        (lambda: CharTransformer(5, heads=3), r"data\.network\.heads is 3, which does not divide"),
        (lambda: CharGRU(0), r"data\.network\.vocabulary is 0"),
        (lambda: Autoencoder(3, ()), "there must be a code"),
    ],
)
def test_wrong_settings_are_named(source, sentence, monkeypatch):
    monkeypatch.setenv("SCIKIT_LEARN_DATA", "empty")
    with pytest.raises(InvalidInputError, match=sentence):
        source()


@pytest.mark.parametrize("flag", ["--data.source=numbers.csv", "--data.network.vocabulary=3", "--data.loss=NoLoss"])
def test_the_command_line_says_it_in_one_sentence(flag, fails):
    Path("common.yaml").write_text(COMMON)
    Path("task.yaml").write_text(TASKS["gru"])
    assert flag.split("=")[0].split(".")[1] in fails("fit", "--config", "common.yaml", "--config", "task.yaml", flag)
