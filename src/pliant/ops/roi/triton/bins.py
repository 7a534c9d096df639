"""RoI bins of whole pixels on GPUs: their maxima and averages, and the gradients of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pliant.ops.gpu.launch import Launch, ceil, empty, power
from pliant.ops.roi.triton.boxes import corners, finite, grouped, largest, round_away, ungrouped
from pliant.ops.sampling.triton import Sums, add, multiple, positions


@triton.jit
def span(k, first, last, bins, scale, extent, MORE: tl.constexpr):
    """Return the first pixel of bins `k` in one direction, and the one after the last."""
    start = round_away(first * scale)
    length = tl.maximum(round_away(last * scale) - start + MORE, 1.0)
    bin = tl.div_rn(length, bins * 1.0)
    low = tl.minimum(tl.maximum(tl.floor(k.to(tl.float32) * bin) + start, 0.0), extent * 1.0)
    high = tl.minimum(tl.maximum(tl.ceil((k + 1).to(tl.float32) * bin) + start, 0.0), extent * 1.0)
    # Not finite where the corners are huge.
    valid = finite(start) & finite(length)
    return tl.where(valid, low, 0.0).to(tl.int32), tl.where(valid, high, 0.0).to(tl.int32)


@triton.jit(do_not_specialize=["N", "H", "W"])
def pool(
    map, rois, values, taken,
    N, H, W, C, outputs, Ph, Pw, scale, unit, tiles,
    MAXIMUM: tl.constexpr, BACKWARD: tl.constexpr, FIXED: tl.constexpr, INDEX: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_B bins of one RoI and BLOCK_C channels: maxima or averages; with BACKWARD, add averages' gradients.

    `map` is (N, H, W, C); `values` (R, bins, outputs) is read with BACKWARD, else written. Maxima read the same
    channels in every bin, averages the bin's own; `taken` (R, bins, outputs) is the pixel of each maximum, or −1.
    """
    C = multiple(C, VECTOR)
    outputs = multiple(outputs, VECTOR)
    P = Ph * Pw
    r, b = positions(tl.program_id(0), tiles, BLOCK_B)
    c = tl.program_id(1) * BLOCK_C
    exists = b < P
    valid, image, x1, y1, x2, y2 = corners(rois, r, N)
    top, bottom = span(b // Pw, y1, y2, Ph, scale, H, 1.0 if MAXIMUM else 0.0)
    left, right = span(b % Pw, x1, x2, Pw, scale, W, 1.0 if MAXIMUM else 0.0)
    reads = b < tl.where(valid, P, 0)
    height = tl.where(reads, bottom - top, 0)
    width = tl.where(reads, right - left, 0)
    lane = tl.arange(0, BLOCK_C)
    some = (c + lane < outputs)[None, :]
    own = tl.zeros((BLOCK_B,), tl.int32) if MAXIMUM else b * outputs
    map += image * H * W * C + c
    at = r * P * outputs + c + (b * outputs)[:, None] + lane[None, :]
    keep = exists[:, None] & some
    area = tl.maximum(height.to(tl.float32) * width.to(tl.float32), 1.0)[:, None]
    result = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    place = tl.full((BLOCK_B, BLOCK_C), -1, tl.int32)
    if BACKWARD:
        result = tl.load(values + at, mask=keep, other=0.0).to(tl.float32) / area
        if FIXED:
            result *= tl.load(unit)
    for i in range(tl.max(height, 0)):
        for j in range(tl.max(width, 0)):
            pixel = (top + i).to(INDEX) * W + left + j
            inside = ((i < height) & (j < width))[:, None] & some
            to = map + (pixel * C + own)[:, None] + lane[None, :]
            if BACKWARD:
                add(to, result, inside)
            else:
                x = tl.load(to, mask=inside, other=0.0).to(tl.float32)
                if MAXIMUM:
                    # NaN is larger than every number; of equal values the first one stays.
                    larger = inside & ((x > result) | ((x != x) & (result == result)) | (place < 0))
                    result = tl.where(larger, x, result)
                    place = tl.where(larger, pixel.to(tl.int32)[:, None], place)
                else:
                    result += x
    if not BACKWARD:
        if MAXIMUM:
            tl.store(taken + at, place, mask=keep)
        else:
            result = result / area
        tl.store(values + at, result.to(values.dtype.element_ty), mask=keep)


@triton.jit(do_not_specialize=["numel", "area"])
def give_back(
    grad, taken, rois, sums, unit,
    numel, C, P, area,
    LAST: tl.constexpr, FIXED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the gradients of BLOCK maxima, (R, C, bins), to the pixels that they were taken from."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    pixel = tl.load(taken + at, mask=at < numel, other=-1).to(tl.int64)
    some = pixel >= 0
    c = at // P % C
    image = tl.load(rois + at // P // C * 5, mask=some, other=0.0).to(tl.float32).to(tl.int64)
    value = tl.load(grad + at, mask=some, other=0.0).to(tl.float32)
    if FIXED:
        value *= tl.load(unit)
    to = (image * area + pixel) * C + c if LAST else (image * C + c) * area + pixel
    add(sums + to, value, some)


def launch(
    map: Tensor,
    rois: Tensor,
    values: Tensor,
    taken: Tensor | None,
    size: Sequence[int],
    scale: float,
    backward: bool = False,
    unit: Tensor | None = None,
) -> Launch:
    """Return what computes `values` (R, Ph·Pw, outputs), or with `backward` adds them to `map` (N, H, W, C)."""
    N, H, W, C = map.shape
    R, P, outputs = values.shape
    channels = power(outputs, 1, 64)
    bins = power(P, 1, 1024 // channels)
    known: dict[str, Any] = {
        "map": map, "rois": rois.contiguous(), "values": values, "taken": values if taken is None else taken,
        "N": N, "H": H, "W": W, "C": C, "outputs": outputs, "Ph": size[0], "Pw": size[1], "scale": scale,
        "unit": values if unit is None else unit, "tiles": ceil(P, bins),
        "MAXIMUM": taken is not None, "BACKWARD": backward, "FIXED": unit is not None,
        "INDEX": tl.int64 if H * W * C >= 2**31 else tl.int32,
        "VECTOR": math.gcd(outputs, C, 16 // values.element_size()), "BLOCK_B": bins, "BLOCK_C": channels,
    }  # fmt: skip
    return Launch.of(pool, (R * ceil(P, bins), ceil(outputs, channels), 1), registers=128, fused=False, **known)


def _outward(values: Tensor, input: Tensor, size: Sequence[int]) -> Tensor:
    """Return (R, bins, outputs) as (R, outputs, Ph, Pw) in input's memory format."""
    R, _, outputs = values.shape
    found = values.unflatten(1, size).permute(0, 3, 1, 2)
    return empty(input, (R, outputs, *size)).copy_(found)


def _inward(sums: Tensor, grad: Tensor, channels_last: bool) -> Tensor:
    """Return the sums of the input's gradient in grad's dtype and in the input's memory format."""
    format = torch.channels_last if channels_last else torch.contiguous_format
    return sums.to(grad.dtype).contiguous(memory_format=format)


def roi_pool(input: Tensor, rois: Tensor, output_size: Sequence[int], scale: float) -> tuple[Tensor, Tensor]:
    """Return the maxima in input's memory format, and the pixel of each; arguments are checked."""
    Ph, Pw = output_size
    R, C = len(rois), input.shape[1]
    values = input.new_empty((R, Ph * Pw, C))
    taken = input.new_empty((R, Ph * Pw, C), dtype=torch.int32)
    map = input.permute(0, 2, 3, 1).contiguous()
    launch(map, rois, values, taken, (Ph, Pw), scale).run(input.device)
    return _outward(values, input, (Ph, Pw)), taken.transpose(1, 2).contiguous().view(R, C, Ph, Pw)


def roi_pool_backward(
    grad: Tensor,
    input_size: Sequence[int],
    channels_last: bool,
    rois: Tensor,
    output_size: Sequence[int],
    scale: float,
    taken: Tensor,
) -> Tensor:
    """Return the gradient of the input: every bin's goes to the pixel that was taken."""
    found = Sums.zeros(grad, input_size, channels_last, lambda: largest(grad))
    back_launch(grad.contiguous(), rois, taken.contiguous(), found.tensor, channels_last, found.unit).run(grad.device)
    return _inward(found.total(), grad, channels_last)


def back_launch(
    grad: Tensor, rois: Tensor, taken: Tensor, sums: Tensor, channels_last: bool, unit: Tensor | None
) -> Launch:
    """Return what adds the gradients of maxima to `sums` (N, C, H, W)."""
    _, C, Ph, Pw = grad.shape
    _, _, H, W = sums.shape
    known: dict[str, Any] = {
        "grad": grad, "taken": taken, "rois": rois.contiguous(), "sums": sums, "unit": grad if unit is None else unit,
        "numel": grad.numel(), "C": C, "P": Ph * Pw, "area": H * W, "LAST": channels_last, "FIXED": unit is not None,
        "BLOCK": 1024,
    }  # fmt: skip
    return Launch.of(give_back, (ceil(grad.numel(), 1024), 1, 1), **known)


def ps_roi_pool(input: Tensor, rois: Tensor, output_size: Sequence[int], scale: float) -> Tensor:
    """Return the averages in input's memory format; arguments are checked."""
    C, (Ph, Pw) = input.shape[1], output_size
    P = Ph * Pw
    values = input.new_empty((len(rois), P, C // P))
    launch(grouped(input, P).flatten(3), rois, values, None, (Ph, Pw), scale).run(input.device)
    return _outward(values, input, (Ph, Pw))


def ps_roi_pool_backward(
    grad: Tensor,
    input_size: Sequence[int],
    channels_last: bool,
    rois: Tensor,
    output_size: Sequence[int],
    scale: float,
) -> Tensor:
    """Return the gradient of the input."""
    R, O, Ph, Pw = grad.shape
    P = Ph * Pw
    found = Sums.zeros(grad, input_size, True, lambda: largest(grad))
    values = grad.permute(0, 2, 3, 1).contiguous().view(R, P, O)
    launch(found.tensor.permute(0, 2, 3, 1), rois, values, None, (Ph, Pw), scale, True, found.unit).run(grad.device)
    return _inward(ungrouped(found.total(), P), grad, channels_last)
