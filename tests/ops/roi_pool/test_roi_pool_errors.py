"""Every error sentence of roi_pool and ps_roi_pool, the same in eager, for fake tensors and under torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pliant import _native, ops

Z = torch.zeros
# Right, until one argument is replaced.
RIGHT: dict[str, Any] = {"input": Z(2, 8, 6, 6), "boxes": Z(3, 5), "output_size": 2}
FLOATS = "float32 or float64 or bfloat16 or float16"

# For both operators.
WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "input is no tensor": ({"input": 3}, TypeError, "input must be a tensor, got int"),
    "boxes are none": ({"boxes": 3}, TypeError, "boxes must be a tensor (R, 5) or a list of tensors (n, 4), got int"),
    "a box is a list": (
        {"boxes": [[0, 0, 1, 1]]},
        TypeError,
        "boxes must be a tensor (R, 5) or a list of tensors (n, 4), got list",
    ),
    "one list for two images": (
        {"boxes": [Z(1, 4)]},
        ValueError,
        "boxes must hold one tensor for each of the 2 images, got 1",
    ),
    "boxes with an image in a list": (
        {"boxes": [Z(1, 4), Z(1, 5)]},
        ValueError,
        "boxes[1] must have shape (n, 4), got (1, 5)",
    ),
    "input without batch": ({"input": Z(8, 6, 6)}, ValueError, "input must have shape (N, C, H, W), got (8, 6, 6)"),
    "integer input": ({"input": Z(2, 8, 6, 6).int()}, TypeError, f"input must be {FLOATS}, got int32"),
    "integer boxes": ({"boxes": Z(3, 5).int()}, TypeError, "boxes must be float32, got int32"),
    "float64 boxes": ({"boxes": Z(3, 5).double()}, TypeError, "boxes must be float32, got float64"),
    "half boxes of bfloat16": (
        {"input": Z(2, 8, 6, 6).bfloat16(), "boxes": Z(3, 5).half()},
        TypeError,
        "boxes must be float32 or bfloat16, got float16",
    ),
    "empty map": (
        {"input": Z(2, 8, 0, 6)},
        ValueError,
        "input must not be an empty map, got (2, 8, 0, 6)",
    ),
    "boxes without an image": (
        {"boxes": Z(3, 4)},
        ValueError,
        "boxes must have shape (R, 5) = (3, 5), got (3, 4). The first of the five is the index of the image.",
    ),
    "one box": ({"boxes": Z(5)}, ValueError, "boxes must have shape (R, 5), got (5,)"),
    "no bins": ({"output_size": 0}, ValueError, "output_size must be at least 1, got 0"),
    "three sizes": (
        {"output_size": (2, 2, 2)},
        TypeError,
        "output_size must be an int or a pair of ints, got (2, 2, 2)",
    ),
    "half a bin": ({"output_size": 2.5}, TypeError, "output_size must be an int or a pair of ints, got 2.5"),
    "implementation": (
        {"implementation": "fast"},
        ValueError,
        "implementation must be one of ('auto', 'native', 'reference'), got 'fast'",
    ),
}
# For one of them.
OWN: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "channels of no bin": (
        "ps_roi_pool",
        {"output_size": 3},
        ValueError,
        "the 3×3 = 9 bins must divide the 8 channels of input",
    ),
    "too many pixels": (
        "roi_pool",
        {"input": Z(1, 1, 1, 1).expand(1, 1, 2**16, 2**15)},
        ValueError,
        "input must have fewer than 2³¹ pixels, got 65536×32768",
    ),
}
CASES = [(op, *wrong) for op in ("roi_pool", "ps_roi_pool") for wrong in WRONG.values()] + list(OWN.values())
IDS = [f"{op} {name}" for op in ("roi_pool", "ps_roi_pool") for name in WRONG] + list(OWN)
EVERY = pytest.mark.parametrize(("name", "change", "kind", "sentence"), CASES, ids=IDS)


@EVERY
def test_eager(name: str, change: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind) as raised:
        getattr(ops, name)(**{**RIGHT, **change})
    assert str(raised.value) == f"{name}: {sentence}"


@EVERY
def test_fake_tensors(name: str, change: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    with FakeTensorMode() as mode:

        def faked(value: Any) -> Any:
            if isinstance(value, list):
                return [faked(v) for v in value]
            return mode.from_tensor(value) if isinstance(value, Tensor) else value

        fake = {k: faked(v) for k, v in {**RIGHT, **change}.items()}
        with pytest.raises(kind) as raised:
            getattr(ops, name)(**fake)
    assert str(raised.value) == f"{name}: {sentence}"


@EVERY
def test_compiled(name: str, change: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda values: getattr(ops, name)(**values) + 1, backend="eager")
    with pytest.raises(kind) as raised:
        compiled({**RIGHT, **change})
    assert str(raised.value) == f"{name}: {sentence}"


@pytest.mark.parametrize("name", ["roi_pool", "ps_roi_pool"])
def test_boxes_on_another_device(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: boxes is on meta, input on cpu; move one of them$"):
        getattr(ops, name)(**{**RIGHT, "boxes": RIGHT["boxes"].to("meta")})


@pytest.mark.parametrize("name", ["roi_pool", "ps_roi_pool"])
def test_without_kernels(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(_native, "path", None)
    monkeypatch.setattr(_native, "reason", "pliant/_C.so is not installed beside the Python files")
    monkeypatch.setattr(_native, "_warned", set())
    with pytest.raises(RuntimeError, match=f'^{name}: implementation="native" is not possible here, pliant/_C.so is'):
        getattr(ops, name)(**RIGHT, implementation="native")
    with pytest.warns(RuntimeWarning, match=f"^{name}: runs on the slow reference, pliant/_C.so is not installed"):
        first = getattr(ops, name)(**RIGHT)
    assert torch.equal(first, getattr(ops, name)(**RIGHT))
