"""Averages over the samples of RoI bins in plain PyTorch: the meaning that every kernel is tested against.

Arguments of the operators are already checked. Low precision computes in float32 and rounds once, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def roi_align(
    input: Tensor, rois: Tensor, output_size: Sequence[int], scale: float, ratio: int, aligned: bool
) -> Tensor:
    """Average every bin over a regular grid of bilinear samples."""
    return average_of_grid(input, rois, None, output_size, scale, ratio, 0.0, aligned, (1, 1)).to(input.dtype)


def ps_roi_align(input: Tensor, rois: Tensor, output_size: Sequence[int], scale: float, ratio: int) -> Tensor:
    """Average every bin over a regular grid of bilinear samples of its own channels, ``(c·Ph + ph)·Pw + pw``."""
    return average_of_grid(input, rois, None, output_size, scale, ratio, 0.0, True, output_size).to(input.dtype)


def deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    output_size: Sequence[int],
    scale: float,
    ratio: int,
    gamma: float,
    mask: Tensor | None,
) -> Tensor:
    """Compute RoIAlign with every bin moved by ``gamma·(width, height)·offset``, and multiply it by its mask."""
    output = average_of_grid(input, rois, offset, output_size, scale, ratio, gamma, True, (1, 1))
    if mask is not None:
        output = output * mask.to(output.dtype)
    return output.to(input.dtype)


def deform_psroi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    P: int,
    scale: float,
    group: int,
    part: int,
    samples: int,
    std: float,
    mask: Tensor | None,
) -> Tensor:
    """Average every bin over those of its samples that lie in the map, moved by ``std·(width, height)·offset``."""
    _, _, H, W = input.shape
    maps, corners, image, valid = working(input, rois)
    x1, y1, x2, y2 = round_away(corners).unbind(1)
    x1, y1, x2, y2 = x1 * scale - 0.5, y1 * scale - 0.5, (x2 + 1) * scale - 0.5, (y2 + 1) * scale - 0.5
    width, height = (x2 - x1).clamp(min=0.1), (y2 - y1).clamp(min=0.1)
    valid = valid & (width * std).isfinite() & (height * std).isfinite() & x1.isfinite() & y1.isfinite()
    x1, y1, width, height = (torch.where(valid, t, 0).view(-1, 1, 1, 1) for t in (x1, y1, width, height))

    bins = torch.arange(P, device=input.device)
    dx, dy = torch.zeros_like(x1), torch.zeros_like(y1)
    if offset is not None:
        # Per class, and per bin the offset of the part that it lies in.
        parts = bins * part // P
        moved = offset.to(maps.dtype).unflatten(1, (-1, 2))[..., parts[:, None], parts]
        dx, dy = std * width * moved[:, :, 0], std * height * moved[:, :, 1]

    def line(start: Tensor, size: Tensor, shift: Tensor, place: Tensor, extent: int) -> Tensor:
        origin = (start + place * (size / P) + shift).unsqueeze(-1)
        position = origin + torch.arange(samples, device=origin.device) * (size / P / samples).unsqueeze(-1)
        inside = (position >= -0.5) & (position <= extent - 0.5) & valid.view(-1, 1, 1, 1, 1)
        return torch.where(inside, into_map(position, extent), torch.nan)

    y, x = line(y1, height, dy, bins.view(P, 1), H), line(x1, width, dx, bins, W)
    counted = (~y.isnan()).sum(-1) * (~x.isnan()).sum(-1)
    output = (sums(maps, image, y, x, (P, P), (group, group)) / counted.clamp(min=1).unsqueeze(2)).flatten(1, 2)
    if mask is not None:
        output = output * mask.to(output.dtype)
    return output.to(input.dtype)


def working(input: Tensor, rois: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the map and the boxes in float32 (float64 for float64), the image of each box, and which boxes are valid.

    A box is valid where its image exists and its coordinates are finite; the others are moved to the origin of image
    0, so that nothing computed from them is infinite. No gradient flows into boxes.
    """
    N, _, _, _ = input.shape
    work = torch.float64 if input.dtype == torch.float64 else torch.float32
    rois = rois.detach().to(work)
    valid = rois.isfinite().all(1) & (rois[:, 0] >= 0) & (rois[:, 0] < N)
    rois = torch.where(valid[:, None], rois, 0)
    return input.to(work), rois[:, 1:], rois[:, 0].long(), valid


def round_away(x: Tensor) -> Tensor:
    """Round half away from zero, as C does; torch rounds half to even."""
    whole = x.trunc()
    return whole + torch.where((x - whole).abs() >= 0.5, x.sign(), 0)


def into_map(position: Tensor, extent: int) -> Tensor:
    """Move positions outside ``[0, extent − 1]`` onto its ends, where they have no gradient; at the ends it is 1.

    ``clamp`` has another gradient at its bounds in torch 2.14 than before.
    """
    return torch.where(position < 0, 0, torch.where(position > extent - 1, extent - 1, position))


def average_of_grid(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    size: Sequence[int],
    scale: float,
    ratio: int,
    gamma: float,
    aligned: bool,
    groups: Sequence[int],
) -> Tensor:
    """Average every bin over a regular grid of samples: RoIAlign, its position-sensitive form, its deformable form.

    ``y[r,c,ph,pw] = 1/(gh·gw)·Σ_iy Σ_ix x(start + bin·(ph, pw) + bin/g·(iy + ½, ix + ½) + gamma·extent·offset)`` with
    ``g = ratio``, or ``ceil(bin)`` where that is not positive. A sample outside ``[−1, H] × [−1, W]`` is 0, others are
    moved into ``[0, H−1] × [0, W−1]``. Arguments are already checked.

    Args:
        input: (N, C, H, W), the map.
        rois: (R, 5).
        offset: (R, 2, Ph, Pw), x first, or None.
        size: Ph, Pw, bins.
        scale: pixels of the map per pixel of the boxes.
        ratio: samples per bin in each direction.
        gamma: factor of the offsets, in extents of the box.
        aligned: whether boxes are moved by half a pixel and may have any extent; else no extent is below one pixel.
        groups: (Gh, Gw), groups of channels over which the bins are divided; (1, 1): every bin reads all channels.

    Returns:
        (R, C/(Gh·Gw), Ph, Pw) in float32 (float64 for float64), differentiable in input and offset.
    """
    _, _, H, W = input.shape
    Ph, Pw = size
    maps, corners, image, valid = working(input, rois)
    half = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (corners * scale - half).unbind(1)
    width, height = x2 - x1, y2 - y1
    if not aligned:
        width, height = width.clamp(min=1), height.clamp(min=1)
    valid = valid & (width * gamma).isfinite() & (height * gamma).isfinite() & x1.isfinite() & y1.isfinite()
    x1, y1, width, height = (torch.where(valid, t, 0) for t in (x1, y1, width, height))

    dx, dy = torch.zeros_like(x1).view(-1, 1, 1), torch.zeros_like(y1).view(-1, 1, 1)
    if offset is not None:
        dx, dy = offset.to(maps.dtype).unbind(1)
        dx, dy = (gamma * width).view(-1, 1, 1) * dx, (gamma * height).view(-1, 1, 1) * dy
    y, tall = _grid(y1, height, dy, torch.arange(Ph, device=y1.device).view(Ph, 1), Ph, ratio, H)
    x, wide = _grid(x1, width, dx, torch.arange(Pw, device=x1.device), Pw, ratio, W)
    y = torch.where(valid.view(-1, 1, 1, 1), y, torch.nan)
    total = sums(maps, image, y.unsqueeze(1), x.unsqueeze(1), size, groups).squeeze(1)
    return total / (tall * wide).clamp(min=1).view(-1, 1, 1, 1)


def _grid(
    start: Tensor, size: Tensor, shift: Tensor, place: Tensor, bins: int, ratio: int, extent: int
) -> tuple[Tensor, Tensor]:
    """Return the positions of samples along one axis, (R, Ph, Pw, S), and the number of samples per bin, (R,).

    NaN marks a sample that is 0. A huge box has more samples than fit into memory, so only those are returned that may
    lie in the map: about two per pixel at most, since the samples of a bin with `ceil(bin)` of them are at least half
    a pixel apart.
    """
    bin = size / bins
    samples = torch.full_like(bin, ratio) if ratio > 0 else bin.ceil().clamp(min=0)
    some = samples.clamp(min=1)
    bin, some, total, step = (t.view(-1, 1, 1) for t in (bin, some, samples, bin / some))
    origin = start.view(-1, 1, 1) + place * bin + shift
    skipped, visits = torch.zeros_like(origin), ratio
    if ratio <= 0:
        before = ((-1 - origin.detach()) / step).floor() - 1
        skipped = torch.minimum(before.clamp(min=0), total)
        possible = torch.minimum(total, ((extent + 1) / step).ceil() + 4)
        # At least one, which may be NaN: without any, the output would not depend on the map.
        visits = max(int(possible.max()), 1) if len(start) else 1
    j = torch.arange(visits, device=start.device)
    bin, some, total, step = (t.unsqueeze(-1) for t in (bin, some, total, step))
    origin, skipped = origin.unsqueeze(-1), skipped.unsqueeze(-1)
    position = origin + skipped * step + (j + 0.5) * bin / some
    inside = (skipped + j < total) & (position >= -1) & (position <= extent)
    return torch.where(inside, into_map(position, extent), torch.nan), samples


def sums(input: Tensor, image: Tensor, y: Tensor, x: Tensor, size: Sequence[int], groups: Sequence[int]) -> Tensor:
    """Add the bilinear samples at the crossings of rows `y` and columns `x`, per bin and RoI.

    Channel ``(c·Gh + gh)·Gw + gw`` of the map belongs to channel c of the bins with ``gh = floor(ph·Gh/Ph)``, gw
    likewise; each of K classes owns an equal run of the channels c. At integers the derivative is the right-sided one;
    at the last row and column it is 0.

    Args:
        input: (N, C, H, W), the map.
        image: (R,), the image of each RoI.
        y: (R, K, Ph, Pw, Sy), in [0, H − 1], or NaN for no sample. All dimensions but R may be 1.
        x: (R, K, Ph, Pw, Sx), in [0, W − 1], likewise.
        size: Ph, Pw, bins.
        groups: Gh, Gw.

    Returns:
        (R, K, C/(Gh·Gw·K), Ph, Pw), differentiable in input, y and x, any number of times.
    """
    N, C, H, W = input.shape
    (Ph, Pw), (Gh, Gw) = size, groups
    R, K = y.shape[0], max(y.shape[1], x.shape[1])
    c = C // (K * Gh * Gw)
    table = input.reshape(N, K, c, Gh, Gw, H * W).permute(2, 0, 1, 3, 4, 5).reshape(c, -1)

    def group_of(bins: int, group: int) -> Tensor:
        return torch.arange(bins, device=input.device) * group // bins

    plane = image.view(R, 1, 1, 1) * K + torch.arange(K, device=input.device).view(K, 1, 1)
    plane = (plane * Gh + group_of(Ph, Gh).view(Ph, 1)) * Gw + group_of(Pw, Gw)
    base = (plane * (H * W)).unsqueeze(-1)

    def ends(position: Tensor, extent: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return both neighbours of every sample, all lower ones first: which are read, where, and their weights."""
        reads = ~position.isnan()
        position = torch.where(reads, position, 0)
        low = position.detach().floor()
        part = position - low
        place = torch.cat([low, (low + 1).clamp(max=extent - 1)], -1).long()
        return torch.cat([reads, reads], -1), place, torch.cat([1 - part, part], -1)

    reads_y, row, weight_y = ends(y, H)
    reads_x, column, weight_x = ends(x, W)
    total = input.new_zeros(c, R, K, Ph, Pw)
    # Row by row: all corners at once would take too much memory.
    for i in range(row.shape[-1]):
        index = base + row[..., i, None] * W + column
        corner = table.index_select(1, index.reshape(-1)).reshape(c, *index.shape)
        reads, weight = reads_y[..., i, None] & reads_x, weight_y[..., i, None] * weight_x
        total = total + (torch.where(reads, corner, 0) * weight).sum(-1)
    return total.permute(1, 2, 0, 3, 4)
