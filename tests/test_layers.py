"""Imports point right only, from the command line down to torch: `LAYERS` says where right is."""

from __future__ import annotations

import ast
import sys
from pathlib import Path, PurePosixPath

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "pliant"
# `pliant` is the front door, which re-exports ops and nn; testing holds cases and knows no operator.
LAYERS = (
    "__main__ | app | studies | show train interop | models | data | pliant | nn | ops | _check _files _native testing"
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS.split("|")) for room in rooms.split()}
# Inside a family of operators: who may import whom. An operator's file is none of these names; `reference` and
# `triton` may be folders, and `triton` is imported inside the function that needs it.
INSIDE: dict[str, tuple[str, ...]] = {
    "reference": ("reference",),
    "triton": ("triton",),
    "checks": (),
    "operator": ("checks", "reference", "triton"),
    "modules": ("operator", "modules"),
}
# What every family may use, and what is there once for all of them.
# It searches the sizes of GPU kernels, so it knows them.
TUNER = "app/tune.py"
FAMILIES = sorted(p.name for p in (SOURCE / "ops").iterdir() if p.is_dir() and p.name[0] != "_")
SHARED = ("sampling", "gpu", "_declare")


def imported(node: ast.AST) -> list[str]:
    """Return what a statement imports: ``from pliant import ops`` is pliant.ops, relative names start with a dot."""
    if isinstance(node, ast.ImportFrom):
        return [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def part(parts: tuple[str, ...]) -> str:
    """Return which part of its family a module of `ops` is: conv/deform_conv2d.py is an operator."""
    return parts[0] if parts and parts[0] in INSIDE else "operator"


def allowed_in_ops(parts: tuple[str, ...], target: list[str], inside_function: bool) -> bool:
    """Return whether a file of `ops` may import a module of `ops`; both begin with what stands in `ops`."""
    if len(parts) == 1 or parts[0] in SHARED or target[0] in SHARED:
        # The faces of the room (__init__, table), what families share, and everybody's use of that.
        return parts[0] in ("__init__", "table") or target[0] in SHARED
    if parts[0] != target[0]:
        # Of another family the public function.
        return part(tuple(target[1:2])) == "operator" and parts[1] != "triton"
    wanted = part(tuple(target[1:2]))
    return wanted in INSIDE[part(parts[1:])] and (wanted != "triton" or part(parts[1:]) == "triton" or inside_function)


def violations(path: str, source: str) -> list[str]:
    """Return the imports of a file (``ops/nms/nms.py``) that point left, or outside where only torch may be."""
    parts = PurePosixPath(path).with_suffix("").parts
    room = "pliant" if parts == ("__init__",) else parts[0]
    tree = ast.parse(source)
    wrong = []
    for node in ast.walk(tree):
        for name in imported(node):
            # `import pliant` is the front door; the empty name stands for what a short name lacks.
            top, target, *rest = [*(name if "." in name else f"{name}.{name}").split("."), ""]
            if top == "pliant":
                right = target == room or LEVEL[room] < LEVEL.get(target, LEVEL["pliant"])
                if room == "ops" and target == "ops":
                    right = allowed_in_ops(parts[1:], rest, node not in tree.body)
                elif target == "ops" and room != "pliant":
                    # From outside, public names alone: the functions, a family's layers, the table.
                    right &= (
                        path == TUNER
                        or rest[0] == "table"
                        or rest[0] not in FAMILIES
                        or (room == "nn" and rest[1] == "modules")
                    )
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
        ("ops/nms/nms.py", "def f():\n    import pliant"),
        ("ops/nms/nms.py", "from pliant.ops.nms import triton"),
        ("ops/nms/nms.py", "import triton"),
        ("ops/nms/reference.py", "from pliant.ops.nms import nms"),
        ("ops/roi/reference/bins.py", "from pliant.ops.roi import checks"),
        ("ops/roi/roi_align.py", "from pliant.ops.roi import roi_pool"),
        ("ops/roi/modules.py", "from pliant.ops.roi.reference import roi_align"),
        ("ops/roi/modules.py", "from pliant.ops.roi import reference"),
        ("ops/nms/nms.py", "from pliant.ops.roi.reference import roi_align"),
        ("ops/conv/triton/forward.py", "from pliant.ops.conv import reference"),
        ("ops/conv/triton/forward.py", "from pliant.ops.nms import triton"),
        ("ops/sampling/reference.py", "from pliant.ops.conv import reference"),
        ("ops/_declare.py", "from pliant.ops.nms.nms import nms"),
        ("interop/torchvision.py", "from pliant.ops.roi.reference import roi_align"),
        ("models/resnet.py", "from pliant.ops.conv.modules import DeformConv2d"),
        ("show/page.py", "from pliant.train import loop"),
        ("models/alexnet.py", "from . import resnet"),
    ],
)
def test_wrong_imports_are_seen(path: str, source: str) -> None:
    assert len(violations(path, source)) == 1


def test_the_room_of_operators_is_small() -> None:
    """`ops` has at most nine entries beside its `__init__`."""
    assert len([p for p in (SOURCE / "ops").iterdir() if p.name not in ("__init__.py", "__pycache__")]) <= 9
