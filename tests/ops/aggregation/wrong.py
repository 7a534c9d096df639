"""What the operators of aggregation say about wrong arguments: (operators, wrong argument, exception, sentence)."""

from __future__ import annotations

from typing import Any

import torch

Z = torch.zeros
FLOATS = "float32 or float64 or bfloat16 or float16"
V3, V4, BOTH = "dcnv3", "dcnv4", "dcnv3 dcnv4"
ATTENTION = "ms_deform_attn"

# Right, until one argument is replaced.
RIGHT: dict[str, dict[str, Any]] = {
    ATTENTION: {
        "value": Z(2, 16, 3, 4),
        "sampling_locations": Z(2, 5, 3, 2, 1, 2),
        "attention_weights": Z(2, 5, 3, 2, 1),
        "spatial_shapes": [(3, 4), (2, 2)],
        "level_start_index": [0, 12],
    },
    V3: {
        "input": Z(2, 5, 6, 8),
        "offset": Z(2, 4, 3, 24),
        "mask": Z(2, 4, 3, 12),
        "kernel_size": (2, 3),
        "stride": (1, 2),
        "padding": (0, 1),
        "groups": 2,
    },
    V4: {
        "input": Z(2, 5, 6, 8),
        "offset_mask": Z(2, 4, 3, 40),
        "kernel_size": (2, 3),
        "stride": (1, 2),
        "padding": (0, 1),
        "groups": 2,
    },
}

_IMPLEMENTATION = "implementation must be one of ('auto', 'native', 'reference'), got 'fast'"

WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    # ms_deform_attn.
    (ATTENTION, {"value": [1.0]}, TypeError, "value must be a tensor, got list"),
    (ATTENTION, {"value": Z(2, 16, 12)}, ValueError, "value must have shape (N, S, M, D), got (2, 16, 12)"),
    (ATTENTION, {"value": Z(2, 16, 3, 4).int()}, TypeError, f"value must be {FLOATS}, got int32"),
    (ATTENTION, {"value": Z(2, 16, 3, 0)}, ValueError, "value must have heads and channels, got (2, 16, 3, 0)"),
    (
        ATTENTION,
        {"value": Z(1, 1, 1, 1).expand(2, 1 << 31, 3, 4)},
        ValueError,
        "value must have fewer than 2³¹ pixels, got 2147483648",
    ),
    (
        ATTENTION,
        {"value": Z(2, 15, 3, 4)},
        ValueError,
        "level 1 of 2×2 pixels from 12 on does not fit into the S = 15 pixels of value",
    ),
    (
        ATTENTION,
        {"value": Z(2, 16, 2, 6)},
        ValueError,
        "sampling_locations must have shape (N, Q, M, L, P, 2) = (2, 5, 2, 2, 1, 2), got (2, 5, 3, 2, 1, 2).",
    ),
    (
        ATTENTION,
        {"sampling_locations": Z(2, 5, 3, 2, 2)},
        ValueError,
        "sampling_locations must have shape (N, Q, M, L, P, 2), got (2, 5, 3, 2, 2)",
    ),
    (
        ATTENTION,
        {"sampling_locations": Z(2, 5, 3, 2, 1, 3)},
        ValueError,
        "sampling_locations must have shape (N, Q, M, L, P, 2) = (2, 5, 3, 2, 1, 2), got (2, 5, 3, 2, 1, 3).",
    ),
    (
        ATTENTION,
        {"sampling_locations": Z(2, 5, 3, 2, 1, 2).double()},
        TypeError,
        "sampling_locations must be float32, got float64",
    ),
    (
        ATTENTION,
        {"value": Z(2, 16, 3, 4).half(), "attention_weights": Z(2, 5, 3, 2, 1).bfloat16()},
        TypeError,
        "attention_weights must be float16 or float32, got bfloat16",
    ),
    (
        ATTENTION,
        {"attention_weights": Z(2, 5, 3, 2)},
        ValueError,
        "attention_weights must have shape (N, Q, M, L, P) = (2, 5, 3, 2, 1), got (2, 5, 3, 2).",
    ),
    (ATTENTION, {"attention_weights": 1.0}, TypeError, "attention_weights must be a tensor, got float"),
    (
        ATTENTION,
        {"spatial_shapes": 3},
        TypeError,
        "spatial_shapes must be pairs (H, W) or a tensor (L, 2), got int",
    ),
    (ATTENTION, {"spatial_shapes": []}, ValueError, "spatial_shapes must name one level at least"),
    (ATTENTION, {"spatial_shapes": [(3, 0)]}, ValueError, "each of spatial_shapes must be at least 1, got (3, 0)"),
    (
        ATTENTION,
        {"spatial_shapes": [(3, 4), (2.0, 2)]},
        TypeError,
        "each of spatial_shapes must be an int or a pair of ints, got (2.0, 2)",
    ),
    (
        ATTENTION,
        {"spatial_shapes": [(3, 4), (2, 3)]},
        ValueError,
        "level 1 of 2×3 pixels from 12 on does not fit into the S = 16 pixels of value",
    ),
    (
        ATTENTION,
        {"level_start_index": [-1, 0]},
        ValueError,
        "level 0 of 3×4 pixels from -1 on does not fit into the S = 16 pixels of value",
    ),
    (ATTENTION, {"level_start_index": [0]}, ValueError, "level_start_index must have shape (L,) = (2,), got (1,)"),
    (
        ATTENTION,
        {"level_start_index": 1.5},
        TypeError,
        "level_start_index must be ints, a tensor (L,) or None, got 1.5",
    ),
    (ATTENTION, {"points": 2}, TypeError, "points must be ints, one for each level, or None, got 2"),
    (ATTENTION, {"points": [2]}, ValueError, "points must name one number for each of the 2 levels, got (2,)"),
    (ATTENTION, {"points": [1, 0]}, ValueError, "points must be at least 1, got (1, 0)"),
    (
        ATTENTION,
        {"points": [1, 1]},
        ValueError,
        "sampling_locations must have shape (N, Q, M, ΣP, 2), got (2, 5, 3, 2, 1, 2)",
    ),
    (
        ATTENTION,
        {"points": [1, 2], "sampling_locations": Z(2, 5, 3, 2, 2)},
        ValueError,
        "sampling_locations must have shape (N, Q, M, ΣP, 2) = (2, 5, 3, 3, 2), got (2, 5, 3, 2, 2).",
    ),
    (ATTENTION, {"method": "bicubic"}, ValueError, "method must be one of ('bilinear', 'discrete'), got 'bicubic'"),
    (ATTENTION, {"implementation": "fast"}, ValueError, _IMPLEMENTATION),
    # dcnv3 and dcnv4.
    (BOTH, {"input": [1.0]}, TypeError, "input must be a tensor, got list"),
    (BOTH, {"input": Z(5, 6, 8)}, ValueError, "input must have shape (N, H, W, C), got (5, 6, 8)"),
    (BOTH, {"input": Z(2, 5, 6, 8).int()}, TypeError, f"input must be {FLOATS}, got int32"),
    (BOTH, {"input": Z(2, 5, 6, 7)}, ValueError, "the 7 channels of input must be divisible by the 2 groups"),
    (BOTH, {"groups": 0}, ValueError, "the 8 channels of input must be divisible by the 0 groups"),
    (BOTH, {"groups": 2.0}, TypeError, "groups must be an int, got 2.0"),
    (
        BOTH,
        {"input": Z(2, 1, 6, 8)},
        ValueError,
        "the output would be 0×3, the 2×3 kernel with dilation (1, 1) and padding (0, 1) does not fit into the 1×6 "
        "input",
    ),
    (
        BOTH,
        {"input": Z(1, 1, 1, 1).expand(2, 1 << 16, 1 << 15, 8)},
        ValueError,
        "input must have fewer than 2³¹ pixels, got 65536×32768",
    ),
    (BOTH, {"kernel_size": 0}, ValueError, "kernel_size must be at least 1, got 0"),
    (BOTH, {"kernel_size": 3.0}, TypeError, "kernel_size must be an int or a pair of ints, got 3.0"),
    (
        BOTH,
        {"kernel_size": 1, "remove_center": True},
        ValueError,
        "a kernel of one tap has no other tap, so remove_center must be False",
    ),
    (BOTH, {"stride": 0}, ValueError, "stride must be at least 1, got 0"),
    (BOTH, {"padding": -1}, ValueError, "padding must be at least 0, got -1"),
    (BOTH, {"dilation": 2**31}, ValueError, "dilation must be less than 2³¹, got 2147483648"),
    (BOTH, {"offset_scale": float("inf")}, ValueError, "offset_scale must be a finite number, got inf"),
    (BOTH, {"implementation": "fast"}, ValueError, _IMPLEMENTATION),
    (V3, {"offset": None}, TypeError, "offset must be a tensor, got NoneType"),
    (V3, {"mask": Z(2, 4, 3, 12).double()}, TypeError, "mask must be float32, got float64"),
    (
        V3,
        {"offset": Z(2, 4, 3, 22)},
        ValueError,
        "offset must have shape (N, Ho, Wo, G·K·2) = (2, 4, 3, 24), got (2, 4, 3, 22).",
    ),
    (
        V3,
        {"mask": Z(2, 5, 3, 12)},
        ValueError,
        "mask must have shape (N, Ho, Wo, G·K) = (2, 4, 3, 12), got (2, 5, 3, 12).",
    ),
    (
        V3,
        {"remove_center": True},
        ValueError,
        "offset must have shape (N, Ho, Wo, G·K·2) = (2, 4, 3, 20), got (2, 4, 3, 24).",
    ),
    (V4, {"offset_mask": Z(2, 4, 3, 40).half()}, TypeError, "offset_mask must be float32, got float16"),
    (
        V4,
        {"offset_mask": Z(2, 4, 3, 36)},
        ValueError,
        "offset_mask must have shape (N, Ho, Wo, ⌈G·3·K/8⌉·8) = (2, 4, 3, 40), got (2, 4, 3, 36). Its channels are "
        "padded to a multiple of 8.",
    ),
    (
        V4,
        {"offset_mask": Z(2, 4, 40)},
        ValueError,
        "offset_mask must have shape (N, Ho, Wo, ⌈G·3·K/8⌉·8) = (2, 4, 3, 40), got (2, 4, 40).",
    ),
]

# Geometry that only raw operators can be given.
RAW: list[tuple[str, dict[str, Any]]] = [
    (ATTENTION, {"spatial_shapes": [3, 4, 2]}),
    (ATTENTION, {"spatial_shapes": [3, 4]}),
    (ATTENTION, {"spatial_shapes": [3, 1 << 62, 2, 2]}),
    (ATTENTION, {"level_start_index": []}),
    (ATTENTION, {"points": [1]}),
    (ATTENTION, {"points": [0, 2]}),
    *[(op, {"stride": (1,)}) for op in BOTH.split()],
    *[(op, {"padding": (1, 1, 1)}) for op in BOTH.split()],
    *[(op, {"dilation": (1 << 40, 1)}) for op in BOTH.split()],
    *[(op, {"kernel_size": (1 << 31, 1 << 31)}) for op in BOTH.split()],
]
