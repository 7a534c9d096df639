"""Every error sentence of the RoI averages, the same in eager, for fake tensors and under torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pliant import _native, ops

Z = torch.zeros

# Right, until one argument is replaced.
RIGHT: dict[str, dict[str, Any]] = {
    "deform_roi_pool": {
        "input": Z(2, 8, 6, 7),
        "rois": Z(3, 5),
        "offset": Z(3, 2, 2, 4),
        "output_size": (2, 4),
        "mask": Z(3, 1, 2, 4),
    },
    "roi_align": {"input": Z(2, 8, 6, 7), "boxes": Z(3, 5), "output_size": (2, 4)},
    "deform_psroi_pool": {
        "input": Z(2, 8, 6, 7),
        "rois": Z(3, 5),
        "offset": Z(3, 4, 3, 3),
        "output_size": 2,
        "group_size": 2,
        "part_size": 3,
        "mask": Z(3, 1, 2, 2),
    },
    "ps_roi_align": {"input": Z(2, 8, 6, 7), "boxes": Z(3, 5), "output_size": (2, 4)},
}
KINDS = "float32 or float64 or bfloat16 or float16"


def _everywhere(op: str, boxes: str) -> list[tuple[dict[str, Any], type[Exception], str]]:
    """Return what all four say; `boxes` is what they call their boxes."""
    return [
        ({"input": [1.0]}, TypeError, "input must be a tensor, got list"),
        ({boxes: None}, TypeError, f"{boxes} must be a tensor (R, 5) or a list of tensors (n, 4), got NoneType"),
        ({boxes: [1, 2]}, TypeError, f"{boxes} must be a tensor (R, 5) or a list of tensors (n, 4), got list"),
        ({boxes: [Z(3, 4)]}, ValueError, f"{boxes} must hold one tensor for each of the 2 images, got 1"),
        ({boxes: [Z(3, 4), Z(0, 5)]}, ValueError, f"{boxes}[1] must have shape (n, 4), got (0, 5)"),
        ({boxes: Z(5)}, ValueError, f"{boxes} must have shape (R, 5), got (5,)"),
        (
            {boxes: Z(3, 4)},
            ValueError,
            f"{boxes} must have shape (R, 5) = (3, 5), got (3, 4). The first of the five is the index of the image.",
        ),
        ({boxes: Z(3, 6)}, ValueError, f"{boxes} must have shape (R, 5) = (3, 5), got (3, 6)."),
        ({boxes: Z(3, 5).double()}, TypeError, f"{boxes} must be float32, got float64"),
        ({boxes: Z(3, 5).half()}, TypeError, f"{boxes} must be float32, got float16"),
        ({boxes: Z(3, 5, dtype=torch.int64)}, TypeError, f"{boxes} must be float32, got int64"),
        ({"input": Z(8, 6, 7)}, ValueError, "input must have shape (N, C, H, W), got (8, 6, 7)"),
        ({"input": Z(2, 8, 6, 7, dtype=torch.int32)}, TypeError, f"input must be {KINDS}, got int32"),
        ({"input": Z(2, 8, 0, 7)}, ValueError, "input must not be an empty map, got (2, 8, 0, 7)"),
        ({"input": Z(2, 0, 6, 7)}, ValueError, "input must not be an empty map, got (2, 0, 6, 7)"),
        ({"output_size": 0}, ValueError, "output_size must be at least 1, got 0"),
        (
            {"implementation": "fast"},
            ValueError,
            "implementation must be one of ('auto', 'native', 'reference'), got 'fast'",
        ),
    ]


def _of_grids() -> list[tuple[dict[str, Any], type[Exception], str]]:
    return [
        ({"output_size": 1.5}, TypeError, "output_size must be an int or a pair of ints, got 1.5"),
        ({"output_size": (2, 4, 1)}, TypeError, "output_size must be an int or a pair of ints, got (2, 4, 1)"),
        ({"output_size": (2, -1)}, ValueError, "output_size must be at least 1, got (2, -1)"),
        ({"sampling_ratio": 2.0}, TypeError, "sampling_ratio must be an int, got 2.0"),
    ]


def _of_moved(offset: tuple[int, ...], letters: str, bins: int) -> list[tuple[dict[str, Any], type[Exception], str]]:
    return [
        ({"offset": 3}, TypeError, "offset must be a tensor, got int"),
        ({"mask": True}, TypeError, "mask must be a tensor, got bool"),
        ({"offset": Z(offset).double()}, TypeError, "offset must be float32, got float64"),
        ({"mask": Z(3, 1, 2, bins).half()}, TypeError, "mask must be float32, got float16"),
        (
            {"input": Z(2, 8, 6, 7).half(), "offset": Z(offset).bfloat16()},
            TypeError,
            "offset must be float16 or float32, got bfloat16",
        ),
        (
            {"mask": Z(3, 2, bins)},
            ValueError,
            f"mask must have shape (R, 1, Ph, Pw) = (3, 1, 2, {bins}), got (3, 2, {bins})",
        ),
        (
            {"mask": Z(2, 1, 2, bins)},
            ValueError,
            f"mask must have shape (R, 1, Ph, Pw) = (3, 1, 2, {bins}), got (2, 1, 2, {bins})",
        ),
        (
            {"offset": Z(2, *offset[1:])},
            ValueError,
            f"offset must have shape {letters} = {offset}, got {(2, *offset[1:])}",
        ),
    ]


CASES: list[tuple[str, dict[str, Any], type[Exception], str]] = []
for _op in RIGHT:
    _all = _everywhere(_op, "rois" if _op.startswith("deform") else "boxes")
    if _op != "deform_psroi_pool":
        _all += _of_grids()
    if _op == "deform_roi_pool":
        _all += _of_moved((3, 2, 2, 4), "(R, 2, Ph, Pw)", 4)
        _all.append(
            (
                {"offset": Z(3, 2, 4, 2)},
                ValueError,
                "offset must have shape (R, 2, Ph, Pw) = (3, 2, 2, 4), got (3, 2, 4, 2)",
            )
        )
    if _op == "ps_roi_align":
        _all.append(
            (
                {"output_size": 3},
                ValueError,
                "the 3×3 = 9 bins must divide the 8 channels of input",
            )
        )
    if _op == "deform_psroi_pool":
        _letters = "(R, 2·classes, part_size, part_size)"
        _all += _of_moved((3, 4, 3, 3), _letters, 2)
        _all += [
            ({"output_size": (2, 2)}, TypeError, "output_size must be an int, got (2, 2)"),
            ({"group_size": 0}, ValueError, "group_size must be at least 1, got 0"),
            ({"part_size": 2.0}, TypeError, "part_size must be an int, got 2.0"),
            ({"sample_per_part": 0}, ValueError, "sample_per_part must be at least 1, got 0"),
            ({"sample_per_part": True}, TypeError, "sample_per_part must be an int, got True"),
            ({"group_size": 3}, ValueError, "group_size² = 9 must divide the 8 channels of input"),
            ({"part_size": 2}, ValueError, f"offset must have shape {_letters} = (3, 4, 2, 2), got (3, 4, 3, 3)"),
            ({"part_size": None}, ValueError, f"offset must have shape {_letters} = (3, 4, 2, 2), got (3, 4, 3, 3)"),
            (
                {"offset": Z(3, 3, 3, 3)},
                ValueError,
                f"offset must have shape {_letters} = (3, 2, 3, 3), got (3, 3, 3, 3)",
            ),
            (
                {"offset": Z(3, 4, 3)},
                ValueError,
                "offset must have shape (R, 2·classes, part_size, part_size), got (3, 4, 3)",
            ),
            (
                {"offset": Z(3, 6, 3, 3)},
                ValueError,
                "offset has 3 classes, which must divide the 2 channels of the output",
            ),
        ]
    CASES += [(_op, *case) for case in _all]
EVERY = pytest.mark.parametrize(
    ("op", "change", "kind", "sentence"), CASES, ids=[f"{op}-{sentence[:40]}" for op, _, _, sentence in CASES]
)


@pytest.mark.parametrize("op", RIGHT)
def test_the_right_arguments_are_right(of: Any, op: str) -> None:
    assert getattr(of, op)(**RIGHT[op]).shape[0] == 3


@EVERY
def test_eager(op: str, change: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind) as raised:
        getattr(ops, op)(**{**RIGHT[op], **change})
    assert str(raised.value).startswith(f"{op}: {sentence}")


def _fake(mode: FakeTensorMode, value: Any) -> Any:
    if isinstance(value, list):
        return [_fake(mode, v) for v in value]
    return mode.from_tensor(value) if isinstance(value, Tensor) else value


@EVERY
def test_fake_tensors(op: str, change: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    with FakeTensorMode() as mode:
        fake = {k: _fake(mode, v) for k, v in {**RIGHT[op], **change}.items()}
        with pytest.raises(kind) as raised:
            getattr(ops, op)(**fake)
    assert str(raised.value).startswith(f"{op}: {sentence}")


@EVERY
def test_compiled_names_the_sentence(op: str, change: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    # With fullgraph=True torch wraps whatever is raised while tracing; the sentence stands in the message.
    torch._dynamo.reset()
    compiled = torch.compile(lambda values: getattr(ops, op)(**values) + 1, backend="aot_eager", fullgraph=True)
    with pytest.raises(RuntimeError) as raised:
        compiled({**RIGHT[op], **change})
    assert f"{op}: {sentence}" in str(raised.value)


@pytest.mark.parametrize(
    ("op", "name"),
    [(op, name) for op in RIGHT for name, t in RIGHT[op].items() if isinstance(t, Tensor) and name != "input"],
)
def test_tensors_on_different_devices(op: str, name: str) -> None:
    values = {**RIGHT[op], name: RIGHT[op][name].to("meta")}
    with pytest.raises(ValueError, match=f"^{op}: {name} is on meta, input on cpu; move one of them$"):
        getattr(ops, op)(**values)


@pytest.mark.parametrize("op", RIGHT)
def test_boxes_where_there_is_no_image(of: Any, op: str) -> None:
    name = "rois" if "rois" in RIGHT[op] else "boxes"
    values = {**RIGHT[op], "input": Z(0, 8, 6, 7)}
    with pytest.raises(ValueError, match=f"^{op}: {name}\\[0, 0\\] must be the index of one of the 0 images, got 0$"):
        getattr(of, op)(**values)
    with pytest.raises(ValueError, match=f"^{op}: {name} must hold one tensor for each image, got none; pass a tensor"):
        getattr(of, op)(**{**values, name: []})


# The kernels themselves, which exported graphs call.

GEOMETRY: dict[str, tuple[Any, ...]] = {
    "deform_roi_pool": ((2, 4), 1.0, 0, 0.1),
    "roi_align": ((2, 4), 1.0, 0, True),
    "deform_psroi_pool": (2, 1.0, 2, 3, 4, 0.1),
    "ps_roi_align": ((2, 4), 1.0, 0),
}
WRONG_TENSORS = [(op, change) for op, change, _, _ in CASES if all(isinstance(v, Tensor) for v in change.values())]
WRONG_GEOMETRY: list[tuple[str, int, object]] = [
    ("deform_roi_pool", 0, (0, 4)),
    ("deform_roi_pool", 0, (2, -4)),
    ("deform_roi_pool", 0, (2, 3)),
    ("deform_roi_pool", 0, (2,)),
    ("deform_roi_pool", 0, (2, 4, 4)),
    ("roi_align", 0, (1 << 40, 4)),
    ("deform_psroi_pool", 0, 3),
    ("deform_psroi_pool", 2, 0),
    ("deform_psroi_pool", 2, 3),
    ("deform_psroi_pool", 3, 0),
    ("deform_psroi_pool", 3, 2),
    ("deform_psroi_pool", 4, 0),
    ("ps_roi_align", 0, (3, 4)),
]


def _given(op: str, change: dict[str, Any] | None = None, geometry: Any = None) -> list[Any]:
    """Return the arguments of the operator itself."""
    values = {**RIGHT[op], **(change or {})}
    tensors = [values[name] for name in ("input", "rois", "boxes", "offset") if name in values]
    return [*tensors, *(geometry or GEOMETRY[op]), *([values["mask"]] if "mask" in values else [])]


@pytest.mark.parametrize(("op", "change"), WRONG_TENSORS)
def test_the_kernel_refuses_what_the_checks_refuse(op: str, change: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError):
        getattr(torch.ops.pliant, op)(*_given(op, change))


@pytest.mark.parametrize(("op", "place", "value"), WRONG_GEOMETRY)
def test_the_kernel_refuses_geometry_that_does_not_fit(op: str, place: int, value: object) -> None:
    geometry = [*GEOMETRY[op]]
    geometry[place] = value
    with pytest.raises(RuntimeError):
        getattr(torch.ops.pliant, op)(*_given(op, geometry=geometry))


@pytest.mark.parametrize("op", RIGHT)
def test_the_backward_kernel_refuses_another_gradient(op: str) -> None:
    right = getattr(torch.ops.pliant, op)(*_given(op))
    wanted = (7,) if op.startswith("deform") else ()
    backward = getattr(torch.ops.pliant, f"{op}_backward")
    backward(right, *_given(op), *wanted)
    for grad in (right[:2], right[:, :0], right[..., :1], right.double(), right[0]):
        with pytest.raises(RuntimeError):
            backward(grad, *_given(op), *wanted)


# What is missing.


@pytest.mark.parametrize("op", RIGHT)
def test_native_says_what_is_missing(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "path", None)
    monkeypatch.setattr(_native, "reason", "pliant/_C.so is not installed beside the Python files")
    monkeypatch.setattr(_native, "_warned", set())
    with pytest.raises(RuntimeError) as raised:
        getattr(ops, op)(**RIGHT[op], implementation="native")
    assert str(raised.value) == (
        f'{op}: implementation="native" is not possible here, pliant/_C.so is not installed beside the Python files'
    )
    with pytest.warns(RuntimeWarning, match=f"^{op}: runs on the slow reference, pliant/_C.so is not installed"):
        first = getattr(ops, op)(**RIGHT[op])
    assert torch.equal(first, getattr(ops, op)(**RIGHT[op]))
