"""Every error sentence of local response normalization, in eager, for fake tensors and under torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from pliant.ops import local_response_norm, lrn

IMAGE = torch.zeros(2, 6, 5, 4)
ERRORS: list[tuple[Callable[..., Tensor], dict[str, Any], type[Exception], str]] = [
    (
        local_response_norm,
        {"input": torch.zeros(5), "size": 3},
        ValueError,
        "local_response_norm: input must have shape (N, C, ...), got (5,)",
    ),
    (
        local_response_norm,
        {"input": torch.zeros(2, 6, 5), "size": 3, "region": "spatial"},
        ValueError,
        "local_response_norm: input must have shape (N, C, ..., H, W), got (2, 6, 5)",
    ),
    (
        local_response_norm,
        {"input": IMAGE, "size": 0},
        ValueError,
        "local_response_norm: size must be at least 1, got 0",
    ),
    (
        local_response_norm,
        {"input": IMAGE, "size": 4, "region": "spatial"},
        ValueError,
        "local_response_norm: size must be odd with region='spatial', got 4",
    ),
    (
        local_response_norm,
        {"input": IMAGE, "size": 3, "region": "within"},
        ValueError,
        "local_response_norm: region must be one of ('channel', 'spatial'), got 'within'",
    ),
    (
        local_response_norm,
        {"input": IMAGE, "size": 3, "even": "both"},
        ValueError,
        "local_response_norm: even must be one of ('left', 'right'), got 'both'",
    ),
    (
        local_response_norm,
        {"input": IMAGE, "size": 3, "implementation": "fast"},
        ValueError,
        "local_response_norm: implementation must be one of ('auto', 'native', 'reference'), got 'fast'",
    ),
    (
        local_response_norm,
        {"input": IMAGE.int(), "size": 3},
        TypeError,
        "local_response_norm: input must be float32 or float64 or bfloat16 or float16, got int32",
    ),
    (
        local_response_norm,
        {"input": IMAGE, "size": 2.5},
        TypeError,
        "local_response_norm: size must be an int, got 2.5",
    ),
    (
        local_response_norm,
        {"input": IMAGE, "size": 3, "beta": "steep"},
        TypeError,
        "local_response_norm: beta must be a number, got 'steep'",
    ),
    (lrn, {"input": torch.zeros(())}, ValueError, "lrn: input must have shape (..., C), got ()"),
    (lrn, {"input": IMAGE, "depth_radius": -1}, ValueError, "lrn: depth_radius must be at least 0, got -1"),
    (lrn, {"input": IMAGE, "depth_radius": "2"}, TypeError, "lrn: depth_radius must be an int, got '2'"),
    (lrn, {"input": IMAGE, "alpha": None}, TypeError, "lrn: alpha must be a number, got None"),
    (
        lrn,
        {"input": IMAGE.bool()},
        TypeError,
        "lrn: input must be float32 or float64 or bfloat16 or float16, got bool",
    ),
]
bad = pytest.mark.parametrize(("function", "arguments", "kind", "sentence"), ERRORS, ids=[e[3][:60] for e in ERRORS])


@bad
def test_error_sentences(
    function: Callable[..., Tensor], arguments: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind) as eager:
        function(**arguments)
    assert str(eager.value) == sentence

    with FakeTensorMode() as mode, pytest.raises(kind) as fake:
        function(**{name: mode.from_tensor(a) if isinstance(a, Tensor) else a for name, a in arguments.items()})
    assert str(fake.value) == sentence

    torch._dynamo.reset()
    compiled = torch.compile(function, backend="eager", dynamic=True)
    with pytest.raises(kind) as traced:
        compiled(**arguments)
    assert str(traced.value) == sentence


def test_what_is_not_a_tensor() -> None:
    with pytest.raises(TypeError, match=r"^local_response_norm: input must be a tensor, got list$"):
        local_response_norm([1.0], 3)  # type: ignore[arg-type]
