"""What the normalizations say about wrong arguments: (operators, the wrong argument, exception, sentence)."""

from __future__ import annotations

from typing import Any

import torch

Z = torch.zeros
IMAGE = Z(2, 6, 5, 4)

# Right, until one argument is replaced.
RIGHT: dict[str, dict[str, Any]] = {"local_response_norm": {"input": IMAGE, "size": 3}, "lrn": {"input": IMAGE}}

WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (
        "local_response_norm",
        {"input": Z(5)},
        ValueError,
        "input must have shape (N, C, ...), got (5,)",
    ),
    (
        "local_response_norm",
        {"input": Z(2, 6, 5), "size": 3, "region": "spatial"},
        ValueError,
        "input must have shape (N, C, ..., H, W), got (2, 6, 5)",
    ),
    (
        "local_response_norm",
        {"size": 0},
        ValueError,
        "size must be at least 1, got 0",
    ),
    (
        "local_response_norm",
        {"size": 4, "region": "spatial"},
        ValueError,
        "size must be odd with region='spatial', got 4",
    ),
    (
        "local_response_norm",
        {"region": "within"},
        ValueError,
        "region must be one of ('channel', 'spatial'), got 'within'",
    ),
    (
        "local_response_norm",
        {"even": "both"},
        ValueError,
        "even must be one of ('left', 'right'), got 'both'",
    ),
    (
        "local_response_norm",
        {"implementation": "fast"},
        ValueError,
        "implementation must be one of ('auto', 'native', 'reference'), got 'fast'",
    ),
    (
        "local_response_norm",
        {"input": IMAGE.int()},
        TypeError,
        "input must be float32 or float64 or bfloat16 or float16, got int32",
    ),
    (
        "local_response_norm",
        {"size": 2.5},
        TypeError,
        "size must be an int, got 2.5",
    ),
    (
        "local_response_norm",
        {"beta": "steep"},
        TypeError,
        "beta must be a number, got 'steep'",
    ),
    ("lrn", {"input": Z(())}, ValueError, "input must have shape (..., C), got ()"),
    ("lrn", {"depth_radius": -1}, ValueError, "depth_radius must be at least 0, got -1"),
    ("lrn", {"depth_radius": "2"}, TypeError, "depth_radius must be an int, got '2'"),
    ("lrn", {"alpha": None}, TypeError, "alpha must be a number, got None"),
    (
        "lrn",
        {"input": IMAGE.bool()},
        TypeError,
        "input must be float32 or float64 or bfloat16 or float16, got bool",
    ),
    ("local_response_norm lrn", {"input": [1.0]}, TypeError, "input must be a tensor, got list"),
    (
        "lrn",
        {"implementation": "fast"},
        ValueError,
        "implementation must be one of ('auto', 'native', 'reference'), got 'fast'",
    ),
]

# What only a call of the raw operator can pass: (operator, arguments).
RAW: list[tuple[str, dict[str, Any]]] = [
    ("local_response_norm", {"dim": 4}),
    ("local_response_norm", {"dim": -1}),
    ("local_response_norm", {"before": -1}),
    ("local_response_norm", {"after": -1}),
]
