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
    },
    "deform_conv1d": {
        "input": Z(2, 4, 8),
        "offset": Z(2, 6, 8),
        "weight": Z(6, 2, 3),
        "bias": Z(6),
        "mask": Z(2, 6, 8),
        "padding": 1,
    },
    "deform_conv3d": {
        "input": Z(2, 4, 3, 4, 5),
        "offset": Z(2, 72, 3, 4, 5),
        "weight": Z(6, 2, 3, 2, 2),
        "bias": Z(6),
        "mask": Z(2, 24, 3, 4, 5),
        "padding": (1, 1, 1),
        "dilation": (1, 2, 2),
    },
    "deform_conv_transpose2d": {
        "input": Z(2, 4, 5, 4),
        "offset": Z(2, 36, 5, 4),
        "weight": Z(4, 3, 3, 3),
        "bias": Z(6),
        "mask": Z(2, 18, 5, 4),
        "stride": 2,
        "groups": 2,
    },
}

_REST = "deform_conv1d deform_conv3d deform_conv_transpose2d"
_ANY_AXES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input": 3}, TypeError, "input must be a tensor, got int"),
    ({"mask": "zeros"}, TypeError, "mask must be a tensor, got str"),
    ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
    ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
    ({"dilation": 2**31}, ValueError, f"dilation must be less than 2³¹, got {2**31}"),
    ({"boundary": "reflect"}, ValueError, "boundary must be one of ('zeros', 'clamp'), got 'reflect'"),
    ({"offset": Z(1, dtype=torch.float64)}, TypeError, "offset must be float32, got float64"),
    ({"bias": Z(6).half()}, TypeError, "bias must be float32, got float16"),
    ({"bias": Z(4)}, ValueError, "bias must have shape (O,) = (6,), got (4,)."),
    (
        {"implementation": "fast"},
        ValueError,
        "implementation must be one of ('auto', 'native', 'reference'), got 'fast'",
    ),
]

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
    # Of all convolutions of the family.
    *((_REST, *sentence) for sentence in _ANY_AXES),
    ("deform_conv1d", {"stride": 1.5}, TypeError, "stride must be an int or a sequence of one, got 1.5"),
    ("deform_conv1d", {"padding": (1, 1)}, TypeError, "padding must be an int or a sequence of one, got (1, 1)"),
    ("deform_conv1d", {"input": Z(4, 8)}, ValueError, "input must have shape (N, C, W), got (4, 8)"),
    (
        "deform_conv1d",
        {"weight": Z(6, 2, 3, 3)},
        ValueError,
        "weight must have shape (O, C/groups, Kw), got (6, 2, 3, 3)",
    ),
    ("deform_conv1d", {"weight": Z(6, 2, 0)}, ValueError, "weight must not be empty, got (6, 2, 0)"),
    (
        "deform_conv1d",
        {"weight": Z(6, 3, 3)},
        ValueError,
        "the 4 channels of input must be divisible by the 3 channels per group of weight",
    ),
    (
        "deform_conv1d",
        {"weight": Z(6, 2, 9), "padding": 0},
        ValueError,
        "the output would be 0, the 9 kernel with dilation (1,) and padding (0,) does not fit into the 8 input",
    ),
    (
        "deform_conv1d",
        {"offset": Z(2, 6, 7)},
        ValueError,
        "offset must have shape (N, G·Kw, Wo) = (2, 6, 8), got (2, 6, 7).",
    ),
    (
        "deform_conv1d",
        {"offset": Z(2, 9, 8)},
        ValueError,
        "offset must have shape (N, G·Kw, Wo), where G divides the 4 channels of input, got (2, 9, 8), which is G = 3",
    ),
    (
        "deform_conv1d",
        {"mask": Z(2, 3, 8)},
        ValueError,
        "mask must have shape (N, G·Kw, Wo) = (2, 6, 8), got (2, 3, 8).",
    ),
    ("deform_conv3d", {"stride": (1, 1)}, TypeError, "stride must be an int or three ints, got (1, 1)"),
    ("deform_conv3d", {"input": Z(4, 3, 4, 5)}, ValueError, "input must have shape (N, C, D, H, W), got (4, 3, 4, 5)"),
    (
        "deform_conv3d",
        {"weight": Z(6, 2, 3, 2)},
        ValueError,
        "weight must have shape (O, C/groups, Kd, Kh, Kw), got (6, 2, 3, 2)",
    ),
    (
        "deform_conv3d",
        {"weight": Z(6, 2, 9, 2, 2)},
        ValueError,
        "the output would be -3×4×5, the 9×2×2 kernel with dilation (1, 2, 2) and padding (1, 1, 1) does not fit into "
        "the 3×4×5 input",
    ),
    (
        "deform_conv3d",
        {"offset": Z(2, 12, 3, 4, 5)},
        ValueError,
        "offset must have shape (N, 3·G·Kd·Kh·Kw, Do, Ho, Wo) = (2, 36, 3, 4, 5), got (2, 12, 3, 4, 5). Did you pass "
        "only one coordinate per tap?",
    ),
    (
        "deform_conv3d",
        {"offset": Z(2, 108, 3, 4, 5)},
        ValueError,
        "offset must have shape (N, 3·G·Kd·Kh·Kw, Do, Ho, Wo), where G divides the 4 channels of input, got "
        "(2, 108, 3, 4, 5), which is G = 3",
    ),
    (
        "deform_conv3d",
        {"mask": Z(2, 12, 3, 4, 5)},
        ValueError,
        "mask must have shape (N, G·Kd·Kh·Kw, Do, Ho, Wo) = (2, 24, 3, 4, 5), got (2, 12, 3, 4, 5).",
    ),
    (
        "deform_conv_transpose2d",
        {"output_padding": -1},
        ValueError,
        "output_padding must be at least 0, got -1",
    ),
    (
        "deform_conv_transpose2d",
        {"output_padding": (1, 2)},
        ValueError,
        "output_padding must be less than stride or dilation, got (1, 2) with stride (2, 2) and dilation (1, 1)",
    ),
    ("deform_conv_transpose2d", {"groups": 1.0}, TypeError, "groups must be an int, got 1.0"),
    ("deform_conv_transpose2d", {"groups": 0}, ValueError, "groups must be at least 1, got 0"),
    ("deform_conv_transpose2d", {"groups": 3}, ValueError, "the 4 channels of input must be divisible by groups=3"),
    ("deform_conv_transpose2d", {"input": Z(4, 5, 4)}, ValueError, "input must have shape (N, C, H, W), got (4, 5, 4)"),
    (
        "deform_conv_transpose2d",
        {"weight": Z(4, 3, 3)},
        ValueError,
        "weight must have shape (C, O/groups, Kh, Kw), got (4, 3, 3)",
    ),
    (
        "deform_conv_transpose2d",
        {"weight": Z(6, 3, 3, 3)},
        ValueError,
        "weight must have the 4 channels of input first, got 6",
    ),
    ("deform_conv_transpose2d", {"weight": Z(4, 0, 3, 3)}, ValueError, "weight must not be empty, got (4, 0, 3, 3)"),
    (
        "deform_conv_transpose2d",
        {"padding": (0, 5)},
        ValueError,
        "the output would be 11×-1, nothing of the 5×4 input remains with padding (0, 5)",
    ),
    (
        "deform_conv_transpose2d",
        {"offset": Z(2, 36, 11, 9)},
        ValueError,
        "offset must have shape (N, 2·G·Kh·Kw, H, W) = (2, 36, 5, 4), got (2, 36, 11, 9).",
    ),
    (
        "deform_conv_transpose2d",
        {"offset": Z(2, 72, 5, 4)},
        ValueError,
        "offset must have shape (N, 2·G·Kh·Kw, H, W), where G divides the 6 channels of output, got (2, 72, 5, 4), "
        "which is G = 4",
    ),
    (
        "deform_conv_transpose2d",
        {"mask": Z(2, 9, 5, 4)},
        ValueError,
        "mask must have shape (N, G·Kh·Kw, H, W) = (2, 18, 5, 4), got (2, 9, 5, 4).",
    ),
]

# What only a call of the raw operator can pass: (operator, arguments).
RAW: list[tuple[str, dict[str, Any]]] = [
    ("deform_conv2d", {"stride": (1,)}),
    ("deform_conv2d", {"padding": (1, 1, 1)}),
    ("deform_conv2d", {"dilation": (1 << 40, 1)}),
    # A kernel of 2⁵⁸ taps, whose extent overflows.
    ("deform_conv2d", {"weight": Z(1, 1, 1, 1).expand(4, 2, 1 << 58, 1), "dilation": (1 << 30, 1)}),
    ("deform_conv1d", {"stride": (1, 1)}),
    ("deform_conv3d", {"dilation": (1, 1)}),
    ("deform_conv3d", {"padding": (1, 1, 1 << 40)}),
    ("deform_conv_transpose2d", {"output_padding": (0,)}),
    ("deform_conv_transpose2d", {"output_padding": (2, 0)}),
    ("deform_conv_transpose2d", {"groups": 0}),
    ("deform_conv_transpose2d", {"groups": 1}),
]
