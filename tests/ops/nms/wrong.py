"""What non-maximum suppression says about wrong arguments: (operators, the wrong argument, exception, sentence)."""

from __future__ import annotations

import math
from typing import Any

import torch

Z = torch.zeros
CLASSES = Z(5, dtype=torch.int64)
BOTH = "nms batched_nms"
FLOATS = "float32 or float64 or bfloat16 or float16"

# Right, until one argument is replaced.
RIGHT: dict[str, dict[str, Any]] = {
    "nms": {"boxes": Z(5, 4), "scores": Z(5), "iou_threshold": 0.5},
    "batched_nms": {"boxes": Z(5, 4), "scores": Z(5), "classes": CLASSES, "iou_threshold": 0.5},
}

WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (BOTH, {"boxes": [[0, 0, 1, 1]]}, TypeError, "boxes must be a tensor, got list"),
    (BOTH, {"scores": 0.5}, TypeError, "scores must be a tensor, got float"),
    (BOTH, {"iou_threshold": "0.5"}, TypeError, "iou_threshold must be a number, got '0.5'"),
    (BOTH, {"iou_threshold": 1.5}, ValueError, "iou_threshold must lie between 0 and 1, got 1.5"),
    (BOTH, {"iou_threshold": -1}, ValueError, "iou_threshold must lie between 0 and 1, got -1.0"),
    (BOTH, {"iou_threshold": math.nan}, ValueError, "iou_threshold must lie between 0 and 1, got nan"),
    (BOTH, {"boxes": Z(4)}, ValueError, "boxes must have shape (n, 4), got (4,)"),
    (BOTH, {"boxes": Z(5, 5)}, ValueError, "boxes must have shape (n, 4) = (5, 4), got (5, 5)."),
    (BOTH, {"scores": Z(4)}, ValueError, "scores must have shape (n,) = (5,), got (4,)."),
    (BOTH, {"scores": Z(5, 3)}, ValueError, "scores must have shape (n,) = (5,), got (5, 3)."),
    (BOTH, {"boxes": Z(5, 4).int()}, TypeError, f"boxes must be {FLOATS}, got int32"),
    (BOTH, {"scores": Z(5).long()}, TypeError, f"scores must be {FLOATS}, got int64"),
    (
        BOTH,
        {"implementation": "fast"},
        ValueError,
        "implementation must be one of ('auto', 'native', 'reference'), got 'fast'",
    ),
    ("batched_nms", {"classes": [0] * 5}, TypeError, "classes must be a tensor, got list"),
    ("batched_nms", {"classes": CLASSES[:4]}, ValueError, "classes must have shape (n,) = (5,), got (4,)."),
    (
        "batched_nms",
        {"classes": Z(5)},
        TypeError,
        "classes must be int64 or int32 or int16 or int8 or uint8, got float32",
    ),
]

# What only a call of the raw operator can pass: (operator, arguments).
RAW: list[tuple[str, dict[str, Any]]] = []
