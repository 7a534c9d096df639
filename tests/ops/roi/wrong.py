"""What the RoI operators say about wrong arguments: (operators, the wrong argument, exception, sentence)."""

from __future__ import annotations

from typing import Any

import torch

from pliant.ops.table import OPERATORS

Z = torch.zeros
FLOATS = "float32 or float64 or bfloat16 or float16"
# Those with torchvision's arguments, and the deformable ones.
PLAIN = " ".join(o.name for o in OPERATORS if o.family == "roi" and len(o.gradients) == 1)
MOVED = "deform_roi_pool deform_psroi_pool"
PAIRS = f"{PLAIN} deform_roi_pool"
PARTS = "(R, 2·classes, part_size, part_size)"

_MAP = Z(2, 8, 6, 7)
# Right, until one argument is replaced.
RIGHT: dict[str, dict[str, Any]] = {
    **{op: {"input": _MAP, "boxes": Z(3, 5), "output_size": (2, 4)} for op in PLAIN.split()},
    "deform_roi_pool": {
        "input": _MAP,
        "rois": Z(3, 5),
        "offset": Z(3, 2, 2, 4),
        "output_size": (2, 4),
        "mask": Z(3, 1, 2, 4),
    },
    "deform_psroi_pool": {
        "input": _MAP,
        "rois": Z(3, 5),
        "offset": Z(3, 4, 3, 3),
        "output_size": 2,
        "group_size": 2,
        "part_size": 3,
        "mask": Z(3, 1, 2, 2),
    },
}


def _of_boxes(ops: str, name: str) -> list[tuple[str, dict[str, Any], type[Exception], str]]:
    """Return what operators say about their map and their boxes, which they call `name`."""
    either = f"{name} must be a tensor (R, 5) or a list of tensors (n, 4)"
    return [
        (ops, {"input": [1.0]}, TypeError, "input must be a tensor, got list"),
        (ops, {name: None}, TypeError, f"{either}, got NoneType"),
        (ops, {name: [1, 2]}, TypeError, f"{either}, got list"),
        (ops, {name: [[0, 0, 1, 1]]}, TypeError, f"{either}, got list"),
        (ops, {name: [Z(3, 4)]}, ValueError, f"{name} must hold one tensor for each of the 2 images, got 1"),
        (ops, {name: [Z(3, 4), Z(0, 5)]}, ValueError, f"{name}[1] must have shape (n, 4), got (0, 5)"),
        (ops, {name: Z(5)}, ValueError, f"{name} must have shape (R, 5), got (5,)"),
        (ops, {name: Z(())}, ValueError, f"{name} must have shape (R, 5), got ()"),
        (ops, {name: Z(3, 5, dtype=torch.complex64)}, TypeError, f"{name} must be float32, got complex64"),
        (
            ops,
            {name: Z(3, 4)},
            ValueError,
            f"{name} must have shape (R, 5) = (3, 5), got (3, 4). The first of the five is the index of the image.",
        ),
        (ops, {name: Z(3, 6)}, ValueError, f"{name} must have shape (R, 5) = (3, 5), got (3, 6)."),
        (ops, {name: Z(3, 5).double()}, TypeError, f"{name} must be float32, got float64"),
        (ops, {name: Z(3, 5).half()}, TypeError, f"{name} must be float32, got float16"),
        (ops, {name: Z(3, 5).long()}, TypeError, f"{name} must be float32, got int64"),
        (
            ops,
            {"input": _MAP.bfloat16(), name: Z(3, 5).half()},
            TypeError,
            f"{name} must be float32 or bfloat16, got float16",
        ),
    ]


WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    *_of_boxes(PLAIN, "boxes"),
    *_of_boxes(MOVED, "rois"),
    *[
        (f"{PLAIN} {MOVED}", change, kind, sentence)
        for change, kind, sentence in (
            ({"input": Z(8, 6, 7)}, ValueError, "input must have shape (N, C, H, W), got (8, 6, 7)"),
            ({"input": _MAP.int()}, TypeError, f"input must be {FLOATS}, got int32"),
            ({"input": Z(2, 8, 0, 7)}, ValueError, "input must not be an empty map, got (2, 8, 0, 7)"),
            ({"input": Z(2, 0, 6, 7)}, ValueError, "input must not be an empty map, got (2, 0, 6, 7)"),
            ({"input": Z(())}, ValueError, "input must have shape (N, C, H, W), got ()"),
            ({"output_size": 0}, ValueError, "output_size must be at least 1, got 0"),
            ({"output_size": 2**32}, ValueError, "output_size must be less than 2³¹, got 4294967296"),
            (
                {"implementation": "fast"},
                ValueError,
                "implementation must be one of ('auto', 'native', 'reference'), got 'fast'",
            ),
        )
    ],
    (PAIRS, {"output_size": 1.5}, TypeError, "output_size must be an int or a pair of ints, got 1.5"),
    (PAIRS, {"output_size": (2, 4, 1)}, TypeError, "output_size must be an int or a pair of ints, got (2, 4, 1)"),
    (PAIRS, {"output_size": (2, -1)}, ValueError, "output_size must be at least 1, got (2, -1)"),
    (
        "roi_align ps_roi_align deform_roi_pool",
        {"sampling_ratio": 2.0},
        TypeError,
        "sampling_ratio must be an int, got 2.0",
    ),
    (
        "roi_align ps_roi_align deform_roi_pool",
        {"sampling_ratio": 2**31 - 1},
        ValueError,
        "sampling_ratio must be less than 2¹⁶, got 2147483647",
    ),
    ("deform_psroi_pool", {"sample_per_part": 2**16}, ValueError, "sample_per_part must be less than 2¹⁶, got 65536"),
    (
        "ps_roi_align ps_roi_pool",
        {"output_size": 3},
        ValueError,
        "the 3×3 = 9 bins must divide the 8 channels of input",
    ),
    (
        "roi_pool",
        {"input": Z(1, 1, 1, 1).expand(1, 1, 2**16, 2**15)},
        ValueError,
        "input must have fewer than 2³¹ pixels, got 65536×32768",
    ),
    # Offsets and masks.
    (
        "deform_psroi_pool",
        {"offset": Z(5)},
        ValueError,
        "offset must have shape (R, 2·classes, part_size, part_size), got (5,)",
    ),
    (MOVED, {"offset": 3}, TypeError, "offset must be a tensor, got int"),
    (MOVED, {"mask": True}, TypeError, "mask must be a tensor, got bool"),
    ("deform_roi_pool", {"offset": Z(3, 2, 2, 4).double()}, TypeError, "offset must be float32, got float64"),
    ("deform_psroi_pool", {"offset": Z(3, 4, 3, 3).double()}, TypeError, "offset must be float32, got float64"),
    (MOVED, {"mask": Z(3, 1, 2, 2).half()}, TypeError, "mask must be float32, got float16"),
    (
        MOVED,
        {"input": _MAP.half(), "offset": Z(3, 2, 2, 4).bfloat16()},
        TypeError,
        "offset must be float16 or float32, got bfloat16",
    ),
    (
        "deform_roi_pool",
        {"mask": Z(3, 2, 4)},
        ValueError,
        "mask must have shape (R, 1, Ph, Pw) = (3, 1, 2, 4), got (3, 2, 4).",
    ),
    (
        "deform_roi_pool",
        {"mask": Z(2, 1, 2, 4)},
        ValueError,
        "mask must have shape (R, 1, Ph, Pw) = (3, 1, 2, 4), got (2, 1, 2, 4).",
    ),
    (
        "deform_psroi_pool",
        {"mask": Z(3, 2, 2)},
        ValueError,
        "mask must have shape (R, 1, Ph, Pw) = (3, 1, 2, 2), got (3, 2, 2).",
    ),
    (
        "deform_psroi_pool",
        {"mask": Z(2, 1, 2, 2)},
        ValueError,
        "mask must have shape (R, 1, Ph, Pw) = (3, 1, 2, 2), got (2, 1, 2, 2).",
    ),
    (
        "deform_roi_pool",
        {"offset": Z(2, 2, 2, 4)},
        ValueError,
        "offset must have shape (R, 2, Ph, Pw) = (3, 2, 2, 4), got (2, 2, 2, 4).",
    ),
    (
        "deform_roi_pool",
        {"offset": Z(3, 2, 4, 2)},
        ValueError,
        "offset must have shape (R, 2, Ph, Pw) = (3, 2, 2, 4), got (3, 2, 4, 2).",
    ),
    (
        "deform_psroi_pool",
        {"offset": Z(2, 4, 3, 3)},
        ValueError,
        f"offset must have shape {PARTS} = (3, 4, 3, 3), got (2, 4, 3, 3).",
    ),
    (
        "deform_psroi_pool",
        {"offset": Z(3, 3, 3, 3)},
        ValueError,
        f"offset must have shape {PARTS} = (3, 2, 3, 3), got (3, 3, 3, 3).",
    ),
    ("deform_psroi_pool", {"offset": Z(3, 4, 3)}, ValueError, f"offset must have shape {PARTS}, got (3, 4, 3)"),
    (
        "deform_psroi_pool",
        {"offset": Z(3, 6, 3, 3)},
        ValueError,
        "the 2 channels of the output must be divisible by the 3 classes of offset",
    ),
    # Parts and groups.
    ("deform_psroi_pool", {"output_size": (2, 2)}, TypeError, "output_size must be an int, got (2, 2)"),
    ("deform_psroi_pool", {"group_size": 0}, ValueError, "group_size must be at least 1, got 0"),
    ("deform_psroi_pool", {"group_size": 3}, ValueError, "group_size² = 9 must divide the 8 channels of input"),
    ("deform_psroi_pool", {"part_size": 2.0}, TypeError, "part_size must be an int, got 2.0"),
    ("deform_psroi_pool", {"sample_per_part": 0}, ValueError, "sample_per_part must be at least 1, got 0"),
    ("deform_psroi_pool", {"sample_per_part": True}, TypeError, "sample_per_part must be an int, got True"),
    (
        "deform_psroi_pool",
        {"part_size": 2},
        ValueError,
        f"offset must have shape {PARTS} = (3, 4, 2, 2), got (3, 4, 3, 3).",
    ),
    (
        "deform_psroi_pool",
        {"part_size": None},
        ValueError,
        f"offset must have shape {PARTS} = (3, 4, 2, 2), got (3, 4, 3, 3).",
    ),
]

# What only a call of the raw operator can pass: (operator, arguments).
RAW: list[tuple[str, dict[str, Any]]] = [
    *[(op, {"output_size": size}) for op in PAIRS.split() for size in ((0, 4), (2, -4), (2,), (2, 4, 4), (1 << 40, 4))],
    *[(op, {"output_size": (3, 4)}) for op in ("ps_roi_align", "ps_roi_pool")],
    ("deform_roi_pool", {"output_size": (2, 3)}),
    ("deform_psroi_pool", {"output_size": 3}),
    ("deform_psroi_pool", {"group_size": 0}),
    ("deform_psroi_pool", {"group_size": 3}),
    ("deform_psroi_pool", {"part_size": 0}),
    ("deform_psroi_pool", {"part_size": 2}),
    ("deform_psroi_pool", {"sample_per_part": 0}),
]
