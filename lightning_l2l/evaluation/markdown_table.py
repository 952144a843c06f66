"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """Writes a table.

    Args:
        titles: of its columns.
        rows: the cells of each line.
        left: how many columns are flush left, the first ones; the others, of numbers, are flush right.
    """
    rule = "|---" * left + "|---:" * (len(titles) - left) + "|"
    return "\n".join([_line(titles), rule, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells).replace("\n", " ") + " |"
