"""C++ kernels, compiled once on the machine that runs them, with whichever compiler it has."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

import torch

from lightning_l2l.errors import first_line
from lightning_l2l.rules.fast import machine
from lightning_l2l.whole_files import remove_leftovers, replacing

log = logging.getLogger(__name__)

# Rounding stays that of IEEE 754, except that multiply-adds may be fused.
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-shared", "-fPIC")
# The processor's features as torch found them, as compiler flags: several machines may share the cache folder.
VECTORS = {"AVX512": ("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma"), "AVX2": ("-mavx2", "-mfma")}


@cache
def load_kernel(source: Path, **macros: int) -> ctypes.CDLL | None:
    """Returns the compiled library; logs the reason and returns None if no compiler can build it.

    It is kept in ``$XDG_CACHE_HOME/lightning_l2l`` (``~/.cache`` by default) for the next time. The file's name ends
    with a digest of its contents, so that a damaged file is found out and compiled anew before anything in it runs.

    Args:
        source: a C++ file whose functions are ``extern "C"``.
        macros: constants it is compiled with.
    """
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    if compiler is None:
        log.info("No C++ compiler was found: rules run without kernels, at about a third of the speed.")
        return None
    defined = [f"-D{name.upper()}={value}" for name, value in macros.items()]
    flags = [*FLAGS, *VECTORS.get(torch.backends.cpu.get_cpu_capability(), ()), *defined]
    try:
        identity = os.fsencode("\n".join([platform.machine(), platform.system(), compiler, *flags]))
        folder, stem = cache_folder(), f"{source.stem}-{digest(source.read_bytes() + identity)}"
        return _kept(folder, stem) or ctypes.CDLL(str(_compile([compiler, *flags, str(source)], folder, stem)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        log.info(
            "The kernel %s could not be compiled, so its rule runs at about a third of the speed (%s).",
            source.name,
            _reason(error),
        )
        return None


def load_cpu_kernel(source: Path, device: torch.device, dtype: torch.dtype) -> ctypes.CDLL | None:
    """As ``load_kernel``, if kernels may be used and tensors of this device and type are what they take."""
    if (device.type, dtype) != ("cpu", torch.float32) or not machine.compiled():
        return None
    return load_kernel(source)


def cache_folder() -> Path:
    """Where compiled kernels are kept.

    Raises:
        RuntimeError: ``XDG_CACHE_HOME`` is not set, and there is no home folder either.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "lightning_l2l"


def digest(contents: bytes) -> str:
    """What tells a file's contents from others in its name."""
    return hashlib.sha256(contents).hexdigest()[:16]


def _kept(folder: Path, stem: str) -> ctypes.CDLL | None:
    """A library that was compiled before; damaged files are removed, and one of another system is left alone."""
    for library in sorted(folder.glob(f"{stem}-*.so")):
        if library.name != f"{stem}-{digest(library.read_bytes())}.so":
            library.unlink(missing_ok=True)
            continue
        try:
            return ctypes.CDLL(str(library))
        except OSError:  # machines with other system libraries may share the folder
            continue
    return None


def _compile(command: list[str], folder: Path, stem: str) -> Path:
    """Compiles a library into the folder and returns its path."""
    began = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder, age=3600)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "kernel.so"
        subprocess.run([*command, "-o", str(made)], check=True, capture_output=True, timeout=120)
        contents = made.read_bytes()
    library = folder / f"{stem}-{digest(contents)}.so"
    with replacing(library) as part:
        part.write_bytes(contents)
    log.info("Compiled a kernel in %.1f s; it is kept in %s.", time.perf_counter() - began, folder)
    return library


def _reason(error: Exception) -> str:
    """Why a kernel could not be compiled, in one line: a compiler's words may be in any encoding, or none."""
    said = getattr(error, "stderr", None) or b""
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[0] if lines else first_line(error)
