"""Files of each kind that the command line reads, each with the command that reads it."""

import gzip
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from command_line import tiny
from PIL import Image

SMALL = [*("--data.episodes_per_batch=2", "--data.train_episodes=2", "--data.val_episodes=2"), "--trainer.max_epochs=1"]
NETWORK = "--data.network={{class_path: lightning_l2l.optimizees.MLP, init_args: {{inputs: {}, hidden_sizes: [2]}}}}"
NO_RACE = "--comparison.baselines=[]"
PICTURES = (".png", ".jpg", ".bmp", ".tiff", ".gif", ".webp", ".ppm")


def fit_images(source: str, inputs: int) -> list[str]:
    return tiny("fit", *SMALL, NO_RACE, NETWORK.format(inputs), f"--data.source={source}", config="mnist.yaml")


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        write: writes it and what it needs into a folder, from the folder of a small run; returns its path.
        command: the command line that reads it.
        checked: whether every change of its bytes can be noticed, so that none may change the results.
        environment: variables for the command.
    """

    write: Callable[[Path, Path], Path]
    command: list[str]
    checked: bool = True
    environment: dict[str, str] = field(default_factory=dict)


def a_checkpoint(run: Path, folder: Path) -> Path:
    shutil.copytree(run / "runs", folder / "runs")
    return next(folder.glob("runs/*/version_0/checkpoints/last.ckpt"))


def a_rule(run: Path, folder: Path) -> Path:
    return Path(shutil.copy(run / "rule.safetensors", folder))


def an_npz(run: Path, folder: Path) -> Path:
    random = np.random.default_rng(0)
    images = {f"x_{part}": random.integers(256, size=(24, 8, 8), dtype=np.uint8) for part in ("train", "test")}
    labels = {f"y_{part}": random.integers(10, size=24) for part in ("train", "test")}
    np.savez_compressed(folder / "images.npz", **images, **labels)
    return folder / "images.npz"


def idx_files(name: str, zipped: bool) -> Callable[[Path, Path], Path]:
    def write(run: Path, folder: Path) -> Path:
        raw = folder / "data/MNIST/raw"
        raw.mkdir(parents=True)
        for file in (run / "idx").iterdir():
            if file.name.startswith(name) and zipped == (file.suffix == ".gz"):
                shutil.copy(file, raw)
            elif not file.name.startswith(name) and not file.suffix:
                (raw / file.name).symlink_to(file)
        return next(raw.glob(f"{name}*"))

    return write


def write_idx_files(folder: Path) -> None:
    """The four files of MNIST, with random labels on black."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        labels = random.integers(10, size=count, dtype=np.uint8).tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, count) + labels)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 2051, count, 28, 28) + bytes(count * 784))
    labels = (folder / "t10k-labels-idx1-ubyte").read_bytes()
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def a_picture_file(suffix: str) -> Kind:
    def write(run: Path, folder: Path) -> Path:
        for number in range(32):
            place = folder / "pictures" / ("train", "test")[number % 2] / str(number // 2 % 2)
            place.mkdir(parents=True, exist_ok=True)
            picture(8, number).save(place / f"{number}{suffix}")
        return folder / f"pictures/train/1/2{suffix}"

    return Kind(write, fit_images("pictures", 192), checked=False)


def a_style(run: Path, folder: Path) -> Path:
    picture(24, 0).save(folder / "style.jpg")
    return folder / "style.jpg"


def picture(size: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(256, size=(size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def a_cached_result(run: Path, folder: Path) -> Path:
    shutil.copytree(run / "runs", folder / "runs")
    return min((folder / "runs/baselines").iterdir())


def a_kernel(run: Path, folder: Path) -> Path:
    kept = shutil.copytree(run / "cache", folder / "cache")
    return next(kept.rglob("*.so"))


KINDS = {
    "checkpoint, resumed": Kind(a_checkpoint, tiny("fit", "--ckpt_path=last", "--trainer.max_epochs=3")),
    "checkpoint, validated": Kind(a_checkpoint, tiny("validate", "--ckpt_path=last")),
    "rule": Kind(a_rule, tiny("validate", "--ckpt_path=pretrained:rule.safetensors")),
    ".npz": Kind(an_npz, fit_images("images.npz", 64)),
    "cache": Kind(a_cached_result, tiny("test", "--ckpt_path=best")),
    "kernel": Kind(a_kernel, tiny("fit", NO_RACE), environment={"XDG_CACHE_HOME": "cache"}),
    "IDX": Kind(idx_files("train-labels", zipped=False), fit_images("local", 784), checked=False),
    "IDX, zipped": Kind(idx_files("t10k-labels", zipped=True), fit_images("local", 784)),
    **{f"{suffix} of a folder": a_picture_file(suffix) for suffix in PICTURES},
    "style": Kind(a_style, tiny("validate", "--data.style=style.jpg", config="neural_art.yaml"), checked=False),
}
