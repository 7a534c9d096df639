"""The RoI averages compute the right numbers: one sample at a time, known values, properties."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from pliant.testing import PS_ROI_CASES, ROI_CASES, RoICase, error

NAMES = ("deform_roi_pool", "roi_align", "deform_psroi_pool", "ps_roi_align")
BY_NAME = {(op, c.name): c for op in NAMES for c in (PS_ROI_CASES if "ps" in op else ROI_CASES)}

# One sample at a time, forward and backward, in Python and from the formulas alone.


@dataclass
class Sample:
    """A place of the map that counts: its rows and columns with weights and slopes; empty where it reads 0."""

    rows: list[tuple[int, float, float]]
    columns: list[tuple[int, float, float]]


def _line(position: float, extent: int) -> list[tuple[int, float, float]]:
    """Return (index, weight, d weight/d position) along one axis, after moving `position` into the map."""
    moves = 0 <= position < extent - 1
    position = min(max(position, 0.0), extent - 1.0)
    low = math.floor(position)
    part = position - low
    slope = 1.0 if moves else 0.0
    return [(low, 1 - part, -slope), (min(low + 1, extent - 1), part, slope)]


def _bin_of_grid(start, size, P, ph, pw, ratio, H, W, shift):
    """Return the samples of a bin of RoIAlign that do not read 0, and how many it has."""
    bins = [size[0] / P[0], size[1] / P[1]]
    grid = [ratio if ratio > 0 else max(math.ceil(b), 0) for b in bins]
    found = []
    for iy in range(grid[0]):
        y = start[0] + shift[0] + ph * bins[0] + (iy + 0.5) * bins[0] / grid[0]
        for ix in range(grid[1]):
            x = start[1] + shift[1] + pw * bins[1] + (ix + 0.5) * bins[1] / grid[1]
            if -1 <= y <= H and -1 <= x <= W:
                found.append(Sample(_line(y, H), _line(x, W)))
    return found, max(grid[0] * grid[1], 1)


def _bin_of_part(start, size, P, ph, pw, samples, H, W, shift):
    """Return the samples of a bin of deformable PS-RoI pooling, and how many were counted."""
    found = []
    for iy in range(samples):
        y = start[0] + ph * size[0] / P + shift[0] + iy * size[0] / P / samples
        for ix in range(samples):
            x = start[1] + pw * size[1] / P + shift[1] + ix * size[1] / P / samples
            if -0.5 <= y <= H - 0.5 and -0.5 <= x <= W - 0.5:
                found.append(Sample(_line(y, H), _line(x, W)))
    return found, max(len(found), 1)


def _round(x: float) -> int:
    return int(math.copysign(math.floor(abs(x) + 0.5), x))


class Oracle:
    """Output, and gradients of ``Σ grad·output`` in input, offset and mask, for one operator."""

    def __init__(self, input: Tensor, grad: Tensor, offset: Tensor | None, mask: Tensor | None) -> None:
        self.x, self.g = input.numpy(), grad.numpy()
        self.offset, self.mask = (None if t is None else t.numpy() for t in (offset, mask))
        self.y, self.dx = np.zeros_like(self.g), np.zeros_like(self.x)
        self.doffset, self.dmask = (None if t is None else np.zeros_like(t) for t in (self.offset, self.mask))

    def add(self, where, channel, samples, count, steps=(0.0, 0.0), slot=None) -> None:
        """Add one output value: the mean of `samples` of the map's `channel`, times the mask.

        `slot` is (index of dx, index of dy) in offset, and `steps` how far an offset of 1 moves down and right.
        """
        r, _, ph, pw = where
        image, channel = channel
        m = 1.0 if self.mask is None else self.mask[r, 0, ph, pw]
        above = self.g[where]
        value = dy = dx = 0.0
        for s in samples:
            for row, wy, ky in s.rows:
                for column, wx, kx in s.columns:
                    pixel = self.x[image, channel, row, column]
                    value += wy * wx * pixel
                    dy, dx = dy + ky * wx * pixel, dx + wy * kx * pixel
                    self.dx[image, channel, row, column] += above * m * wy * wx / count
        self.y[where] = m * value / count
        if self.mask is not None:
            self.dmask[r, 0, ph, pw] += above * value / count
        if slot is not None:
            self.doffset[slot[0]] += above * m * dx / count * steps[1]
            self.doffset[slot[1]] += above * m * dy / count * steps[0]


def _roi_align_oracle(input, rois, offset, mask, grad, arguments, *, aligned=True, gamma=0.0, ps=False):
    size, scale, ratio = arguments
    o = Oracle(input, grad, offset, mask)
    _, _, H, W = input.shape
    for r, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        half = 0.5 if aligned else 0.0
        start = (y1 * scale - half, x1 * scale - half)
        extent = [(y2 - y1) * scale, (x2 - x1) * scale]
        if not aligned:
            extent = [max(e, 1.0) for e in extent]
        for ph, pw in np.ndindex(*size):
            steps, slot, shift = (gamma * extent[0], gamma * extent[1]), None, (0.0, 0.0)
            if offset is not None:
                slot = (r, 0, ph, pw), (r, 1, ph, pw)
                shift = steps[0] * o.offset[slot[1]], steps[1] * o.offset[slot[0]]
            samples, count = _bin_of_grid(start, extent, size, ph, pw, ratio, H, W, shift)
            for c in range(grad.shape[1]):
                channel = (c * size[0] + ph) * size[1] + pw if ps else c
                o.add((r, c, ph, pw), (int(image), channel), samples, count, steps, slot)
    return o


def _psroi_oracle(
    input, rois, offset, mask, grad, output_size, spatial_scale, group_size, part_size, sample_per_part, trans_std
):
    P, scale, group, part, samples, std = output_size, spatial_scale, group_size, part_size, sample_per_part, trans_std
    o = Oracle(input, grad, offset, mask)
    _, _, H, W = input.shape
    outputs = grad.shape[1]
    classes = 1 if offset is None else offset.shape[1] // 2
    for r, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        start = (_round(y1) * scale - 0.5, _round(x1) * scale - 0.5)
        end = ((_round(y2) + 1) * scale - 0.5, (_round(x2) + 1) * scale - 0.5)
        extent = [max(e - s, 0.1) for s, e in zip(start, end, strict=True)]
        steps = (std * extent[0], std * extent[1])
        for c, ph, pw in np.ndindex(outputs, P, P):
            slot, shift = None, (0.0, 0.0)
            if offset is not None:
                k = c // (outputs // classes)
                where = math.floor(ph * part / P), math.floor(pw * part / P)
                slot = (r, 2 * k, *where), (r, 2 * k + 1, *where)
                shift = steps[0] * o.offset[slot[1]], steps[1] * o.offset[slot[0]]
            found, count = _bin_of_part(start, extent, P, ph, pw, samples, H, W, shift)
            gh, gw = (min(max(math.floor(p * group / P), 0), group - 1) for p in (ph, pw))
            o.add((r, c, ph, pw), (int(image), (c * group + gh) * group + gw), found, count, steps, slot)
    return o


def _agrees(o: Oracle, output: Tensor, tensors: dict[str, Tensor]) -> None:
    output.backward(torch.from_numpy(o.g))
    assert error(output, torch.from_numpy(o.y)) < 1e-11
    for name, expected in (("input", o.dx), ("offset", o.doffset), ("mask", o.dmask)):
        if tensors.get(name) is not None:
            assert error(tensors[name].grad, torch.from_numpy(expected)) < 1e-11, name


def _drawn(op: str, case: RoICase, *optional: str) -> dict[str, Tensor]:
    """Return the tensors of an operator in float64, of offset and mask those asked for, and None for the others."""
    tensors: dict[str, Tensor] = {"offset": None, "mask": None}  # type: ignore[dict-item]
    for name, t in case.tensors(op, torch.float64).items():
        if name in ("input", *optional):
            tensors[name] = t.requires_grad_()
        elif name in ("rois", "boxes"):
            tensors["rois"] = t
    return tensors


def _plain(t: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: None if value is None else value.detach() for name, value in t.items()}


def _grad(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


ALL = pytest.mark.parametrize("case", ROI_CASES, ids=lambda case: case.name)
PS_ALL = pytest.mark.parametrize("case", PS_ROI_CASES, ids=lambda case: case.name)
OPTIONAL = pytest.mark.parametrize("optional", [(), ("offset",), ("mask",), ("offset", "mask")], ids="+".join)


@OPTIONAL
@ALL
def test_deform_roi_pool_is_one_sample_at_a_time(of: SimpleNamespace, case: RoICase, optional: tuple[str, ...]) -> None:
    t = _drawn("deform_roi_pool", case, *optional)
    grad = _grad(case.rois, case.input[1], *case.output_size)
    arguments = (case.output_size, case.spatial_scale, case.sampling_ratio)
    o = _roi_align_oracle(**_plain(t), grad=grad, arguments=arguments, gamma=0.3)
    y = of.deform_roi_pool(t["input"], t["rois"], t["offset"], *arguments, 0.3, mask=t["mask"])
    _agrees(o, y, t)


@pytest.mark.parametrize("aligned", [False, True])
@ALL
def test_roi_align_is_one_sample_at_a_time(of: SimpleNamespace, case: RoICase, aligned: bool) -> None:
    t = _drawn("roi_align", case)
    grad = _grad(case.rois, case.input[1], *case.output_size)
    arguments = (case.output_size, case.spatial_scale, case.sampling_ratio)
    o = _roi_align_oracle(**_plain(t), grad=grad, arguments=arguments, aligned=aligned)
    _agrees(o, of.roi_align(t["input"], t["rois"], *arguments, aligned), t)


@PS_ALL
def test_ps_roi_align_is_one_sample_at_a_time(of: SimpleNamespace, case: RoICase) -> None:
    t = _drawn("ps_roi_align", case)
    Ph, Pw = case.output_size
    grad = _grad(case.rois, case.input[1] // (Ph * Pw), Ph, Pw)
    arguments = (case.output_size, case.spatial_scale, case.sampling_ratio)
    o = _roi_align_oracle(**_plain(t), grad=grad, arguments=arguments, ps=True)
    _agrees(o, of.ps_roi_align(t["input"], t["rois"], *arguments), t)


@OPTIONAL
@PS_ALL
def test_deform_psroi_pool_is_one_sample_at_a_time(
    of: SimpleNamespace, case: RoICase, optional: tuple[str, ...]
) -> None:
    t = _drawn("deform_psroi_pool", case, *optional)
    P = case.output_size[0]
    grad = _grad(case.rois, case.input[1] // case.group_size**2, P, P)
    options = {**case.arguments("deform_psroi_pool"), "trans_std": 0.3}
    o = _psroi_oracle(**_plain(t), grad=grad, **options)
    _agrees(o, of.deform_psroi_pool(**t, **options), t)


# Values that other projects' tests hold: mmcv. Its second one has a map of 4×4.


def test_known_values_of_mmcv(of: SimpleNamespace) -> None:
    rois = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0]])
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2).requires_grad_()
    y = of.deform_roi_pool(x, rois, None, 2, sampling_ratio=2)
    assert torch.equal(y[0, 0], torch.tensor([[1, 1.25], [1.5, 1.75]]))
    y.sum().backward()
    assert torch.equal(x.grad[0, 0], torch.tensor([[3.0625, 0.4375], [0.4375, 0.0625]]))
    assert torch.equal(of.roi_align(x, rois, 2, 1.0, 2, True), y)


# Properties that hold whatever the numbers are.


@ALL
def test_no_offset_and_no_mask_is_roi_align(of: SimpleNamespace, case: RoICase) -> None:
    t = case.tensors("deform_roi_pool", torch.float64)
    zero, one = torch.zeros_like(t["offset"]), torch.ones_like(t["mask"])
    plain = of.roi_align(t["input"], t["rois"], **case.arguments("roi_align"), aligned=True)
    options = case.arguments("deform_roi_pool")
    assert torch.equal(of.deform_roi_pool(t["input"], t["rois"], None, **options), plain)
    assert error(of.deform_roi_pool(t["input"], t["rois"], zero, **options, mask=one), plain) < 1e-12


@PS_ALL
def test_position_sensitive_is_roi_align_of_its_own_channels(of: SimpleNamespace, case: RoICase) -> None:
    t = case.tensors("ps_roi_align", torch.float64)
    Ph, Pw = case.output_size
    every = of.roi_align(**t, **case.arguments("roi_align"), aligned=True).unflatten(1, (-1, Ph, Pw))
    own = torch.stack([every[:, :, i, j, i, j] for i in range(Ph) for j in range(Pw)], -1)
    assert error(of.ps_roi_align(**t, **case.arguments("ps_roi_align")), own.unflatten(-1, (Ph, Pw))) < 1e-12


@pytest.mark.parametrize("op", ["deform_roi_pool", "deform_psroi_pool"])
def test_a_whole_offset_is_a_moved_box(of: SimpleNamespace, op: str) -> None:
    # All bins moved by one width to the right and half a height down: the box moved by as much.
    x = torch.randn(1, 3, 20, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rois, moved = (torch.tensor([[0.0, 4 + dx, 2 + dy, 11 + dx, 9 + dy]]).double() for dx, dy in ((0, 0), (8, 4)))
    if op == "deform_roi_pool":
        rois[0, 3:] += 1
        moved[0, 3:] += 1
    offset = torch.tensor([1.0, 0.5]).double().view(1, 2, 1, 1).expand(1, 2, 3, 3)
    call = getattr(of, op)
    options = {"gamma": 1.0, "sampling_ratio": 3} if op == "deform_roi_pool" else {"trans_std": 1.0}
    assert error(call(x, rois, offset, 3, **options), call(x, moved, None, 3, **options)) < 1e-12


@pytest.mark.parametrize("op", ["deform_roi_pool", "deform_psroi_pool"])
def test_offsets_have_x_first(of: SimpleNamespace, op: str) -> None:
    x = torch.arange(20.0, dtype=torch.float64).expand(1, 1, 20, 20)
    rois = torch.tensor([[0.0, 4, 4, 8, 8]], dtype=torch.float64)
    offset = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    for channel, moves in ((0, True), (1, False)):
        there = offset.clone()
        there[0, channel] = 5
        before, after = (getattr(of, op)(x, rois, o, 1) for o in (offset, there))
        # 5 · 0.1 of the width: 4 pixels, 5 in the operator that counts both ends.
        assert (after - before).item() == pytest.approx((2.5 if "ps" in op else 2.0) if moves else 0.0)


@pytest.mark.parametrize("op", NAMES)
def test_a_constant_gives_itself(of: SimpleNamespace, op: str) -> None:
    for name, case in BY_NAME.items():
        if name[0] != op or min(case.input[2:]) == 1:
            continue
        t = case.tensors(op, torch.float64)
        # Boxes that are not aligned are made a pixel large, larger than some of these maps.
        options = case.arguments(op) | ({"aligned": True} if op == "roi_align" else {})
        t["input"] = torch.full_like(t["input"], 3.0)
        # Well inside the map, so that no sample is left out or 0.
        _, _, H, W = case.input
        boxes = "rois" if "rois" in t else "boxes"
        corners = torch.tensor([0.25 * W, 0.25 * H, 0.75 * W, 0.75 * H], dtype=torch.float64) / case.spatial_scale
        t[boxes] = torch.cat([t[boxes][:, :1], corners.expand(len(t[boxes]), 4)], 1)
        if "mask" in t:
            t["offset"] = 0.1 * t["offset"].clamp(-1, 1)
            y = getattr(of, op)(**t, **options)
            assert error(y, (3 * t["mask"]).expand_as(y)) < 1e-12
            del t["mask"]
        y = getattr(of, op)(**t, **options)
        assert error(y, torch.full_like(y, 3.0)) < 1e-12


@pytest.mark.parametrize("op", ["deform_roi_pool", "deform_psroi_pool"])
def test_a_mask_of_0_gives_0(of: SimpleNamespace, op: str) -> None:
    case = BY_NAME[op, "plain"]
    t = case.tensors(op)
    assert not getattr(of, op)(**{**t, "mask": torch.zeros_like(t["mask"])}, **case.arguments(op)).any()


def test_a_class_moves_its_own_channels(of: SimpleNamespace) -> None:
    case = BY_NAME["deform_psroi_pool", "classes"]
    t = case.tensors("deform_psroi_pool", torch.float64)
    options = case.arguments("deform_psroi_pool")
    before = of.deform_psroi_pool(**t, **options)
    t["offset"][:, 2:4] += 0.5
    after = of.deform_psroi_pool(**t, **options)
    each = before.shape[1] // case.classes
    same = (before == after).flatten(2).all(2).all(0)
    assert same.tolist() == [c // each != 1 for c in range(before.shape[1])]


@pytest.mark.parametrize(
    ("op", "position", "slope"),
    [
        # One sample a bin: at start + bin/2 for deform_roi_pool, at start for the other. Pixel x of the map has x².
        ("deform_roi_pool", 1.0, 3.0),  # at an integer: the next pixel minus this one
        ("deform_roi_pool", 1.25, 3.0),
        ("deform_roi_pool", 0.0, 1.0),
        ("deform_roi_pool", -0.25, 0.0),  # moved to 0
        ("deform_roi_pool", -1.0, 0.0),
        ("deform_roi_pool", -1.25, 0.0),  # outside
        ("deform_roi_pool", 4.0, 0.0),  # the last pixel: there is no next one
        ("deform_roi_pool", 4.75, 0.0),
        ("deform_psroi_pool", 2.0, 5.0),
        ("deform_psroi_pool", 0.0, 1.0),
        ("deform_psroi_pool", -0.25, 0.0),
        ("deform_psroi_pool", -0.75, 0.0),
        ("deform_psroi_pool", 4.0, 0.0),
        ("deform_psroi_pool", 4.25, 0.0),
    ],
)
@pytest.mark.parametrize("axis", ["x", "y"])
def test_offset_gradient_at_kinks_and_borders(
    of: SimpleNamespace, op: str, position: float, slope: float, axis: str
) -> None:
    ramp = torch.arange(5.0, dtype=torch.float64).square()
    # The other direction lies beyond the last pixel, where it is moved: that does not stop this one.
    x = ramp.expand(5, 5) if axis == "x" else ramp.view(5, 1).expand(5, 5)
    if op == "deform_roi_pool":
        ends = (position + 0.5 - 1, position + 0.5 + 1)  # 2 pixels wide, the sample in the middle
        other = (4.75 + 0.5 - 1, 4.75 + 0.5 + 1)
        options = {"sampling_ratio": 1, "gamma": 0.5}
    else:
        # Boxes of whole pixels: their start is the position at a scale of 1/4, 8 of them are 2 pixels wide.
        ends, other = ((4 * (p + 0.5), 4 * (p + 0.5) + 7) for p in (position, 4.25))
        options = {"sample_per_part": 1, "trans_std": 0.5, "spatial_scale": 0.25}
    (x1, x2), (y1, y2) = (ends, other) if axis == "x" else (other, ends)
    rois = torch.tensor([[0.0, x1, y1, x2, y2]], dtype=torch.float64)
    offset = torch.zeros(1, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    getattr(of, op)(x[None, None], rois, offset, 1, **options).sum().backward()
    expected = torch.tensor([slope, 0.0] if axis == "x" else [0.0, slope], dtype=torch.float64)
    assert torch.equal(offset.grad.flatten(), expected)
