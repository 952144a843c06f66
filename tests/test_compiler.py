"""Kernels are compiled once, kept whole, and never loaded from a damaged file."""

import ctypes
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import skip

from lightning_l2l.rules import CoordinatewiseLSTM, fastest
from lightning_l2l.rules.fast.compiler import cache_folder, digest, load_kernel
from lightning_l2l.rules.fast.sliced import Sliced

LARGE = torch.zeros(2, 10_000)
SOURCE = 'extern "C" int answer() { return NUMBER; }'


@pytest.fixture
def cache(tmp_path, monkeypatch, caplog) -> Path:
    """An empty folder of kernels; what is logged of it is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_kernel.cache_clear()
    caplog.set_level(logging.INFO, "lightning_l2l")
    yield tmp_path / "cache" / "lightning_l2l"
    load_kernel.cache_clear()


def small_kernel(number: int = 42) -> ctypes.CDLL | None:
    """A kernel that takes no time to compile, as a new process would load it."""
    source = Path("small.cpp")
    source.write_text(SOURCE)
    load_kernel.cache_clear()
    return load_kernel(source, number=number)


@pytest.fixture
def compiled(cache, caplog) -> Path:
    """The file of the small kernel, which nothing has loaded."""
    small_kernel()
    if not cache.is_dir():
        skip("there is no C++ compiler")
    (library,) = cache.iterdir()
    contents = library.read_bytes()
    library.unlink()  # the loaded one lives on
    library.write_bytes(contents)
    caplog.clear()
    return library


def test_a_kernel_is_compiled_once(compiled, cache, caplog):
    assert small_kernel().answer() == 42
    assert not caplog.text
    assert list(cache.iterdir()) == [compiled]
    assert small_kernel(7).answer() == 7
    assert "Compiled a kernel in" in caplog.text


@pytest.mark.parametrize("damage", ["truncated", "empty", "zeroed", "foreign", "one bit"])
def test_a_damaged_kernel_is_compiled_anew(compiled, cache, caplog, damage):
    contents = bytearray(compiled.read_bytes())
    contents[len(contents) // 2] ^= 1
    other = {"truncated": contents[: len(contents) // 2], "empty": b"", "zeroed": bytes(len(contents))}
    other |= {"foreign": Path(sys.executable).read_bytes(), "one bit": contents}
    compiled.write_bytes(other[damage])
    assert small_kernel().answer() == 42
    assert "Compiled a kernel in" in caplog.text
    caplog.clear()
    assert small_kernel().answer() == 42
    assert not caplog.text
    assert len(list(cache.iterdir())) == 1


def test_a_kernel_that_another_system_made_is_left_alone(compiled, cache, caplog):
    elsewhere = b"made for another processor"
    path = compiled.with_name(f"{compiled.name.rpartition('-')[0]}-{digest(elsewhere)}.so")
    path.write_bytes(elsewhere)
    assert small_kernel().answer() == 42
    assert path.exists() and not caplog.text


def test_what_killed_processes_left_is_removed(compiled, cache):
    left = cache / ".1.part.small-1-2.so"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    assert small_kernel(8).answer() == 8
    assert not left.exists()


def test_without_a_compiler_the_eager_way_is_taken(cache, caplog, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert isinstance(fastest(CoordinatewiseLSTM(), LARGE), Sliced)
    assert "No C++ compiler was found" in caplog.text


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("printf 'kein Prozessor f\\374r mich\\n' >&2; exit 1", "kein Prozessor f\ufffdr mich"),
        ("exit 1", "exit status 1"),
        ("printf ' \\n' >&2; exit 1", "exit status 1"),
        ("exit 0", "No such file"),
        (": > kernel.so; shift $(($# - 1)); printf nonsense > $1", "small"),
    ],
    ids=["not UTF-8", "no stderr", "blank stderr", "no file", "no library"],
)
def test_a_compiler_that_fails_is_told_of(cache, caplog, monkeypatch, tmp_path, script, words):
    compiler = tmp_path / "c++"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert small_kernel() is None
    (record,) = [record for record in caplog.records if "could not be compiled" in record.message]
    assert words in record.message and "\n" not in record.message


def test_a_cache_that_cannot_be_written_is_told_of(cache, caplog, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert small_kernel() is None
    assert "could not be compiled" in caplog.text


@pytest.mark.parametrize("given", ["cache", ""])
def test_a_home_folder_is_needed_only_without_a_cache_folder(cache, caplog, monkeypatch, given):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    if given:
        assert cache_folder() == Path("cache/lightning_l2l")
    else:
        assert small_kernel() is None
        assert "Could not determine home directory" in caplog.text


def test_a_damaged_kernel_does_not_end_the_process(cache):
    """The LSTM's own, as a process of its own loads it."""
    program = (
        "from lightning_l2l.rules import CoordinatewiseLSTM\n"
        "import torch\n"
        "rule = CoordinatewiseLSTM(hidden_size=4, num_layers=1, preprocessing=None)\n"
        "print(rule.compiled(torch.zeros(1, 1), 1) is not None)"
    )
    for run in range(2):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        if done.stdout.strip() != "True":
            skip("there is no C++ compiler")
        for library in cache.iterdir() if run == 0 else ():
            os.truncate(library, library.stat().st_size // 3)
