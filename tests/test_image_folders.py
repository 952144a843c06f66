"""Labelled images from folders: which labels they get, and which files are read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_l2l import file_sizes
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees import MLP, ImageClassification
from lightning_l2l.optimizees.sources.image_folders import load_folder

ROOT = Path("images")


def write(names: list[str], mode: str = "L", size: int = 4) -> None:
    """Two pictures a label, as grey as ten times the label's place in the list."""
    for part in ("train", "test"):
        for place, name in enumerate(names):
            folder = ROOT / part / name
            folder.mkdir(parents=True)
            values = np.full((size, size), 10 * place, np.uint8)
            if mode == "I;16":
                values = values.astype(np.uint16) * 257
            for number in range(2):
                Image.fromarray(values).save(folder / f"{number}.png")


@pytest.mark.parametrize("mode", ["L", "I;16"])
@pytest.mark.parametrize("first", [0, 1])
def test_folders_with_numbers_are_these_labels(first, mode):
    write([str(first + n) for n in range(12)], mode)
    images = load_folder(ROOT)
    assert images.labels.unique().tolist() == list(range(first, first + 12))
    assert (images.images[:, 0, 0, 0] == 10 * (images.labels - first)).all()
    chosen = images.relabelled([10, 2])
    grey = {label: set(chosen.images[chosen.labels == label].unique().tolist()) for label in (0, 1)}
    assert grey == {0: {10 * (10 - first)}, 1: {10 * (2 - first)}}
    network = MLP(inputs=48, classes=2)
    data = ImageClassification(network, source=str(ROOT), horizon=2, batch_size=2, labels=[2, 10])
    data.setup()
    assert set(data.images.labels.tolist()) >= {2, 10}


def test_other_folders_are_numbered_in_the_order_of_their_names():
    write(["1", "10", "2", "b", "x", "y"])
    images = load_folder(ROOT)
    assert (images.images[:, 0, 0, 0] == 10 * images.labels).all()


def test_a_label_may_be_any_number():
    write([str(n) for n in (999_999_999, *range(5))])
    images = load_folder(ROOT)
    assert (images.relabelled([999_999_999, 0]).labels >= 0).sum() == 8


def test_notes_and_hidden_folders_are_skipped():
    write([str(n) for n in range(6)])
    (ROOT / "train/3/._0.png").write_bytes(b"Mac OS X")
    (ROOT / "train/3/.DS_Store").write_bytes(b"")
    (ROOT / "train/.ipynb_checkpoints").mkdir()
    assert len(load_folder(ROOT)) == 24


def test_folders_that_cannot_be_used_are_named(monkeypatch):
    write([str(n) for n in range(6)])
    (ROOT / "train/7").mkdir()
    with pytest.raises(InvalidInputError, match=r"data\.source is images, where train/7 holds no image"):
        load_folder(ROOT)
    (ROOT / "train/7").rmdir()
    Image.new("L", (5, 4)).save(ROOT / "test/2/1.png")
    with pytest.raises(InvalidInputError, match=r"test/2/1\.png has 5 x 4 pixels and test/0/0\.png 4 x 4"):
        load_folder(ROOT)
    monkeypatch.setattr(file_sizes, "most_bytes", lambda: 12 * 48 - 1)
    with pytest.raises(InvalidInputError, match=r"data\.source is images, whose train takes"):
        load_folder(ROOT)
