"""What deformable convolution says about wrong arguments: (operators, the wrong argument, exception, sentence)."""

from __future__ import annotations

from typing import Any

import torch

Z = torch.zeros

# Right, until one argument is replaced.
RIGHT: dict[str, dict[str, Any]] = {
    "deform_conv2d": {
        "input": Z(2, 4, 8, 8),
        "offset": Z(2, 36, 8, 8),
        "weight": Z(6, 2, 3, 3),
        "bias": Z(6),
        "mask": Z(2, 18, 8, 8),
        "padding": 1,
    }
}

WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("deform_conv2d", {"input": 3}, TypeError, "input must be a tensor, got int"),
    ("deform_conv2d", {"offset": None}, TypeError, "offset must be a tensor, got NoneType"),
    ("deform_conv2d", {"weight": [1.0]}, TypeError, "weight must be a tensor, got list"),
    ("deform_conv2d", {"bias": True}, TypeError, "bias must be a tensor, got bool"),
    ("deform_conv2d", {"mask": "zeros"}, TypeError, "mask must be a tensor, got str"),
    ("deform_conv2d", {"stride": 0}, ValueError, "stride must be at least 1, got 0"),
    ("deform_conv2d", {"padding": (1, -1)}, ValueError, "padding must be at least 0, got (1, -1)"),
    ("deform_conv2d", {"dilation": (0, 1)}, ValueError, "dilation must be at least 1, got (0, 1)"),
    ("deform_conv2d", {"padding": 2**70}, ValueError, f"padding must be less than 2³¹, got {2**70}"),
    ("deform_conv2d", {"dilation": (1, 2**31)}, ValueError, f"dilation must be less than 2³¹, got {(1, 2**31)}"),
    ("deform_conv2d", {"stride": 1.5}, TypeError, "stride must be an int or a pair of ints, got 1.5"),
    (
        "deform_conv2d",
        {"padding": "same"},
        TypeError,
        "padding must be an int or a pair of ints, got 'same'",
    ),
    (
        "deform_conv2d",
        {"stride": (1, 1, 1)},
        TypeError,
        "stride must be an int or a pair of ints, got (1, 1, 1)",
    ),
    (
        "deform_conv2d",
        {"boundary": "reflect"},
        ValueError,
        "boundary must be one of ('zeros', 'clamp'), got 'reflect'",
    ),
    (
        "deform_conv2d",
        {"input": Z(4, 8, 8)},
        ValueError,
        "input must have shape (N, C, H, W), got (4, 8, 8)",
    ),
    (
        "deform_conv2d",
        {"weight": Z(6, 2, 3)},
        ValueError,
        "weight must have shape (O, C/groups, Kh, Kw), got (6, 2, 3)",
    ),
    (
        "deform_conv2d",
        {"offset": Z(36, 8, 8)},
        ValueError,
        "offset must have shape (N, 2·G·Kh·Kw, Ho, Wo), got (36, 8, 8)",
    ),
    (
        "deform_conv2d",
        {"input": Z(2, 4, 8, 8, dtype=torch.int32)},
        TypeError,
        "input must be float32 or float64 or bfloat16 or float16, got int32",
    ),
    (
        "deform_conv2d",
        {"input": Z(2, 4, 8, 8, dtype=torch.complex64)},
        TypeError,
        "input must be float32 or float64 or bfloat16 or float16, got complex64",
    ),
    (
        "deform_conv2d",
        {"offset": Z(2, 36, 8, 8, dtype=torch.float64)},
        TypeError,
        "offset must be float32, got float64",
    ),
    (
        "deform_conv2d",
        {"mask": Z(2, 18, 8, 8, dtype=torch.float16)},
        TypeError,
        "mask must be float32, got float16",
    ),
    (
        "deform_conv2d",
        {"input": Z(2, 4, 8, 8, dtype=torch.bfloat16)},
        TypeError,
        "weight must be bfloat16, got float32",
    ),
    (
        "deform_conv2d",
        {"input": Z(2, 4, 8, 8).half(), "weight": Z(6, 2, 3, 3).half()},
        TypeError,
        "bias must be float16, got float32",
    ),
    (
        "deform_conv2d",
        {"input": Z(2, 4, 8, 8).half(), "weight": Z(6, 2, 3, 3).half(), "offset": Z(2, 36, 8, 8).bfloat16()},
        TypeError,
        "offset must be float16 or float32, got bfloat16",
    ),
    (
        "deform_conv2d",
        {"weight": Z(0, 2, 3, 3)},
        ValueError,
        "weight must not be empty, got (0, 2, 3, 3)",
    ),
    (
        "deform_conv2d",
        {"weight": Z(6, 2, 0, 3)},
        ValueError,
        "weight must not be empty, got (6, 2, 0, 3)",
    ),
    (
        "deform_conv2d",
        {"weight": Z(6, 3, 3, 3)},
        ValueError,
        "the 4 channels of input must be divisible by the 3 channels per group of weight",
    ),
    (
        "deform_conv2d",
        {"weight": Z(5, 2, 3, 3)},
        ValueError,
        "the 5 output channels of weight must be divisible by its 2 groups",
    ),
    (
        "deform_conv2d",
        {"weight": Z(6, 2, 9, 9), "padding": 0},
        ValueError,
        "the output would be 0×0, the 9×9 kernel with dilation (1, 1) and padding (0, 0) does not fit "
        "into the 8×8 input",
    ),
    (
        "deform_conv2d",
        {"dilation": (1, 20)},
        ValueError,
        "the output would be 8×-30, the 3×3 kernel with dilation (1, 20) and padding (1, 1) does not "
        "fit into the 8×8 input",
    ),
    (
        "deform_conv2d",
        {"input": Z(2, 4, 0, 8), "padding": 4},
        ValueError,
        "the output would be 6×14, the 3×3 kernel with dilation (1, 1) and padding (4, 4) does not fit "
        "into the 0×8 input",
    ),
    (
        "deform_conv2d",
        {"offset": Z(2, 9, 8, 8)},
        ValueError,
        "offset must have shape (N, 2·G·Kh·Kw, Ho, Wo) = (2, 18, 8, 8), got (2, 9, 8, 8). Did you pass "
        "only one coordinate per tap?",
    ),
    (
        "deform_conv2d",
        {"offset": Z(2, 27, 8, 8)},
        ValueError,
        "offset must have shape (N, 2·G·Kh·Kw, Ho, Wo) = (2, 18, 8, 8), got (2, 27, 8, 8).",
    ),
    (
        "deform_conv2d",
        {"offset": Z(2, 54, 8, 8)},
        ValueError,
        "offset must have shape (N, 2·G·Kh·Kw, Ho, Wo), where G divides the 4 channels of input, got "
        "(2, 54, 8, 8), which is G = 3",
    ),
    (
        "deform_conv2d",
        {"offset": Z(1, 36, 8, 8)},
        ValueError,
        "offset must have shape (N, 2·G·Kh·Kw, Ho, Wo) = (2, 36, 8, 8), got (1, 36, 8, 8).",
    ),
    (
        "deform_conv2d",
        {"stride": 2},
        ValueError,
        "offset must have shape (N, 2·G·Kh·Kw, Ho, Wo) = (2, 36, 4, 4), got (2, 36, 8, 8).",
    ),
    (
        "deform_conv2d",
        {"mask": Z(2, 9, 8, 8)},
        ValueError,
        "mask must have shape (N, G·Kh·Kw, Ho, Wo) = (2, 18, 8, 8), got (2, 9, 8, 8).",
    ),
    (
        "deform_conv2d",
        {"bias": Z(4)},
        ValueError,
        "bias must have shape (O,) = (6,), got (4,).",
    ),
    (
        "deform_conv2d",
        {"bias": Z(1, 6)},
        ValueError,
        "bias must have shape (O,) = (6,), got (1, 6).",
    ),
    (
        "deform_conv2d",
        {"implementation": "fast"},
        ValueError,
        "implementation must be one of ('auto', 'native', 'reference'), got 'fast'",
    ),
]

# What only a call of the raw operator can pass: (operator, arguments).
RAW: list[tuple[str, dict[str, Any]]] = [
    ("deform_conv2d", {"stride": (1,)}),
    ("deform_conv2d", {"padding": (1, 1, 1)}),
    ("deform_conv2d", {"dilation": (1 << 40, 1)}),
    # A kernel of 2⁵⁸ taps, whose extent overflows.
    ("deform_conv2d", {"weight": Z(1, 1, 1, 1).expand(4, 2, 1 << 58, 1), "dilation": (1 << 30, 1)}),
]
