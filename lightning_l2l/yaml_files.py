"""YAML from files and flags, within limits: a short text can stand for more than any memory holds."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from lightning_l2l.errors import InvalidInputError, first_line

MOST_BYTES = 10_000_000  # of a file
MOST_VALUES = 100_000  # of a text, with every alias written out
DEEPEST = 50  # mappings and lists inside one another
NO_NUMBER = re.compile(r"[-+]?\d{20,}|\.(nan|NaN|NAN)")
WHOLE = re.compile(r"[-+]?\d{19}")
PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path, subject: str) -> Any:
    """Reads a YAML file.

    Args:
        path: the file.
        subject: what an error calls it, such as "--config is mine.yaml, which".

    Raises:
        InvalidInputError: it is larger than any config, or its values are too many or endless.
        OSError, UnicodeDecodeError, yaml.YAMLError: it cannot be read, or is not YAML.
    """
    if path.stat().st_size > MOST_BYTES:
        raise InvalidInputError(f"{subject} has more than {MOST_BYTES:,} bytes: give a smaller YAML file.")
    return load_yaml(path.read_text(encoding="utf-8"), subject)


def load_yaml(text: str, subject: str, load: Callable[[str], Any] = yaml.safe_load) -> Any:
    """Loads YAML by ``load``; see ``read_yaml``."""
    check_yaml(text, subject)
    try:
        return load(text)
    except yaml.YAMLError:
        raise
    except Exception as error:  # of a tag, a date or a number that means nothing
        reason = "nesting too deep" if isinstance(error, RecursionError) else first_line(error)
        raise yaml.YAMLError(reason) from error


def check_yaml(text: str, subject: str) -> None:
    """Refuses YAML whose anchors contain themselves or multiply, that is nested too deeply, has NaN, or repeats a key.

    Text that is not YAML passes: whoever loads it says so.

    Raises:
        InvalidInputError: see above; ``subject`` begins the sentence.
    """
    try:
        wrong = _wrong(text) or _repeated(text)
    except yaml.YAMLError:
        return
    if wrong:
        raise InvalidInputError(f"{subject} is YAML that {wrong}.")


def _wrong(text: str) -> str:
    """What is wrong with a text, from its events alone, which take no memory; empty if nothing is."""
    count = 0
    sizes: dict[str, int] = {}  # values under each anchor
    opened: list[tuple[str | None, int]] = []  # anchors of mappings and lists, and the values before them
    for event in yaml.parse(text, PARSER):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in opened):
                return f"contains itself (*{event.anchor}): write it without"
            count += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            sizes[anchor or ""] = count - before
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            sizes[event.anchor or ""] = 1
            if event.implicit[0] and _is_no_number(event.value):
                return f"has {event.value[:40]} in line {event.start_mark.line + 1}: give a number within 64 bits"
            if "&" in event.value and "*" in event.value and event.value != text:  # a setting's text is YAML, too
                check_yaml(event.value, "a text in it")
        if count > MOST_VALUES:
            return f"stands for more than {MOST_VALUES:,} values: write fewer"
        if len(opened) > DEEPEST:
            return f"is nested more than {DEEPEST} levels deep: write it flatter"
    return ""


def _is_no_number(text: str) -> bool:
    """Whether a text means NaN, or a whole number of more than 64 bits."""
    return bool(NO_NUMBER.fullmatch(text)) or (bool(WHOLE.fullmatch(text)) and not -(2**63) <= int(text) < 2**63)


def _repeated(text: str) -> str:
    """What is wrong with a mapping that has a key twice, of which the first would be lost; empty if none has."""
    nodes, seen = [yaml.compose(text, PARSER)], set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
            continue
        keys = set()
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "<<"  # which may stand several times
            if name in keys and name != "<<":
                return f"has the key {name[:40]} again in line {key.start_mark.line + 1}: give each once"
            keys.add(name)
            nodes.append(value)
    return ""
