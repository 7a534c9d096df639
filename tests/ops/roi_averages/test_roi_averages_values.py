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


def _roi_align_oracle(
    input, rois, grad, size, scale, ratio, *, aligned=True, offset=None, gamma=0.0, mask=None, ps=False
):
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


def _psroi_oracle(input, rois, grad, P, scale, group, part, samples, std, offset=None, mask=None):
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


def _drawn(case: RoICase, *optional: str, parts: bool = False) -> dict[str, Tensor]:
    tensors = case.tensors(torch.float64, parts=parts)
    kept = {"input": tensors["input"], **{name: tensors[name] for name in optional}}
    return {"rois": tensors["rois"], **{name: t.requires_grad_() for name, t in kept.items()}}


def _grad(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


ALL = pytest.mark.parametrize("case", ROI_CASES, ids=lambda case: case.name)
PS_ALL = pytest.mark.parametrize("case", PS_ROI_CASES, ids=lambda case: case.name)
OPTIONAL = pytest.mark.parametrize("optional", [(), ("offset",), ("mask",), ("offset", "mask")], ids="+".join)


@OPTIONAL
@ALL
def test_deform_roi_pool_is_one_sample_at_a_time(of: SimpleNamespace, case: RoICase, optional: tuple[str, ...]) -> None:
    t = _drawn(case, *optional)
    grad = _grad(case.rois, case.input[1], *case.output_size)
    arguments = (case.output_size, case.spatial_scale, case.sampling_ratio)
    plain = {name: None if name not in t else t[name].detach() for name in ("offset", "mask")}
    o = _roi_align_oracle(t["input"].detach(), t["rois"], grad, *arguments, gamma=0.3, **plain)
    y = of.deform_roi_pool(t["input"], t["rois"], t.get("offset"), *arguments, 0.3, mask=t.get("mask"))
    _agrees(o, y, t)


@pytest.mark.parametrize("aligned", [False, True])
@ALL
def test_roi_align_is_one_sample_at_a_time(of: SimpleNamespace, case: RoICase, aligned: bool) -> None:
    t = _drawn(case)
    grad = _grad(case.rois, case.input[1], *case.output_size)
    arguments = (case.output_size, case.spatial_scale, case.sampling_ratio)
    o = _roi_align_oracle(t["input"].detach(), t["rois"], grad, *arguments, aligned=aligned)
    _agrees(o, of.roi_align(t["input"], t["rois"], *arguments, aligned), t)


@PS_ALL
def test_ps_roi_align_is_one_sample_at_a_time(of: SimpleNamespace, case: RoICase) -> None:
    t = _drawn(case)
    Ph, Pw = case.output_size
    grad = _grad(case.rois, case.input[1] // (Ph * Pw), Ph, Pw)
    arguments = (case.output_size, case.spatial_scale, case.sampling_ratio)
    o = _roi_align_oracle(t["input"].detach(), t["rois"], grad, *arguments, ps=True)
    _agrees(o, of.ps_roi_align(t["input"], t["rois"], *arguments), t)


@OPTIONAL
@PS_ALL
def test_deform_psroi_pool_is_one_sample_at_a_time(
    of: SimpleNamespace, case: RoICase, optional: tuple[str, ...]
) -> None:
    t = _drawn(case, *optional, parts=True)
    P = case.output_size[0]
    grad = _grad(case.rois, case.input[1] // case.group_size**2, P, P)
    plain = {name: None if name not in t else t[name].detach() for name in ("offset", "mask")}
    rest = (case.group_size, case.part_size, case.samples, 0.3)
    o = _psroi_oracle(t["input"].detach(), t["rois"], grad, P, case.spatial_scale, *rest, **plain)
    names = ("group_size", "part_size", "sample_per_part", "trans_std")
    y = of.deform_psroi_pool(
        t["input"],
        t["rois"],
        t.get("offset"),
        P,
        case.spatial_scale,
        **dict(zip(names, rest, strict=True)),
        mask=t.get("mask"),
    )
    _agrees(o, y, t)
