"""A text that an installed package carries, so that it is there offline."""

from importlib import resources

from lightning_l2l.errors import InvalidInputError, first_line, require_positive
from lightning_l2l.optimizees.sources.base import Source
from lightning_l2l.optimizees.sources.text import TextWindows, split_text


class PackageText(Source):
    """Text files of an installed package, one after the other, split as ``Text`` splits a file.

    Args:
        package: its name, such as sklearn. The text is that of the installed version.
        files: a pattern of file names in it, such as datasets/descr/*.rst; they are joined in the order of their names.
        length: L, characters in a window.
    """

    def __init__(self, package: str, files: str, length: int = 32) -> None:
        require_positive("data.source.length", length)
        self.package = package
        self.files = files
        self.length = length

    def load(self) -> TextWindows:
        """Reads the files.

        Raises:
            InvalidInputError: the package is not installed, has no such files in UTF-8, or they are too short.
        """
        try:
            with resources.as_file(resources.files(self.package)) as folder:
                text = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob(self.files)))
        except (ImportError, NotImplementedError, OSError, TypeError, ValueError) as error:
            raise InvalidInputError(
                f"data.source.package is {self.package}, whose files {self.files} cannot be read "
                f"({first_line(error)}): install the package, or name another."
            ) from error
        return split_text(text, self.length, f"{self.package} {self.files}", "data.source.files")
