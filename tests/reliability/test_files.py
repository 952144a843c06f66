"""Files with bytes changed, numbers altered, or something else in their place: refused in one sentence, or harmless."""

import io
import json
import pickle
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import tiny
from safetensors import safe_open
from safetensors.torch import save_file

from lightning_l2l.rules.files import KEY
from reliability.damaged_files import KINDS, write_idx_files
from reliability.forks import Ended, Forks
from reliability.mutations import NOT_FINITE, NUMBERS, damaged, mutated
from reliability.outcomes import differences, not_finite, outcome

WAYS = ["damaged", "damaged", "damaged", "altered", "altered", "foreign"]


class Touch:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        import os

        return os.system, ("touch canary",)


@pytest.fixture(scope="module")
def run(forks: Forks, tmp_path_factory) -> Path:
    """The folder of a small run, with its rule, its kernels and the files of MNIST."""
    folder = tmp_path_factory.mktemp("run")
    ended = forks.run(tiny("fit"), folder, XDG_CACHE_HOME="cache")
    assert ended.status == 0, ended.output
    checkpoint = folder / "runs/quadratic/version_0/checkpoints/best.ckpt"
    forks.run(["export", f"--ckpt_path={checkpoint}", "--output=rule.safetensors"], folder)
    assert (folder / "rule.safetensors").exists()
    write_idx_files(folder / "idx")
    return folder


@pytest.fixture(scope="module")
def undamaged(forks: Forks, run: Path, tmp_path_factory) -> Callable[[str], dict[str, Any]]:
    """The results of the command that reads a kind of file, where the file is whole."""
    known: dict[str, dict[str, Any]] = {}

    def get(name: str) -> dict[str, Any]:
        if name not in known:
            folder = tmp_path_factory.mktemp("undamaged")
            KINDS[name].write(run, folder)
            ended = forks.run(KINDS[name].command, folder, **KINDS[name].environment)
            assert ended.status == 0, ended.output
            known[name] = results(folder, ended)
            shutil.rmtree(folder)
        return known[name]

    return get


def test_a_damaged_file_is_refused_in_a_sentence_or_changes_nothing(seed, forks, run, undamaged, count, tmp_path):
    choices = random.Random(seed)
    name = list(KINDS)[seed % len(KINDS)]
    kind = KINDS[name]
    expected = undamaged(name) if kind.checked else {}
    file = kind.write(run, tmp_path)
    way = choices.choice(WAYS if file.suffix in ALTER else ["damaged", "foreign"])
    size = file.stat().st_size
    change(file, way, choices)
    print(f"{name} is {way}: {size} bytes, {file.stat().st_size} now")
    ended = forks.run(kind.command, tmp_path, **kind.environment)
    assert not list(tmp_path.rglob("canary"))
    assert ended.fault == ""
    count("refused" if ended.status else "read")
    if ended.status:
        return
    found = results(tmp_path, ended)
    if "fit" in kind.command:
        assert not_finite(tmp_path) == []
    assert not re.search(r"\b(nan|inf)\b", " ".join(found["printed"]))
    if way != "altered" and kind.checked:
        assert differences(found, expected) == []


def results(folder: Path, ended: Ended) -> dict[str, Any]:
    """What a command says and leaves."""
    tables = {str(file.name): file.read_text() for file in folder.glob("runs/*/*/results.csv")}
    return outcome(folder) | tables | {"printed": [line for line in ended.output.splitlines() if "│" in line]}


def change(file: Path, way: str, choices: random.Random) -> None:
    """Damages a file's bytes, alters what it means, or puts another kind of file in its place."""
    if way == "altered":
        ALTER[file.suffix](file, choices)
    elif way == "foreign":
        file.write_bytes(choices.choice([pickled, saved, object_array, lambda: b"text\n"])())
    else:
        file.write_bytes(damaged(file.read_bytes(), choices))


def pickled() -> bytes:
    return pickle.dumps({"state_dict": Touch()})


def saved() -> bytes:
    stream = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(1)}, "pytorch-lightning_version": "2.6", "loops": Touch()}, stream)
    return stream.getvalue()


def object_array() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **{f"{x}_{part}": np.array([Touch()] * 24) for x in "xy" for part in ("train", "test")})
    return stream.getvalue()


def alter_checkpoint(file: Path, choices: random.Random) -> None:
    """Another value somewhere in a checkpoint, in a file that is whole."""
    checkpoint = torch.load(file, weights_only=True)
    if choices.random() < 0.5:
        changed, _, _ = mutated(checkpoint, choices)
    else:
        changed = checkpoint
        optimizer = changed["optimizer_states"][0]["state"].values()
        tensors = [*changed["state_dict"].values(), *(value for state in optimizer for value in state.values())]
        alter_tensor(choices.choice(tensors), choices)
    torch.save(changed, file)


def alter_rule(file: Path, choices: random.Random) -> None:
    """Another number or setting in a rule's file."""
    with safe_open(file, "pt") as opened:
        header = dict(opened.metadata())
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    if choices.random() < 0.5:
        header[KEY] = json.dumps(mutated(json.loads(header[KEY]), choices)[0])
    else:
        alter_tensor(choices.choice(list(tensors.values())), choices)
    save_file(tensors, file, header)


def alter_npz(file: Path, choices: random.Random) -> None:
    """Arrays of another type or shape."""
    arrays = dict(np.load(file))
    name = choices.choice(list(arrays))
    types = [">f4", "f2", "f8", "g", "i1", "u4", ">i8", "c8", "?", "U3", "M8[s]", "S2", "b1"]
    values: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda a: a.astype(choices.choice(types)),
        lambda a: np.where(np.arange(a.size).reshape(a.shape) == 3, np.nan, a.astype("f4")),
        lambda a: a.reshape(-1, 2),
        lambda a: a[:5],
        lambda a: a[..., None, None],
        lambda a: np.array(a[0]),
        lambda a: a.astype("i8") - 9,
    ]
    np.savez(file, **arrays | {name: choices.choice(values)(arrays[name])})


def alter_tensor(tensor: torch.Tensor, choices: random.Random) -> None:
    tensor.view(-1)[choices.randrange(tensor.numel())] = float(choices.choice([*NUMBERS[:-4], *NOT_FINITE]))


ALTER = {".ckpt": alter_checkpoint, ".safetensors": alter_rule, ".npz": alter_npz}
