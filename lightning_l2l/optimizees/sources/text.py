"""A text as characters, of which a network learns to predict the next."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_l2l.errors import InvalidInputError, first_line, require_positive
from lightning_l2l.file_sizes import require_room
from lightning_l2l.optimizees.sources.base import Examples, Source


@dataclass(eq=False, repr=False)
class TextWindows(Examples):
    """Windows of a text; row i starts at character i.

    Attributes:
        characters: the whole text as numbers from 0, [M], int64.
        length: L, characters in a window.
        ranges: first and last + 1 start of the windows of train, val and test.
        source: where the text came from, in words.
    """

    characters: Tensor
    length: int
    ranges: dict[str, tuple[int, int]]
    source: str

    items = "windows"

    def minibatch(self, indices: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns the characters of each window, [..., L], and the one that follows each of them, [..., L]."""
        places = indices[..., None] + torch.arange(self.length + 1, device=indices.device)
        characters = self.characters[places]
        return characters[..., :-1], characters[..., 1:]

    def extreme_rows(self) -> np.ndarray:
        ends = torch.stack([self.characters.argmax(), self.characters.argmin()])
        return ends.clamp(max=len(self) - self.length - 1).numpy()


class Text(Source):
    """A text file, read as characters: the first five sixths to train on, a twelfth each for validation and test.

    The parts are stretches of the text that share no character. Characters are numbered in the order of their code
    points, over the whole text.

    Args:
        path: a file in UTF-8.
        length: L, characters in a window; inputs are L characters, and targets the character that follows each of them.
    """

    def __init__(self, path: str, length: int = 32) -> None:
        require_positive("data.source.length", length)
        self.path = Path(path)
        self.length = length

    def load(self) -> TextWindows:
        """Reads the file.

        Raises:
            InvalidInputError: it is not there, is not a text in UTF-8, or is too short.
        """
        try:
            require_room(f"data.source.path is {self.path}, which", 16 * self.path.stat().st_size)
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(
                f"data.source.path is {self.path}, which cannot be read as a text ({first_line(error)}): give the path "
                "of a file in UTF-8."
            ) from error
        return split_text(text, self.length, self.path.name, "data.source.path")


def split_text(text: str, length: int, name: str, key: str) -> TextWindows:
    """Numbers a text's characters, and splits it as ``Text`` says.

    Args:
        text: the whole of it.
        length: L, characters in a window.
        name: where it came from, in words.
        key: the setting that an error names.

    Raises:
        InvalidInputError: it is too short.
    """
    least = 12 * (length + 1)
    if len(text) < least:
        raise InvalidInputError(
            f"{key} is {name}, which has {len(text)} characters: give a text of {least} or more, or a smaller "
            "data.source.length."
        )
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    vocabulary, characters = np.unique(codes, return_inverse=True)
    source = f"{name}, {len(vocabulary)} different characters, {length} in a window"
    numbers = torch.from_numpy(characters.astype(np.int64))
    return TextWindows(numbers, length, window_ranges(len(text), length), source)


def window_ranges(count: int, length: int) -> dict[str, tuple[int, int]]:
    """The starts of the windows of each part of a text, as ``Text`` splits it.

    Args:
        count: characters in the text.
        length: L, characters in a window.
    """
    ends = [0, count - 2 * (count // 12), count - count // 12, count]
    parts = zip(("train", "val", "test"), ends, ends[1:], strict=False)
    return {part: (first, end - length) for part, first, end in parts}
