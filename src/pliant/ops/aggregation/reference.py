"""Weighted sums of samples in plain PyTorch: the formulas, differentiable any number of times.

Arguments are already checked. Low precision computes in float32 and rounds once, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pliant.ops.sampling.reference import linear


def _work(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[int],
    level_start_index: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    points: Sequence[int],
    discrete: bool,
) -> Tensor:
    """Add weighted samples of every level.

    ``y[n,q,m] = Σ_l Σ_p weight[n,q,m,l,p] · x_l[n,m](location[n,q,m,l,p]·(W_l, H_l) − ½)`` with x_l sampled bilinearly;
    discrete: ``x_l`` at the pixel ``trunc(location·(W_l, H_l) + ½)``, each coordinate clamped into the map.
    """
    N, _, M, D = value.shape
    Q = sampling_locations.shape[1]
    work = _work(value)
    each = list(points) or [sampling_locations.shape[4]] * len(level_start_index)
    locations = sampling_locations.to(work).reshape(N, Q, M, sum(each), 2)
    weights = attention_weights.to(work).reshape(N, Q, M, sum(each))
    # Zeros that depend on the locations, so that they have a gradient where samples are discrete.
    total = locations[..., :0].sum((3, 4)).unsqueeze(-1).expand(N, Q, M, D)
    end = 0
    for level, P in enumerate(each):
        H, W = spatial_shapes[2 * level : 2 * level + 2]
        start, first, end = level_start_index[level], end, end + P
        x, y = locations[..., first:end, :].transpose(1, 2).reshape(N * M, Q * P, 2).unbind(-1)
        maps = value[:, start : start + H * W].to(work).permute(0, 2, 3, 1).reshape(N * M, D, H, W)
        y, x = y * H, x * W
        sampled = _nearest(maps, y + 0.5, x + 0.5) if discrete else linear(maps, (y - 0.5, x - 0.5), False)
        weight = weights[..., first:end].permute(0, 2, 1, 3).reshape(N * M, 1, Q, P)
        found = (sampled.reshape(N * M, D, Q, P) * weight).sum(-1)
        total = total + found.reshape(N, M, D, Q).permute(0, 3, 1, 2)
    return total.reshape(N, Q, M * D).to(value.dtype)


def _nearest(maps: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return the pixels (B, C, P) at ``trunc(y), trunc(x)``, clamped into the map; 0 where these are not finite."""
    B, C, H, W = maps.shape
    finite = y.isfinite() & x.isfinite()
    row = torch.where(finite, y.detach(), 0).clamp(0, H - 1).long()
    column = torch.where(finite, x.detach(), 0).clamp(0, W - 1).long()
    pixel = maps.reshape(B, C, H * W).gather(2, (row * W + column)[:, None].expand(B, C, -1))
    return torch.where(finite[:, None], pixel, 0)


def dcnv3(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
) -> Tensor:
    """Add the masked samples of every tap, per group of channels.

    ``y[n,p,g] = Σ_k mask[n,p,g,k] · x[n,g](p·stride − padding + c + offset_scale·(tap_k·dilation − c + Δ))`` with
    ``Δ = offset[n,p,g,k]`` and ``c = ⌊dilation·(kernel_size − 1)/2⌋``.
    """
    N, H, W, C = input.shape
    _, Ho, Wo, _ = offset.shape
    work = _work(input)
    taps = _taps(kernel_size, remove_center)
    K = len(taps)
    moved = offset.to(work).reshape(N, Ho * Wo, groups, K, 2).transpose(1, 2)
    masks = mask.to(work).reshape(N, Ho * Wo, groups, K).transpose(1, 2)

    def axis(which: int, extent: int) -> Tensor:
        """Return the positions of all taps along one axis without their offsets, (extent, K)."""
        p, d, s = padding[which], dilation[which], stride[which]
        center = d * (kernel_size[which] - 1) // 2
        tap = torch.tensor([tap[which] * d - center for tap in taps], device=input.device, dtype=work)
        output = torch.arange(extent, device=input.device, dtype=work) * s - p + center
        return output[:, None] + offset_scale * tap

    y = axis(0, Ho).view(Ho, 1, K).expand(Ho, Wo, K).reshape(Ho * Wo, K) + offset_scale * moved[..., 1]
    x = axis(1, Wo).view(1, Wo, K).expand(Ho, Wo, K).reshape(Ho * Wo, K) + offset_scale * moved[..., 0]
    D = C // groups
    maps = input.to(work).reshape(N, H, W, groups, D).permute(0, 3, 4, 1, 2).reshape(N * groups, D, H, W)
    places = (N * groups, Ho * Wo * K)
    sampled = linear(maps, (y.reshape(places), x.reshape(places)), False).reshape(N, groups, D, Ho * Wo, K)
    output = (sampled * masks.unsqueeze(2)).sum(-1)
    return output.permute(0, 3, 1, 2).reshape(N, Ho, Wo, C).to(input.dtype)


def _taps(kernel_size: Sequence[int], remove_center: bool) -> list[tuple[int, int]]:
    """Return (row, column) of every tap, columns outermost, in the order of offsets and masks."""
    Kh, Kw = kernel_size
    taps = [(j, i) for i in range(Kw) for j in range(Kh)]
    if remove_center:
        taps.remove((Kh // 2, Kw // 2))
    return taps


def dcnv4(
    input: Tensor,
    offset_mask: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
) -> Tensor:
    """Run `dcnv3` on the offsets (2·K channels) and masks (K channels) of every group, packed in this order."""
    K = len(_taps(kernel_size, remove_center))
    packed = offset_mask[..., : groups * 3 * K].unflatten(-1, (groups, 3 * K))
    offset, mask = packed[..., : 2 * K].flatten(-2), packed[..., 2 * K :].flatten(-2)
    return dcnv3(input, offset, mask, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center)
