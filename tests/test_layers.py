"""Imports point right only, from the command line down to torch: `LAYERS` says where right is."""

from __future__ import annotations

import ast
import sys
from pathlib import Path, PurePosixPath

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "pliant"
# `pliant` is the front door, which re-exports ops and nn; testing holds cases and knows no operator.
LAYERS = "app | studies | show train interop | models | data | pliant | nn | ops | _check _files _native testing"
LEVEL = {room: level for level, rooms in enumerate(LAYERS.split("|")) for room in rooms.split()}
# Inside an operator's folder: who may import whom; triton may be a folder of its own.
INSIDE = {"__init__": (), "reference": (), "triton": ("triton",), "op": ("reference", "triton"), "module": ("op",)}


def imported(node: ast.AST) -> list[str]:
    """Return what a statement imports: ``from pliant import ops`` is pliant.ops, relative names start with a dot."""
    if isinstance(node, ast.ImportFrom):
        return [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def violations(path: str, source: str) -> list[str]:
    """Return the imports of a file (``ops/lrn/op.py``) that point left, or outside where only torch may be."""
    parts = PurePosixPath(path).with_suffix("").parts
    room = "pliant" if parts == ("__init__",) else parts[0]
    tree = ast.parse(source)
    wrong = []
    for node in ast.walk(tree):
        for name in imported(node):
            # `import pliant` is the front door; the two empty names stand for what a short name lacks.
            top, target, *rest = [*(name if "." in name else f"{name}.{name}").split("."), "", ""]
            if top == "pliant":
                right = target == room or LEVEL[room] < LEVEL.get(target, LEVEL["pliant"])
                if room == "ops" and target == "ops" and len(parts) > 2 and not rest[0].startswith("_"):
                    # Of its own folder what INSIDE says, of another operator's the public function.
                    right = rest[1] in INSIDE[parts[2]] if rest[0] == parts[1] else rest[1] == "op"
                    right &= rest[1] != "triton" or parts[2] == "triton" or node not in tree.body
            else:
                kernels = any(part.endswith("triton") for part in parts)
                anything = LEVEL[room] < LEVEL["pliant"] or (top == "triton" and kernels)
                right = top != "" and (anything or top == "torch" or top in sys.stdlib_module_names)
            wrong += [] if right else [name]
    return wrong


@pytest.mark.parametrize("path", sorted(p.relative_to(SOURCE).as_posix() for p in SOURCE.rglob("*.py")))
def test_imports_point_right(path: str) -> None:
    assert violations(path, (SOURCE / path).read_text()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("nn/surgery.py", "import numpy"),
        ("_check.py", "from pliant import ops"),
        ("ops/__init__.py", "from pliant.nn import DeformConv2d"),
        ("ops/lrn/op.py", "def f():\n    import pliant"),
        ("ops/lrn/op.py", "from pliant.ops.lrn import triton"),
        ("ops/lrn/reference.py", "from pliant.ops.lrn import op"),
        ("ops/lrn/module.py", "from pliant.ops.lrn.reference import lrn"),
        ("ops/lrn/op.py", "from pliant.ops.nms.reference import nms"),
        ("ops/lrn/triton/forward.py", "from pliant.ops.lrn import reference"),
        ("ops/lrn/triton/forward.py", "from pliant.ops.nms import triton"),
        ("ops/lrn/op.py", "import triton"),
        ("show/page.py", "from pliant.train import loop"),
        ("models/alexnet.py", "from . import resnet"),
    ],
)
def test_wrong_imports_are_seen(path: str, source: str) -> None:
    assert len(violations(path, source)) == 1
