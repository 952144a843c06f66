"""Descriptions of what a cached result depends on: settings, numbers and source code of the objects that made it."""

import ast
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_l2l import unroll
from lightning_l2l.digests import content
from lightning_l2l.evaluation import tuning

OF_MODULES = frozenset(vars(nn.Module()))  # what every module has
FOREIGN = ("torch", "builtins", "abc", "typing")  # packages whose code nobody edits
PACKAGE = Path(unroll.__file__).parent
OWN = PACKAGE / "evaluation"
STANDARD = Path(sysconfig.get_path("stdlib"))  # the folder of Python's own modules


def settings_of(rule: nn.Module) -> list[tuple[str, str]]:
    """A rule's settings and its learned numbers, by name."""
    found = []
    for name, module in rule.named_modules():
        found.append((f"{name} class", f"{type(module).__module__}.{type(module).__qualname__}"))
        own = {key: value for key, value in vars(module).items() if key not in OF_MODULES}
        found += [(f"{name}.{key}", _printed(value)) for key, value in sorted(own.items())]
    found += [(name, content(value)) for name, value in (*rule.named_parameters(), *rule.named_buffers())]
    return found


def source_of(*objects: object) -> str | None:
    """A digest of the source files of classes, given or those of the objects, and of their base classes.

    The digest also covers the modules that these import, such as a rule's steppers, unless Python or an installed
    package has them, and the kernels beside them; not what the benchmark's own files import.

    Returns:
        None if a class has no source file, as in a notebook: then a change cannot be detected.
    """
    modules = [part for one in objects for part in (one.modules() if isinstance(one, nn.Module) else (one,))]
    given = [module if isinstance(module, type) else type(module) for module in modules]
    classes = {base for one in given for base in one.__mro__}
    classes = {one for one in classes if one.__module__.partition(".")[0] not in FOREIGN}
    try:
        files = {Path(inspect.getfile(one)) for one in classes}
        files |= _with_imports(file for file in files if not file.is_relative_to(OWN))
        files |= {Path(inspect.getfile(one)) for one in (unroll, tuning)}
        digests = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    except (OSError, TypeError, SyntaxError, IndexError):  # the last of an import that leaves all folders
        return None
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _with_imports(files: Iterable[Path]) -> set[Path]:
    """Files, the modules that they import, however indirectly, and the kernels beside the package's."""
    found: set[Path] = set()
    left = set(files)
    while left:
        file = left.pop()
        found.add(file)
        left |= _imports(file, file.read_bytes()) - found
    return found.union(*(file.parent.glob("*.cpp") for file in found if file.is_relative_to(PACKAGE)))


@cache
def _imports(file: Path, source: bytes) -> frozenset[Path]:
    """The modules that a source file imports, anywhere in it: the package's and those that nobody installed.

    The package's own packages do not count, since they only gather their modules.
    """
    found: set[Path] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= _modules([alias.name for alias in node.names], _own_roots())
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names)]
            found |= _modules(names, [file.parents[node.level - 1]] if node.level else _own_roots())
    return frozenset(filter(_is_followed, found))


def _modules(names: Iterable[str], roots: Iterable[Path]) -> set[Path]:
    """The files of modules, each in the first folder that has it."""
    found: set[Path] = set()
    for name in filter(None, names):
        places = [root.joinpath(*name.split(".")) for root in roots]
        files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
        found.update(next(([file] for file in files if file.is_file()), []))
    return found


def _own_roots() -> list[Path]:
    """The folders in which absolute imports find modules that may be edited."""
    return [PACKAGE.parent, *(path for entry in sys.path if not _is_installed(path := Path(entry).absolute()))]


def _is_followed(file: Path) -> bool:
    if file.is_relative_to(PACKAGE):
        return file.name != "__init__.py"
    return not _is_installed(file)


def _is_installed(path: Path) -> bool:
    """Whether a file belongs to Python or to an installed package."""
    return path.is_relative_to(STANDARD) or not {"site-packages", "dist-packages"}.isdisjoint(path.parts)


def _printed(value: Any) -> str:
    """A value printed in full, with the numbers of its tensors and modules."""
    leaves, form = pytree.tree_flatten(value)
    printed = [
        content(leaf) if isinstance(leaf, Tensor) else str(settings_of(leaf)) if isinstance(leaf, nn.Module) else leaf
        for leaf in leaves
    ]
    return f"{printed} {form}"
