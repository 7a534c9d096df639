"""Every error sentence of non-maximum suppression, the same in eager, for fake tensors and under torch.compile."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pliant.ops import batched_nms, nms

Z = torch.zeros
# Right, until one argument is replaced.
RIGHT: dict[str, Any] = {"boxes": Z(5, 4), "scores": Z(5), "iou_threshold": 0.5}
CLASSES = Z(5, dtype=torch.int64)
FLOATS = "float32 or float64 or bfloat16 or float16"

# For both operators, then for the classes alone.
WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "boxes are no tensor": ({"boxes": [[0, 0, 1, 1]]}, TypeError, "boxes must be a tensor, got list"),
    "scores are no tensor": ({"scores": 0.5}, TypeError, "scores must be a tensor, got float"),
    "threshold is no number": ({"iou_threshold": "0.5"}, TypeError, "iou_threshold must be a number, got '0.5'"),
    "threshold above 1": ({"iou_threshold": 1.5}, ValueError, "iou_threshold must lie between 0 and 1, got 1.5"),
    "threshold below 0": ({"iou_threshold": -1}, ValueError, "iou_threshold must lie between 0 and 1, got -1.0"),
    "threshold NaN": ({"iou_threshold": math.nan}, ValueError, "iou_threshold must lie between 0 and 1, got nan"),
    "one box": ({"boxes": Z(4)}, ValueError, "boxes must have shape (n, 4), got (4,)"),
    "boxes with an image": ({"boxes": Z(5, 5)}, ValueError, "boxes must have shape (n, 4) = (5, 4), got (5, 5)."),
    "fewer scores": ({"scores": Z(4)}, ValueError, "scores must have shape (n,) = (5,), got (4,)."),
    "scores of classes": ({"scores": Z(5, 3)}, ValueError, "scores must have shape (n,) = (5,), got (5, 3)."),
    "integer boxes": ({"boxes": Z(5, 4).int()}, TypeError, f"boxes must be {FLOATS}, got int32"),
    "integer scores": ({"scores": Z(5).long()}, TypeError, f"scores must be {FLOATS}, got int64"),
    "implementation": (
        {"implementation": "fast"},
        ValueError,
        "implementation must be one of ('auto', 'native', 'reference'), got 'fast'",
    ),
}
WRONG_CLASSES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "classes are no tensor": ({"classes": [0] * 5}, TypeError, "classes must be a tensor, got list"),
    "fewer classes": ({"classes": CLASSES[:4]}, ValueError, "classes must have shape (n,) = (5,), got (4,)."),
    "float classes": (
        {"classes": Z(5)},
        TypeError,
        "classes must be int64 or int32 or int16 or int8 or uint8, got float32",
    ),
}
CASES = [(nms, {}, *wrong) for wrong in WRONG.values()]
CASES += [(batched_nms, {"classes": CLASSES}, *wrong) for wrong in (WRONG | WRONG_CLASSES).values()]
NAMES = [f"nms {name}" for name in WRONG] + [f"batched_nms {name}" for name in WRONG | WRONG_CLASSES]
EVERY = pytest.mark.parametrize(("op", "more", "change", "kind", "sentence"), CASES, ids=NAMES)
Operator = Callable[..., Tensor]


@EVERY
def test_eager(
    op: Operator, more: dict[str, Any], change: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind) as raised:
        op(**{**RIGHT, **more, **change})
    assert str(raised.value) == f"{op.__name__}: {sentence}"


@EVERY
def test_fake_tensors(
    op: Operator, more: dict[str, Any], change: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    values = {**RIGHT, **more, **change}
    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(v) if isinstance(v, Tensor) else v for name, v in values.items()}
        with pytest.raises(kind) as raised:
            op(**fake)
    assert str(raised.value) == f"{op.__name__}: {sentence}"


@EVERY
def test_compiled(
    op: Operator, more: dict[str, Any], change: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda values: op(**values) + 1, backend="eager")
    with pytest.raises(kind) as raised:
        compiled({**RIGHT, **more, **change})
    assert str(raised.value) == f"{op.__name__}: {sentence}"


@pytest.mark.parametrize("name", ["scores", "classes"])
def test_tensors_on_different_devices(name: str) -> None:
    values = {**RIGHT, "classes": CLASSES}
    values[name] = values[name].to("meta")
    with pytest.raises(ValueError, match=f"^batched_nms: {name} is on meta, boxes on cpu; move one of them$"):
        batched_nms(**values)
