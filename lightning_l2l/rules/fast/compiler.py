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

from lightning_l2l.rules.fast import machine

log = logging.getLogger(__name__)

# Rounding stays that of IEEE 754, except that multiply-adds may be fused.
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-shared", "-fPIC")
# The processor's features as torch found them, as compiler flags: several machines may share the cache folder.
VECTORS = {"AVX512": ("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma"), "AVX2": ("-mavx2", "-mfma")}


@cache
def load_kernel(source: Path, **macros: int) -> ctypes.CDLL | None:
    """Returns the compiled library; logs the reason and returns None if no compiler can build it.

    It is kept in ``$XDG_CACHE_HOME/lightning_l2l`` (``~/.cache`` by default) for the next time.

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
    identity = "\n".join([source.read_text(), platform.machine(), platform.system(), compiler, *flags])
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lightning_l2l"
    library = folder / f"{source.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    try:
        if not library.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _compile([compiler, *flags, str(source)], library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[0]
        log.info(
            "The kernel %s could not be compiled, so its rule runs at about a third of the speed (%s).",
            source.name,
            reason,
        )
        return None


def load_cpu_kernel(source: Path, device: torch.device, dtype: torch.dtype) -> ctypes.CDLL | None:
    """As ``load_kernel``, if kernels may be used and tensors of this device and type are what they take."""
    if (device.type, dtype) != ("cpu", torch.float32) or not machine.compiled():
        return None
    return load_kernel(source)


def _compile(command: list[str], library: Path) -> None:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        subprocess.run([*command, "-o", str(made)], check=True, capture_output=True, text=True, timeout=120)
        os.replace(made, library)  # atomic, since another process may do the same
    log.info("Compiled a kernel in %.1f s; it is kept in %s.", time.perf_counter() - began, library.parent)
