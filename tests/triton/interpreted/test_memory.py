"""What watches the kernels' memory sees what it is for: every other test of the interpreter runs under it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError


@triton.jit
def copy(fro, to, n, step, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * step + tl.arange(0, BLOCK)
    keep = i < n
    tl.store(to + i, tl.load(fro + SHIFT + i, mask=keep, other=0.0), mask=keep)


@triton.jit
def gather(to, places, n, ADD: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    keep = i < n
    at = to + tl.load(places + i, mask=keep, other=0)
    if ADD:
        tl.atomic_add(at, i.to(tl.float32), mask=keep)
    else:
        tl.store(at, i.to(tl.float32), mask=keep)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, ""),
        ({"n": 13}, "load outside of every tensor"),
        ({"SHIFT": -1}, "load outside of every tensor"),
        ({"to": torch.empty(11)}, "store outside of every tensor"),
        ({"to": torch.empty(24)[::2]}, ""),
        ({"step": 4}, "two programs store in one place"),
        ({"to": "fro", "SHIFT": 1, "n": 11}, "one program (stores|loads) what another (stores|loads)"),
    ],
    ids=["right", "beyond", "before", "short", "gaps", "overlap", "in_place"],
)
def test_copies(changed: dict[str, Any], says: str) -> None:
    fro = torch.arange(12.0)
    known = {"fro": fro, "to": torch.empty(12), "n": 12, "step": 8, "SHIFT": 0, "BLOCK": 8} | changed
    known["to"] = fro if isinstance(known["to"], str) else known["to"]
    if says:
        with pytest.raises(InterpreterError, match=says):
            copy[(2,)](**known)
    else:
        copy[(2,)](**known)


@pytest.mark.parametrize("add", [False, True])
def test_places_that_several_meet(add: bool) -> None:
    places, to = torch.tensor([3, 1, 2, 3], dtype=torch.int32), torch.zeros(4)
    if add:
        gather[(1,)](to, places, 4, True, 4)
        assert to.tolist() == [0, 1, 2, 3]
    else:
        with pytest.raises(InterpreterError, match="twice in one place"):
            gather[(1,)](to, places, 4, False, 4)
        with pytest.raises(InterpreterError, match="two programs"):
            gather[(2,)](to, places, 4, False, 2)
