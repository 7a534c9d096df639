"""Bins of whole pixels on GPUs: maxima and averages of RoI bins, and where their gradients go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pliant.ops.gpu.launch import Launch, ceil, empty, power
from pliant.ops.roi.triton.averaging import corners, finite, round_away
from pliant.ops.sampling.triton import add, units


@triton.jit
def span(k, first, last, bins, scale, extent, MORE: tl.constexpr):
    """Return the first pixel of bins `k` along one direction, and the one after the last."""
    start = round_away(first * scale)
    length = tl.maximum(round_away(last * scale) - start + MORE, 1.0)
    bin = tl.div_rn(length, bins * 1.0)
    low = tl.minimum(tl.maximum(tl.floor(k.to(tl.float32) * bin) + start, 0.0), extent * 1.0)
    high = tl.minimum(tl.maximum(tl.ceil((k + 1).to(tl.float32) * bin) + start, 0.0), extent * 1.0)
    # Not finite where the corners are huge.
    alive = finite(start) & finite(length)
    return tl.where(alive, low, 0.0).to(tl.int32), tl.where(alive, high, 0.0).to(tl.int32)


@triton.jit(do_not_specialize=["N", "H", "W"])
def pool(
    map, rois, values, taken,
    N, H, W, C, outputs, Ph, Pw, scale, unit, tiles,
    MAXIMUM: tl.constexpr, BACKWARD: tl.constexpr, FIXED: tl.constexpr, INDEX: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_B bins of one RoI and BLOCK_C channels: maxima or averages; with BACKWARD, add averages' gradients.

    `map` is (N, H, W, C), `values` (R, bins, outputs): read with BACKWARD, else written. Maxima read the same channels
    in every bin, averages the bin's own; `taken` (R, bins, outputs) is which pixel a maximum came from, or −1.
    """
    C = C // VECTOR * VECTOR
    outputs = outputs // VECTOR * VECTOR
    P = Ph * Pw
    r = (tl.program_id(0) // tiles).to(tl.int64)
    b = tl.program_id(0) % tiles * BLOCK_B + tl.arange(0, BLOCK_B)
    c = tl.program_id(1) * BLOCK_C
    exists = b < P
    alive, image, x1, y1, x2, y2 = corners(rois, r, N)
    top, bottom = span(b // Pw, y1, y2, Ph, scale, H, 1.0 if MAXIMUM else 0.0)
    left, right = span(b % Pw, x1, x2, Pw, scale, W, 1.0 if MAXIMUM else 0.0)
    reads = b < tl.where(alive, P, 0)
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
                    # NaN is larger than every number; of equals the first one stays.
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
    """Add the gradients of BLOCK maxima, (R, C, bins), to the pixels they were taken from."""
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


def roi_pool(input: Tensor, rois: Tensor, output_size: Sequence[int], scale: float) -> tuple[Tensor, Tensor]:
    """Return the maxima in input's memory format, and which pixels they are; arguments are checked."""
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
    unit = _unit(grad)
    dtype = torch.float32 if unit is None else torch.int64
    format = torch.channels_last if channels_last else torch.contiguous_format
    sums = torch.empty(tuple(input_size), dtype=dtype, device=grad.device, memory_format=format).zero_()
    back_launch(grad.contiguous(), rois, taken.contiguous(), sums, channels_last, unit).run(grad.device)
    found = sums if unit is None else sums / unit
    return found.to(grad.dtype).contiguous(memory_format=format)


def back_launch(
    grad: Tensor, rois: Tensor, taken: Tensor, sums: Tensor, channels_last: bool, unit: Tensor | None
) -> Launch:
    """Return what adds the gradients of maxima to `sums`, in whose layout it is."""
    _, C, Ph, Pw = grad.shape
    _, _, H, W = sums.shape
    known: dict[str, Any] = {
        "grad": grad, "taken": taken, "rois": rois.contiguous(), "sums": sums, "unit": grad if unit is None else unit,
        "numel": grad.numel(), "C": C, "P": Ph * Pw, "area": H * W, "LAST": channels_last, "FIXED": unit is not None,
        "BLOCK": 1024,
    }  # fmt: skip
    return Launch.of(give_back, (ceil(grad.numel(), 1024), 1, 1), **known)


def _unit(grad: Tensor) -> Tensor | None:
    """Return in which integers the input's gradient is added, or None where the order of additions may vary."""
    if not grad.numel() or not torch.are_deterministic_algorithms_enabled():
        return None
    R, _, Ph, Pw = grad.shape
    # A pixel gets from every bin at most its gradient.
    return units(R * Ph * Pw * grad.abs().amax().double())


def ps_roi_pool(input: Tensor, rois: Tensor, output_size: Sequence[int], scale: float) -> Tensor:
    """Return the averages in input's memory format; arguments are checked."""
    C, (Ph, Pw) = input.shape[1], output_size
    P = Ph * Pw
    values = input.new_empty((len(rois), P, C // P))
    # Channels of one bin lie side by side: (N, H, W, bins, outputs).
    map = input.unflatten(1, (C // P, P)).permute(0, 3, 4, 2, 1).contiguous().flatten(3)
    launch(map, rois, values, None, (Ph, Pw), scale).run(input.device)
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
    N, _, H, W = input_size
    R, O, Ph, Pw = grad.shape
    P = Ph * Pw
    unit = _unit(grad)
    sums = grad.new_zeros((N, H, W, P * O), dtype=torch.float32 if unit is None else torch.int64)
    values = grad.permute(0, 2, 3, 1).contiguous().view(R, P, O)
    launch(sums, rois, values, None, (Ph, Pw), scale, True, unit).run(grad.device)
    found: Tensor = (sums if unit is None else sums / unit).unflatten(3, (P, O)).permute(0, 4, 3, 1, 2).flatten(1, 2)
    format = torch.channels_last if channels_last else torch.contiguous_format
    return found.to(grad.dtype).contiguous(memory_format=format)
