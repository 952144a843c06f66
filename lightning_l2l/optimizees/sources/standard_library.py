"""Python's own standard library as a text."""

import platform
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from lightning_l2l.optimizees.sources.base import Source
from lightning_l2l.optimizees.sources.text import TextWindows, window_ranges

MODULES = ("argparse", "ast", "dataclasses", "difflib", "inspect", "pathlib", "subprocess", "tarfile", "typing")
ALPHABET = "\n abcdefghijklmnopqrstuvwxyz_.,:()[]='\"#-0"  # 0 stands for all digits, and one number more for the rest
VOCABULARY = len(ALPHABET) + 1


@dataclass(frozen=True)
class StandardLibrary(Source):
    """The sources of nine modules of the running Python, in lower case, as 42 different characters.

    They are split as ``Text`` splits a file.

    Args:
        length: L, characters in a window; the targets are the characters that follow each of them.
    """

    length: int = 12

    @property
    def found(self) -> str:
        """Whose library it is."""
        return f"the sources of Python {platform.python_version()}"

    def load(self) -> TextWindows:
        """Reads the modules."""
        characters = _characters()
        ranges = window_ranges(len(characters), self.length)
        return TextWindows(characters, self.length, ranges, f"{self.found}, {self.length} characters in a window")


@cache
def _characters() -> torch.Tensor:
    texts = [Path(str(find_spec(name).origin)).read_text(encoding="utf-8") for name in MODULES]  # type: ignore[union-attr]
    codes = np.frombuffer("".join(texts).lower().encode("utf-32-le"), dtype=np.uint32)
    numbers = np.full(128, len(ALPHABET))
    numbers[[ord(character) for character in ALPHABET]] = np.arange(len(ALPHABET))
    numbers[ord("0") : ord("9") + 1] = ALPHABET.index("0")
    return torch.from_numpy(numbers[np.minimum(codes, 127)])
