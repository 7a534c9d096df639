"""The RoI averages at the edges: boxes and offsets of any size, samples outside the map, NaN pixels."""

from __future__ import annotations

import math
import time
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from pliant import ops
from pliant.testing import PS_ROI_CASES, ROI_CASES, TOLERANCE, error

NAMES = ("deform_roi_pool", "roi_align", "deform_psroi_pool", "ps_roi_align")
OPERATORS = pytest.mark.parametrize("op", NAMES)
MOVED = pytest.mark.parametrize("op", ["deform_roi_pool", "deform_psroi_pool"])
CASES = {op: {c.name: c for c in (PS_ROI_CASES if "ps" in op else ROI_CASES)} for op in NAMES}


def _boxes(op: str) -> str:
    return "rois" if op.startswith("deform") else "boxes"


def _run(
    of: SimpleNamespace, op: str, tensors: dict[str, Tensor], **options: object
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output, and the gradients of the sum of its squares."""
    leaves = {name: t.detach().requires_grad_(name not in ("rois", "boxes")) for name, t in tensors.items()}
    output = getattr(of, op)(**leaves, **options)
    output.square().sum().backward()
    return output.detach(), {name: t.grad for name, t in leaves.items() if t.requires_grad}


FAR = (math.nan, math.inf, -math.inf, 3e38, -3e38, 1e30, 1e19, -1e12, 2.0**31, 1e5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_of_wild_boxes_is_0_or_an_average(
    of: SimpleNamespace, ratio: int, aligned: bool, dtype: torch.dtype
) -> None:
    # A map of ones: whatever the box, an average lies in [0, 1], and so do the weights that make the gradient.
    x = torch.ones(1, 2, 6, 7, dtype=dtype, requires_grad=True)
    places = (*FAR, -3.0, 2.5, 5.0)
    boxes = torch.tensor([[0.0, *b] for b in product(places, places, (4.0, *FAR[:5]), (4.0, *FAR[5:]))]).to(dtype)
    start = time.process_time()
    y = of.roi_align(x, boxes, (2, 3), 0.5, ratio, aligned)
    assert ((y >= 0) & (y <= 1 + 1e-5)).all()
    y.sum().backward()
    assert x.grad.isfinite().all()
    assert time.process_time() - start < 60, "samples outside the map must not be visited one by one"
    nowhere = ~boxes.isfinite().all(1)
    assert nowhere.any()
    assert not y[nowhere].any()


@pytest.mark.parametrize("extent", [100.0, 1000.0, 12345.0])
def test_adaptive_samples_outside_the_map_count(of: SimpleNamespace, extent: float) -> None:
    # One bin of extent² samples a pixel apart; every one in the map reads a 1: at −0.5, 0.5, …, H + 0.5 less H.
    x = torch.ones(1, 1, 6, 7, dtype=torch.float64)
    box = torch.tensor([[0.0, -extent / 2, -extent / 2, extent / 2, extent / 2]], dtype=torch.float64)
    y = of.roi_align(x, box, 1, 1.0, 0)
    rows, columns = (sum(-1 <= -extent / 2 + i + 0.5 <= n for i in range(int(extent))) for n in (6, 7))
    assert y.item() == pytest.approx(rows * columns / math.ceil(extent) ** 2, rel=1e-9)


def test_a_huge_box_weighs_every_pixel_alike(of: SimpleNamespace) -> None:
    # 10^9 samples in each direction, of which the map holds a handful.
    x = torch.arange(42.0, dtype=torch.float64).view(1, 1, 6, 7)
    n = 1e9
    y = of.roi_align(x, torch.tensor([[0.0, -n / 2, -n / 2, n / 2, n / 2]], dtype=torch.float64), 1, 1.0, 0)
    # Samples at −0.5 (moved to 0), 0.5, …, 5.5 (moved to 5) of the rows; to 6.5 of the columns.
    rows = torch.tensor([-0.5, *[i + 0.5 for i in range(6)]]).clamp(0, 5).double()
    columns = torch.tensor([-0.5, *[i + 0.5 for i in range(7)]]).clamp(0, 6).double()
    expected = (7 * rows.view(-1, 1) + columns).sum() / n**2
    assert y.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("ratio", [0, 2])
def test_boxes_of_no_area_and_inverted_ones(of: SimpleNamespace, ratio: int) -> None:
    x = torch.arange(36.0, dtype=torch.float64).view(1, 1, 6, 6).requires_grad_()
    boxes = torch.tensor([[0.0, 3.5, 2.5, 3.5, 2.5], [0, 4.5, 4.5, 1.5, 1.5]], dtype=torch.float64)
    for y in (of.roi_align(x, boxes, 1, 1.0, ratio, True), of.deform_roi_pool(x, boxes, None, 1, 1.0, ratio)):
        # Without samples nothing; with two of them in each direction all at (2, 3), or symmetric around (2.5, 2.5).
        assert torch.allclose(y.flatten(), x.new_tensor([15.0, 17.5] if ratio else [0.0, 0.0]), atol=1e-12)
    assert torch.equal(of.ps_roi_align(x, boxes, 1, 1.0, ratio), of.roi_align(x, boxes, 1, 1.0, ratio, True))
    # Not aligned they are one pixel large: here from (2.5, 3.5) on, and from (4.5, 4.5), of which 5.25 is moved to 5.
    y = of.roi_align(x, boxes, 1, 1.0, ratio, False)
    assert torch.allclose(y.flatten(), x.new_tensor([3 * 6 + 4.0, 7 * (4.875 if ratio else 5)]), atol=1e-12)
    # The other operator makes them 0.1 of the map's pixels large where they are smaller: from −0.5 beside `round`.
    y = of.deform_psroi_pool(x, boxes, None, 1, sample_per_part=1)
    assert torch.allclose(y.flatten(), x.new_tensor([2.5 * 6 + 3.5, 4.5 * 6 + 4.5]), atol=1e-12)


@pytest.mark.parametrize("op", ["roi_align", "ps_roi_align", "deform_roi_pool"])
def test_an_inverted_box_alone_and_no_box_at_all(of: SimpleNamespace, op: str) -> None:
    # Nothing is sampled, and still the output depends on the map: its gradient is 0.
    x = torch.ones(1, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    for boxes in ([[0.0, 4.0, 4.0, 2.0, 2.0]], []):
        rois = torch.tensor(boxes, dtype=torch.float64).view(-1, 5)
        given = (x, rois, None, 2) if op == "deform_roi_pool" else (x, rois, 2)
        more = {"aligned": True} if op == "roi_align" else {}
        y = getattr(of, op)(*given, spatial_scale=1.0, sampling_ratio=0, **more)
        assert len(y) == len(boxes) and not y.any()
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(gradient, torch.zeros_like(x))


def test_c_rounds_half_away_from_zero(of: SimpleNamespace) -> None:
    # A ramp of 1 a pixel, one sample a bin at its start: round(x1) − 0.5, moved into the map.
    x = torch.arange(10.0, dtype=torch.float64).expand(1, 1, 10, 10)
    starts = [0.5, 1.5, 2.5, 3.5, 3.49999999, -0.5]
    rois = torch.tensor([[0.0, s, 2, s + 3, 5] for s in starts], dtype=torch.float64)
    y = of.deform_psroi_pool(x, rois, None, 1, sample_per_part=1)
    # −0.5 becomes −1: at −1.5 the sample is left out.
    assert y.flatten().tolist() == [0.5, 1.5, 2.5, 3.5, 2.5, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@MOVED
def test_wild_offsets_read_nothing(of: SimpleNamespace, op: str, dtype: torch.dtype) -> None:
    case = CASES[op]["plain"]
    t = case.tensors(op, dtype)
    tame, _ = _run(of, op, t, **case.arguments(op))
    wild = torch.tensor(FAR[:5]).to(dtype)
    t["offset"].view(-1)[:5] = wild
    y, grads = _run(of, op, t, **case.arguments(op))
    # The first five offsets are x of the first five bins of RoI 0.
    lost = torch.zeros(y.shape, dtype=torch.bool)
    lost[0].view(y.shape[1], -1)[:, :5] = True
    assert not y[lost].any()
    assert torch.equal(y[~lost], tame[~lost])
    for gradient in grads.values():
        assert gradient.isfinite().all()
    assert not grads["offset"].view(-1)[:5].any()
    assert not grads["mask"].view(-1)[:5].any()


@OPERATORS
def test_a_nan_pixel_reaches_the_bins_that_read_it_and_no_other(of: SimpleNamespace, op: str) -> None:
    # One sample in the middle of four pixels (or, for the other rule, at the start).
    ends = [3.0, 2, 5, 4] if op != "deform_psroi_pool" else [4.0, 3, 5, 4]
    box = torch.tensor([[0.0, *ends], [1, *ends]], dtype=torch.float64)
    options = {"sample_per_part": 1} if op == "deform_psroi_pool" else {"sampling_ratio": 1}
    arguments = (box, None, 1) if op.startswith("deform") else (box, 1)
    if op == "roi_align":
        options["aligned"] = True
    for row, column in product(range(5), range(6)):
        x = torch.ones(2, 1, 5, 6, dtype=torch.float64)
        x[0, 0, row, column] = math.nan
        y = getattr(of, op)(x, *arguments, **options)
        assert y[0].isnan().item() == (row in (2, 3) and column in (3, 4))
        assert y[1].item() == 1


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@OPERATORS
def test_float32_boxes_beside_a_low_map(of: SimpleNamespace, op: str, low: torch.dtype) -> None:
    # In bfloat16 a box at 1001.5 would be one at 1000, and its samples lie between pixels that have no number there.
    case = CASES[op]["plain"]
    t = case.tensors(op)
    boxes = {_boxes(op): t.pop(_boxes(op))}
    boxes[_boxes(op)][:, 1:] += 1001.5
    t["input"] = torch.nn.functional.pad(t["input"], (501, 0, 501, 0))
    t = {k: v.to(low) for k, v in t.items()}
    y = getattr(of, op)(**t, **boxes, **case.arguments(op))
    exact = {k: v.double() for k, v in t.items()}
    expected = getattr(ops, op)(**exact, **boxes, **case.arguments(op), implementation="reference")
    assert error(y, expected) < TOLERANCE[low]


def test_the_derivative_at_the_first_row_and_column_is_right_sided(of: SimpleNamespace) -> None:
    # The sample lies at (0, 0), where the ramp rises by 1 per column and by 4 per row.
    ramp = torch.arange(16.0, dtype=torch.float64).view(1, 1, 4, 4)
    box = torch.tensor([[0, 0.5, 0.5, 1.5, 1.5]], dtype=torch.float64)
    for at, expected in ((-0.5, [1, 4]), (0.5, [1, 4]), (2.5, [0, 0]), (-0.75, [0, 0])):
        offset = torch.full((1, 2, 1, 1), at, dtype=torch.float64, requires_grad=True)
        y = of.deform_roi_pool(ramp, box, offset, 1, 1.0, 1, 1.0)
        (gradient,) = torch.autograd.grad(y.sum(), offset)
        assert gradient.flatten().tolist() == expected
    for at, expected in ((0.5, [1, 4]), (-0.5, [0, 0]), (3.5, [0, 0])):
        # A box of one pixel, whose only sample lies at −½ + offset.
        offset = torch.full((1, 2, 1, 1), at, dtype=torch.float64, requires_grad=True)
        y = of.deform_psroi_pool(
            ramp, torch.zeros(1, 5, dtype=torch.float64), offset, 1, sample_per_part=1, trans_std=1.0
        )
        (gradient,) = torch.autograd.grad(y.sum(), offset)
        assert gradient.flatten().tolist() == expected
