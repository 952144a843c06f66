"""Files that declare more than they hold, or than memory holds, are refused before memory is taken."""

import gzip
import resource
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy

from lightning_l2l import file_sizes
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees import ImageClassification
from lightning_l2l.optimizees.sources.images import load_npz
from lightning_l2l.optimizees.sources.small_images import SmallImages

MANY = 10**12


@pytest.fixture(autouse=True)
def little_memory():
    """Lets the process take no more than a further gigabyte."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def write_npz(declared: int, zeros: int = 0, compression: int = zipfile.ZIP_DEFLATED) -> None:
    """An .npz with 48 images whose header declares others."""
    with zipfile.ZipFile("images.npz", "w", compression) as file:
        for name, array in {"x_test": np.zeros((12, 8, 8), np.uint8), "y_test": np.zeros(12, np.int64)}.items():
            with file.open(f"{name}.npy", "w") as member:
                np.save(member, array)
        with file.open("y_train.npy", "w") as member:
            np.save(member, np.zeros(48, np.int64))
        with file.open("x_train.npy", "w", force_zip64=True) as member:
            npy.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (declared, 8, 8)})
            member.write(bytes(48 * 64 + zeros))


@pytest.mark.parametrize("declared", [MANY, 10**30, 47, 49])
def test_an_npz_must_hold_what_it_declares(declared):
    write_npz(declared)
    with pytest.raises(InvalidInputError, match=r"images\.npz, whose x_train declares .* save it again"):
        load_npz(Path("images.npz"))


def test_an_npz_must_fit_into_memory(monkeypatch):
    monkeypatch.setattr(file_sizes, "most_bytes", lambda: 1_000_000)
    write_npz(48 + 20_000, 20_000 * 64)
    with pytest.raises(InvalidInputError, match=r"data\.source is images\.npz, whose .* takes .* GiB, but"):
        load_npz(Path("images.npz"))
    assert Path("images.npz").stat().st_size < 100_000


def test_the_limit_is_half_of_the_container(monkeypatch):
    Path("max").write_text("3000\n")
    monkeypatch.setattr(file_sizes, "CONTAINER", Path("max"))
    assert file_sizes.most_bytes() == 1500
    Path("max").write_text("max\n")
    assert file_sizes.most_bytes() > 2**28


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
@pytest.mark.parametrize("zipped", [True, False])
def test_mnist_is_no_larger_than_it_is(name, zipped):
    raw = Path("data") / name / "raw"
    raw.mkdir(parents=True)
    header = struct.pack(">4I", 2051, 4_000_000, 28, 28)
    if zipped:
        with gzip.open(raw / "train-images-idx3-ubyte.gz", "wb", compresslevel=1) as file:
            file.write(header)
            for _ in range(50):
                file.write(bytes(1_000_000))
    else:
        with (raw / "train-images-idx3-ubyte").open("wb") as file:
            file.write(header)
            file.truncate(5 * 10**9)
    root = str(raw.parents[1].absolute())  # another one than that of images which other tests have read
    load = (
        SmallImages(name, root=root).load
        if name != "MNIST"
        else ImageClassification(source="local", horizon=3).prepare_data
    )
    with pytest.raises(InvalidInputError, match=r"train-images-idx3-ubyte.*, which holds more than 47,040,016 bytes"):
        load()


def test_an_idx_file_that_declares_much_is_one_sentence():
    raw = Path("data/MNIST/raw")
    raw.mkdir(parents=True)
    for name, shape in {"images-idx3": (MANY % 2**32, 28, 28), "labels-idx1": (60_000,)}.items():
        for part in ("train", "t10k"):
            header = struct.pack(f">{len(shape) + 1}I", 2048 + len(shape), *shape)
            (raw / f"{part}-{name}-ubyte").write_bytes(header + bytes(1000))
    with pytest.raises(InvalidInputError, match=r"data\.root is data, but MNIST could not be read"):
        ImageClassification(source="local", horizon=3).setup()


@pytest.mark.parametrize("name", ["FashionMNIST", "KMNIST"])
def test_datasets_like_mnist_are_no_larger_either(name):
    raw = Path("data") / name / "raw"
    raw.mkdir(parents=True)
    with (raw / "t10k-labels-idx1-ubyte").open("wb") as file:
        file.truncate(5 * 10**9)
    with pytest.raises(InvalidInputError, match=r"t10k-labels-idx1-ubyte, which holds more than 47,040,016 bytes"):
        ImageClassification(source=name, horizon=3).setup()
