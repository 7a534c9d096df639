"""RoI pooling over bins of whole pixels: one pixel at a time, known values, properties."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pliant.testing import PS_ROI_CASES, ROI_CASES, RoICase, error

Operator = Callable[..., Tensor]
BOTH = [("roi_pool", case) for case in ROI_CASES] + [("ps_roi_pool", case) for case in PS_ROI_CASES]
each = pytest.mark.parametrize(("name", "case"), BOTH, ids=[f"{name}-{case.name}" for name, case in BOTH])

# One pixel at a time, forward and backward, in Python and from the formulas alone.


def _round(x: float) -> int:
    return int(math.copysign(math.floor(abs(x) + 0.5), x))


def _spans(start: float, end: float, scale: float, bins: int, extent: int, more: int, real: type) -> list[range]:
    """Return the rows (or columns) of every bin; `real` is the precision that boxes are placed in."""
    first, last = _round(float(real(start) * real(scale))), _round(float(real(end) * real(scale)))
    bin = real(max(last - first + more, 1)) / real(bins)
    return [
        range(
            min(max(math.floor(real(k) * bin) + first, 0), extent),
            min(max(math.ceil(real(k + 1) * bin) + first, 0), extent),
        )
        for k in range(bins)
    ]


def _one_by_one(name: str, input: Tensor, rois: Tensor, grad: Tensor, size: tuple[int, int], scale: float):
    """Return the output, and the gradient of ``Σ grad·output`` in input, in float64."""
    real = np.float64 if input.dtype == torch.float64 else np.float32
    maximum = name == "roi_pool"
    x, g = input.double().numpy(), grad.double().numpy()
    y, dx = np.zeros(g.shape), np.zeros(x.shape)
    _, _, H, W = x.shape
    for r, (image, x1, y1, x2, y2) in enumerate(rois.double().tolist()):
        n = int(image)
        rows = _spans(y1, y2, scale, size[0], H, int(maximum), real)
        columns = _spans(x1, x2, scale, size[1], W, int(maximum), real)
        for c, ph, pw in np.ndindex(g.shape[1:]):
            pixels = [(i, j) for i in rows[ph] for j in columns[pw]]
            if not pixels:
                continue
            if maximum:
                # Python's max, like the operator, keeps the first of equals.
                taken = max(pixels, key=lambda p, n=n, c=c: x[n, c, p[0], p[1]])
                y[r, c, ph, pw] = x[n, c, taken[0], taken[1]]
                dx[n, c, taken[0], taken[1]] += g[r, c, ph, pw]
                continue
            channel = (c * size[0] + ph) * size[1] + pw
            y[r, c, ph, pw] = sum(x[n, channel, i, j] for i, j in pixels) / len(pixels)
            for i, j in pixels:
                dx[n, channel, i, j] += g[r, c, ph, pw] / len(pixels)
    return torch.from_numpy(y), torch.from_numpy(dx)


def _with_gradient(pool: Operator, input: Tensor, *arguments: object) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, a drawn gradient above it, and the gradient of the map."""
    leaf = input.detach().requires_grad_()
    y = pool(leaf, *arguments)
    above = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    (gradient,) = torch.autograd.grad(y, leaf, above)
    return y.detach(), above, gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each
def test_equals_one_pixel_at_a_time(of: SimpleNamespace, name: str, case: RoICase, dtype: torch.dtype) -> None:
    t = case.tensors("roi_pool", dtype)
    # Few values, so that many pixels of a bin are its maximum.
    x = (2 * t["input"]).round()
    arguments = (t["boxes"], case.output_size, case.spatial_scale)
    y, above, gradient = _with_gradient(getattr(of, name), x, *arguments)
    expected, expected_gradient = _one_by_one(name, x, t["boxes"], above, *arguments[1:])
    limit = 0 if name == "roi_pool" else 1e-6 if dtype == torch.float32 else 1e-14
    assert error(y, expected) <= limit
    assert error(gradient, expected_gradient) <= (1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("size", [(3, 2), (7, 7), (1, 1), (13, 9)])
def test_a_box_over_the_whole_map_is_adaptive_pooling(of: SimpleNamespace, size: tuple[int, int]) -> None:
    H, W = 13, 9
    x = torch.randn(2, 3 * size[0] * size[1], H, W, dtype=torch.float64)
    # The pixel of the end belongs to the box of roi_pool, and does not to that of ps_roi_pool.
    boxes = torch.tensor([[1, 0, 0, W - 1, H - 1], [0, 0, 0, W - 1, H - 1]], dtype=torch.float64)
    assert torch.equal(of.roi_pool(x, boxes, size), F.adaptive_max_pool2d(x.flip(0), size))
    boxes[:, 3:] += 1
    means = F.adaptive_avg_pool2d(x.flip(0), size).view(2, 3, *size, *size)
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])
    assert error(of.ps_roi_pool(x, boxes, size), means[:, :, rows, columns, rows, columns]) < 1e-14


KNOWN = {
    # Rounded half away from zero: columns 0 to 3, rows 1 to 4.
    (0.4, 0.5, 3.49, 3.5): [[13, 15], [25, 27]],
    # Columns −2 to 0: one is left, of the second bin. Rows 4 to 40, bins of 18½: all that is left is in the first.
    (-2, 4, 0, 40): [[0, 30], [0, 0]],
    # One pixel, which is in every bin; the same for an inverted box, at its start.
    (2.5, 2.5, 2.5, 2.5): [[21, 21], [21, 21]],
    (5, 5, 1, 1): [[35, 35], [35, 35]],
}


@pytest.mark.parametrize("box", KNOWN, ids=str)
def test_known_values(of: SimpleNamespace, box: tuple[float, ...]) -> None:
    x = torch.arange(36.0).view(1, 1, 6, 6)
    assert of.roi_pool(x, torch.tensor([[0, *box]], dtype=torch.float32), 2)[0, 0].tolist() == KNOWN[box]


def test_rounds_as_c_does(of: SimpleNamespace) -> None:
    x = torch.arange(8.0).view(1, 1, 1, 8)
    below = math.nextafter(0.5, 0)
    for start, pixel in ((0.5, 1), (1.5, 2), (2.5, 3), (2.4999998, 2), (below, 0), (-0.5, 0), (-0.4, 0)):
        box = torch.tensor([[0, start, 0, start, 0]], dtype=torch.float64)
        # Round of −0.5 is −1, which is outside.
        expected = 0.0 if start == -0.5 else float(pixel)
        assert of.roi_pool(x.double(), box, 1).item() == expected
        assert of.roi_pool(x, box.float(), 1).item() == (
            1.0 if start == below and box.float()[0, 1] == 0.5 else expected
        )


def test_the_last_row_and_column_belong_to_the_map(of: SimpleNamespace) -> None:
    x = torch.zeros(1, 1, 4, 5)
    x[..., 3, 4] = 8
    box = torch.tensor([[0.0, 3, 2, 5, 4]])
    assert of.ps_roi_pool(x, box, 1).item() == 2
    assert of.roi_pool(x, box, 1).item() == 8


# Properties that hold whatever the numbers are.


def test_a_maximum_commutes_with_growing_functions(of: SimpleNamespace) -> None:
    case = ROI_CASES[0]
    t = case.tensors("roi_pool")
    arguments = (t["boxes"], case.output_size, case.spatial_scale)
    y = of.roi_pool(t["input"], *arguments)
    # No drawn value is 0: that is an empty bin.
    assert 0 < (y == 0).sum() < y.numel()
    assert torch.equal(of.roi_pool(t["input"].exp(), *arguments), torch.where(y == 0, 0, y.exp()))


def test_every_bin_has_channels_of_its_own(of: SimpleNamespace) -> None:
    x = torch.randn(1, 12, 8, 8)
    box = torch.tensor([[0.0, 0, 0, 8, 8]])
    y = of.ps_roi_pool(x, box, (3, 2))
    for ph, pw in np.ndindex(3, 2):
        changed = x.clone()
        changed[:, ph * 2 + pw :: 6] += 1
        difference = of.ps_roi_pool(changed, box, (3, 2)) - y
        only = torch.zeros(1, 2, 3, 2)
        only[..., ph, pw] = 1
        assert torch.allclose(difference, only, atol=1e-5)
