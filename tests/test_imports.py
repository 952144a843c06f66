"""Imports run one way, without a circle, and the core needs torch and nothing of Lightning."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lightning_l2l"
FLOORS = [  # each may import from those before it, and from its own
    {"errors", "digests", "tensorboard", "terminal", "file_sizes", "whole_files", "interrupts", "yaml_files", "parser"}
    | {"extras"},
    {"rules", "pretrained"},
    {"guard", "diagnostics", "watched_optimizer", "named_rules", "sharding", "units", "saved_states"}
    | {"learned_optimizer", "episodes"},
    {"unroll"},
    {"meta_losses"},
    {"meta_gradients", "optimizees"},
    {"learners", "evaluation"},
    {"trained", "callbacks", "config_files"},
    {"cli", "seeds", "reference", "variants"},
    {"__main__"},
]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imported(path: Path) -> set[str]:
    """The package's modules that a file imports anywhere in it, for types alone included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in names if name in MODULES} or {node.module}
    return {name for name in found if name in MODULES}


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if name.split(".")[1] in rooms)


def test_there_is_no_circle():
    TopologicalSorter({name: imported(path) for name, path in MODULES.items()}).prepare()  # raises CycleError


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"lightning_l2l"}))
def test_imports_run_one_way(name):
    for other in imported(MODULES[name]) - {"lightning_l2l"}:
        assert floor(other) <= floor(name), f"{name} imports {other}"


def test_files_and_functions_fit_on_a_screen():
    for name, path in MODULES.items():
        text = path.read_text()
        assert len(text.splitlines()) <= 300, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 40, f"{name}.{node.name}"


def test_the_core_needs_torch_only():
    program = (
        "import sys\n"
        "from lightning_l2l import rules, unroll, meta_gradients\n"
        "from lightning_l2l.rules.fast import stepper\n"
        "loaded = {name.split('.')[0] for name in sys.modules} & "
        "{'pytorch_lightning', 'torchvision', 'jsonargparse', 'matplotlib', 'rich', 'learn2learn'}\n"
        "later = {'lightning_l2l.' + name for name in ('optimizees', 'learners', 'evaluation', 'cli')}\n"
        "later &= sys.modules.keys()\n"
        "sys.exit(', '.join(loaded | later) or None)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
