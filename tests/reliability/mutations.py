"""Random changes of settings and of bytes."""

import copy
import json
import math
import random
from typing import Any

FOREIGN = [  # what a class path must never run; each would touch the file canary
    ("subprocess.Popen", {"args": "touch canary", "shell": True}),
    ("subprocess.call", {"args": "touch canary", "shell": True}),
    ("os.system", {"command": "touch canary"}),
    ("builtins.open", {"file": "canary", "mode": "w"}),
    ("builtins.exec", {"source": "open('canary', 'w')"}),
    ("pathlib.Path.touch", {"self": "canary"}),
    ("logging.FileHandler", {"filename": "canary"}),
    ("zipfile.ZipFile", {"file": "canary", "mode": "w"}),
]
CLASSES = [  # classes that exist, and stand at the wrong place
    *("torch.nn.Linear", "torch.nn.Module", "torch.optim.Adam", "pytorch_lightning.Trainer", "builtins.dict"),
    *("lightning_l2l.rules.SGD", "lightning_l2l.optimizees.Quadratics", "lightning_l2l.meta_gradients.Exact"),
    *(
        "lightning_l2l.learners.MetaLearner",
        "lightning_l2l.rules.NoSuchRule",
        "no.such.Class",
        "lightning_l2l",
        "",
        "..",
    ),
]
NOT_FINITE = [math.nan, math.inf, -math.inf]
NUMBERS = [0, -1, -7, 1, 0.5, 3, 1e-30, 1e30, -1e30, 10**6, 10**9, 2**63, 1e-320, 10**400, *NOT_FINITE]
OTHERS = [
    *("text", "", "null", "1e3", "$x$", "é\u0000", "a/b", "~", "0x10", "1_000", "12:30", "*x", "&x", "{", "x" * 5000),
    *(True, False, None, [], {}, [1, 2], [[]], {"a": 1}, {"init_args": {}}, {"class_path": None}, [None], {"": 1}),
]

Path = tuple[Any, ...]
"""Keys and numbers that lead to a value."""


def leaves(settings: Any, path: Path = ()) -> list[Path]:
    """The paths of all values inside of settings, mappings and lists included."""
    if isinstance(settings, list):
        settings = dict(enumerate(settings))
    if not isinstance(settings, dict):
        return []
    return [each for key, value in settings.items() for each in [(*path, key), *leaves(value, (*path, key))]]


def value_at(settings: Any, path: Path, default: Any = None) -> Any:
    """The value that a path leads to."""
    for key in path:
        try:
            settings = settings[key]
        except (KeyError, IndexError, TypeError):
            return default
    return settings


def mutated(settings: dict[str, Any], choices: random.Random) -> tuple[dict[str, Any], Path, Any]:
    """Settings with a value deleted or replaced; where it is, and what is there now (``...`` for nothing)."""
    settings = copy.deepcopy(settings)
    path = choices.choice(leaves(settings))
    parent = value_at(settings, path[:-1])
    value = replacement(value_at(settings, path), choices)
    if value is ...:
        del parent[path[-1]]
    elif choices.random() < 0.05 and isinstance(parent, dict):
        path = (*path[:-1], f"{path[-1]}s")  # a key that does not exist
        parent[path[-1]] = value
    else:
        parent[path[-1]] = value
    return settings, path, value


def replacement(value: Any, choices: random.Random) -> Any:
    """Another value for a setting."""
    kind = choices.choice(["delete", "number", "number", "other", "other", "foreign", "class"])
    if kind == "delete":
        return ...
    if kind == "number":
        return choices.choice(NUMBERS)
    if kind == "other":
        return choices.choice(OTHERS)
    if kind == "class":
        name = choices.choice(CLASSES)
        return name if isinstance(value, str) else {"class_path": name}
    name, arguments = choices.choice(FOREIGN)
    return {"class_path": name, "init_args": arguments} if choices.random() < 0.8 else name


def as_flag(path: Path, value: Any) -> str:
    """A flag that gives a setting."""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"--{'.'.join(map(str, path))}={text}"


def mutated_text(text: str, choices: random.Random) -> str:
    """A text with some of its characters or lines changed."""
    place = choices.randrange(len(text))
    lines = text.splitlines(keepends=True)
    line = choices.randrange(len(lines))
    return choices.choice(
        [
            text[:place],
            text[:place] + choices.choice("\t\0:{}[]&*!|>%@`'\"#-\ufeff") + text[place:],
            text[:place] + text[place + choices.randint(1, 30) :],
            "".join([*lines[:line], lines[choices.randrange(len(lines))], *lines[line:]]),
            "".join([*lines[:line], *lines[line + 1 :]]),
            "".join([*lines[:line], "  ", *lines[line:]]),
            text + choices.choice(["&a [*a]\n", "!!python/object/apply:os.system ['touch canary']\n", "---\n", text]),
        ]
    )


def damaged(content: bytes, choices: random.Random) -> bytes:
    """A file's content with some of its bytes changed."""
    size = len(content)
    first = choices.randrange(size)
    end = min(size, first + choices.choice([1, 4, 64, 4096]))
    kind = choices.choice(["flip", "flip", "flip", "cut", "zero", "repeat", "remove", "append", "empty", "random"])
    if kind == "flip":
        changed = bytearray(content)
        for _ in range(choices.choice([1, 1, 8, 100])):
            changed[choices.randrange(size)] ^= 1 << choices.randrange(8)
        return bytes(changed)
    return {
        "cut": content[:first],
        "zero": content[:first] + bytes(end - first) + content[end:],
        "repeat": content[:end] + content[first:],
        "remove": content[:first] + content[end:],
        "append": content + choices.randbytes(100),
        "empty": b"",
        "random": content[:first] + choices.randbytes(end - first) + content[end:],
    }[kind]
