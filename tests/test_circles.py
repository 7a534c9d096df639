"""No two modules import each other, directly or through others. Imports for types and inside functions count.

`from pliant.nn import DeformConv2d` is an import of the package `pliant.nn`, which imports the module that defines the
class; `from pliant.nn import offsets` is an import of the module `pliant.nn.offsets`. That importing a module also runs
the packages around it is left out: a package may import its own modules as long as they do not import the package.
"""

from __future__ import annotations

import ast
from collections import deque
from pathlib import Path, PurePosixPath

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "pliant"


def module_name(path: str) -> str:
    """Return the name of the module in a file of the package: `nn/offsets.py` is pliant.nn.offsets."""
    return ".".join(("pliant", *PurePosixPath(path).with_suffix("").parts)).removesuffix(".__init__")


def named(node: ast.AST, package: list[str]) -> list[str]:
    """Return the full names that a statement in a module of `package` imports: `from .a import b` is package.a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    around = package[: len(package) + 1 - node.level] if node.level else []
    base = [*around, *(node.module.split(".") if node.module else [])]
    return [".".join([*base, alias.name]) for alias in node.names]


def imports(sources: dict[str, str]) -> dict[str, set[str]]:
    """Return which of the modules in `sources` (path → text) import which."""
    modules = {module_name(path) for path in sources}
    found: dict[str, set[str]] = {}
    for path, text in sources.items():
        name = module_name(path)
        package = name.split(".") if path.endswith("__init__.py") else name.split(".")[:-1]
        every = [full for node in ast.walk(ast.parse(text)) for full in named(node, package)]
        # A name that is no module is defined, or imported, by the package or module before the last dot.
        targets = {full if full in modules else full.rpartition(".")[0] for full in every}
        found[name] = targets & modules
    return found


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Return the shortest circle through every module that lies on one, each circle once: "a → b → a"."""
    found: dict[frozenset[str], str] = {}
    for start in sorted(graph):
        before: dict[str, str] = {}
        waiting = deque([start])
        while waiting and start not in before:
            module = waiting.popleft()
            for target in sorted(graph[module]):
                if target not in before:
                    before[target] = module
                    waiting.append(target)
        if start in before:
            way = [start, before[start]]
            while way[-1] != start:
                way.append(before[way[-1]])
            found.setdefault(frozenset(way), " → ".join(reversed(way)))
    return list(found.values())


def test_no_modules_import_each_other() -> None:
    sources = {path.relative_to(SOURCE).as_posix(): path.read_text() for path in SOURCE.rglob("*.py")}
    graph = imports(sources)
    assert len(graph) == len(sources) > 100
    assert "pliant.nn.deformable" in graph["pliant.nn.offsets"]
    assert circles(graph) == []


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"a.py": "from pliant import b", "b.py": "import pliant.a"}, ["pliant.a → pliant.b → pliant.a"]),
        ({"a.py": "import pliant.a"}, ["pliant.a → pliant.a"]),
        (
            {"a.py": "from pliant.b import f", "b.py": "from pliant.c import f", "c.py": "from pliant.a import g"},
            ["pliant.a → pliant.b → pliant.c → pliant.a"],
        ),
        # For types, inside functions, relative.
        (
            {"a.py": "if TYPE_CHECKING:\n    from pliant.b import B", "b.py": "def f():\n    from . import a"},
            ["pliant.a → pliant.b → pliant.a"],
        ),
        ({"p/a.py": "from .b import f", "p/b.py": "from ..p.a import g"}, ["pliant.p.a → pliant.p.b → pliant.p.a"]),
        # A package may import its modules, which may not import the package; each other's through it neither.
        ({"p/__init__.py": "from pliant.p.a import f", "p/a.py": "from pliant import q", "q.py": ""}, []),
        (
            {"p/__init__.py": "from .a import f", "p/a.py": "from pliant.p import f"},
            ["pliant.p → pliant.p.a → pliant.p"],
        ),
        (
            {
                "p/__init__.py": "from pliant.p.a import f",
                "p/a.py": "from pliant.q import g",
                "q.py": "import pliant.p",
            },
            ["pliant.p → pliant.p.a → pliant.q → pliant.p"],
        ),
        # One module for another, and names of other packages, are no circle.
        ({"a.py": "from pliant import b, c", "b.py": "import torch.nn", "c.py": "from pliant.b import f"}, []),
    ],
)
def test_circles_are_found_and_named(sources: dict[str, str], expected: list[str]) -> None:
    assert circles(imports(sources)) == expected
