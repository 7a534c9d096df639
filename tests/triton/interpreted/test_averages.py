"""The Triton kernels of the RoI averages compute the right numbers: run by the interpreter, on CPU tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton.language as tl
from torch import Tensor

from pliant.ops.roi.reference import averages as reference
from pliant.ops.roi.triton import averages as triton
from pliant.testing import PS_ROI_CASES, ROI_CASES, TOLERANCE, RoICase, error

# NumPy's word for what a GPU does without a word.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")

NAMES = ("deform_roi_pool", "roi_align", "deform_psroi_pool", "ps_roi_align")
CASES = {op: {case.name: case for case in (PS_ROI_CASES if "ps" in op else ROI_CASES)} for op in NAMES}
REFERENCES = {op: getattr(reference, op) for op in NAMES}
LEAVES = ("input", "offset", "mask")
# More offsets than bins, channels that take turns; few programs.
PARTS = RoICase("parts", (1, 4, 5, 6), 4, (2, 2), group_size=2, part_size=3, samples=2)


def _arguments(op: str, case: RoICase, t: dict[str, Tensor]) -> tuple[Any, ...]:
    """Return the arguments of the raw operator."""
    size, scale, ratio = case.output_size, case.spatial_scale, case.sampling_ratio
    boxes = t["rois"] if op.startswith("deform") else t["boxes"]
    return {
        "deform_roi_pool": (t["input"], boxes, t.get("offset"), size, scale, ratio, 0.1, t.get("mask")),
        "roi_align": (t["input"], boxes, size, scale, ratio, False),
        "deform_psroi_pool": (
            *(t["input"], boxes, t.get("offset")),
            *(size[0], scale, case.group_size, case.part_size, case.samples, 0.1, t.get("mask")),
        ),
        "ps_roi_align": (t["input"], boxes, size, scale, ratio),
    }[op]


def _expected(op: str, case: RoICase, t: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the float64 output, a gradient to send back (rounded like the input), and what comes back."""
    exact = {name: x.double() for name, x in t.items()}
    leaves = [name for name in LEAVES if name in t]
    for name in leaves:
        exact[name].requires_grad_()
    y = REFERENCES[op](*_arguments(op, case, exact))
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(t["input"].dtype)
    found = torch.autograd.grad(y, [exact[name] for name in leaves], grad.double())
    return y.detach(), grad, dict(zip(leaves, found, strict=True))


def _backward(op: str, case: RoICase, t: dict[str, Tensor], grad: Tensor, wanted: int = 0b111) -> dict[str, Tensor]:
    """Return the gradients that are wanted."""
    arguments = (grad, *_arguments(op, case, t))
    if not op.startswith("deform"):
        return {"input": triton.backward(op, *arguments)}
    found = dict(zip(LEAVES, triton.backward(op, *arguments, wanted), strict=True))
    return {name: g for i, (name, g) in enumerate(found.items()) if name in t and wanted >> i & 1}


def _check(op: str, case: RoICase, t: dict[str, Tensor]) -> None:
    y, grad, expected = _expected(op, case, t)
    output = triton.forward(op, *_arguments(op, case, t))
    assert output.dtype == t["input"].dtype
    format = torch._prims_common.suggest_memory_format(t["input"])
    assert output.is_contiguous(memory_format=format)
    assert error(output, y) < TOLERANCE[output.dtype]
    for name, found in _backward(op, case, t, grad).items():
        assert found.dtype == t[name].dtype
        assert error(found, expected[name]) < TOLERANCE[found.dtype], name


# Each rule once; the whole matrix runs in the workflows only.
QUICK = {
    "deform_roi_pool": ("plain", "adaptive", "row", "none"),
    "roi_align": ("column",),
    "deform_psroi_pool": ("no_groups", "pixel", "none"),
    "ps_roi_align": ("crooked",),
}
EVERY = [
    pytest.param(op, name, marks=() if name in QUICK[op] else pytest.mark.slow) for op in NAMES for name in CASES[op]
]


@pytest.mark.parametrize(("op", "name"), EVERY)
def test_matches_the_float64_reference(op: str, name: str) -> None:
    case = CASES[op][name]
    _check(op, case, case.tensors(op))


@pytest.mark.usefixtures("atomic")
@pytest.mark.parametrize(("op", "dtype"), [("deform_roi_pool", torch.bfloat16), ("deform_psroi_pool", torch.float16)])
def test_low_precision(op: str, dtype: torch.dtype) -> None:
    case = PARTS if "ps" in op else CASES[op]["row"]
    _check(op, case, case.tensors(op, dtype))


def test_channels_last() -> None:
    case = RoICase("last", (1, 3, 5, 6), 2, (2, 2))
    _check("deform_roi_pool", case, case.tensors("deform_roi_pool", channels_last=True))


@pytest.mark.parametrize("left_out", ["offset", "mask"])
def test_without_offset_or_mask_and_with_float32_beside_bfloat16(left_out: str) -> None:
    op, case = "deform_psroi_pool", PARTS
    t = case.tensors(op)
    del t[left_out]
    t["input"] = t["input"].bfloat16()
    _check(op, case, t)


@pytest.mark.usefixtures("atomic")
@pytest.mark.parametrize("op", ["deform_roi_pool", "deform_psroi_pool"])
def test_boxes_and_offsets_that_are_nowhere_read_nothing(op: str) -> None:
    case = RoICase("nowhere", (2, 3, 5, 6), 8, (2, 2), 0.5, 1, part_size=2, samples=1)
    t = case.tensors(op)
    x1, y1, x2, y2 = 1, 2, 3, 4
    t["rois"][0, x1], t["rois"][1, y2], t["rois"][2, x2] = math.nan, math.inf, 3e38
    t["rois"][3, 0], t["rois"][4, 0] = -1, 2
    t["rois"][5, [x1, y1, x2, y2]] = t["rois"][5, [x2, y2, x1, y1]]
    t["offset"][6, 0, 0, 0], t["offset"][6, 1, 1, 0], t["offset"][7, 0, 0, 1] = math.nan, math.inf, -1e30
    _check(op, case, t)


@pytest.mark.parametrize("op", ["deform_roi_pool", "deform_psroi_pool"])
def test_no_image_and_tensors_with_gaps(op: str) -> None:
    case = RoICase("few", (1, 4, 5, 6), 2, (2, 2), group_size=2, part_size=2, samples=1, sampling_ratio=1)
    t = case.tensors(op)
    y, grad, _ = _expected(op, case, t)
    gaps = {name: torch.stack([x, x], -1)[..., 0] for name, x in t.items()}
    assert error(triton.forward(op, *_arguments(op, case, gaps)), y) < TOLERANCE[torch.float32]
    one = grad[:1, :1, :1, :1].expand_as(grad)
    expected = _backward(op, case, t, one.contiguous())
    for name, found in _backward(op, case, gaps, one).items():
        assert torch.equal(found, expected[name]), name
    # Boxes, and no image that they could be in.
    t["input"] = t["input"][:0]
    assert not triton.forward(op, *_arguments(op, case, t)).any()
    found = _backward(op, case, t, grad)
    assert found["input"].shape == (0, 4, 5, 6)
    assert not found["offset"].any() and not found["mask"].any()


def test_samples_are_counted_as_the_reference_does() -> None:
    # Bins of whole pixels by an inexact scale: one sample more would show in the second digit.
    x = torch.randn(1, 2, 9, 11, generator=torch.Generator().manual_seed(0))
    rois = [[0, 10.0 * i, 20.0, 10.0 * (i + j), 20.0 + 10.0 * j] for i in range(3) for j in (1, 3, 6)]
    arguments = (x, torch.tensor(rois), (3, 2), 0.1, 0, True)
    expected = REFERENCES["roi_align"](*arguments)
    assert error(triton.forward("roi_align", *arguments), expected.double()) < 1e-6


@pytest.mark.parametrize("wanted", [0b001, 0b010, 0b100])
def test_only_what_is_wanted(wanted: int) -> None:
    op, case = "deform_roi_pool", RoICase("few", (1, 2, 5, 6), 2, (2, 2))
    t = case.tensors(op)
    _, grad, expected = _expected(op, case, t)
    for name, found in _backward(op, case, t, grad, wanted).items():
        assert error(found, expected[name]) < TOLERANCE[torch.float32]
    arguments = (grad, *_arguments(op, case, t), wanted)
    assert [g.numel() > 0 for g in triton.backward(op, *arguments)] == [bool(wanted >> i & 1) for i in range(3)]


def test_deterministic_whatever_program_runs_first(reversed_grid: Callable[[], None]) -> None:
    op, case = "deform_psroi_pool", PARTS
    t = case.tensors(op)
    _, grad, _ = _expected(op, case, t)
    torch.use_deterministic_algorithms(False)
    atomic = _backward(op, case, t, grad)
    torch.use_deterministic_algorithms(True)
    ordered = _backward(op, case, t, grad)
    reversed_grid()
    again = _backward(op, case, t, grad)
    for name in LEAVES:
        assert torch.equal(ordered[name], again[name]), name
    torch.use_deterministic_algorithms(False)
    other = _backward(op, case, t, grad)
    torch.use_deterministic_algorithms(True)
    # The test sees what it is about: added atomically, the order shows.
    assert not torch.equal(atomic["input"], other["input"])


def test_64_bit_indices_where_they_are_needed() -> None:
    for channels, index in ((2**10, tl.int32), (2**11, tl.int64)):
        x, rois = torch.empty(1, channels, 2**10, 2**10, device="meta"), torch.empty(1, 5, device="meta")
        assert triton.POOLS["roi_align"](x, rois, (2, 2), 1.0, 0, True).arguments["INDEX"] == index
