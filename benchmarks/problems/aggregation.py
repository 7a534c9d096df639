"""Multi-scale deformable attention, DCNv3, DCNv4: the limit is a copy of the output, the peer is grid_sample."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import peers as others
from measuring import Call, Problem, Setting, call, gradient
from pliant import ops
from pliant.testing import DCNCase, MSDeformAttnCase


def attention(case: MSDeformAttnCase, setting: Setting) -> Problem:
    """Return a problem of `ms_deform_attn`: pliant, a copy of the output, grid_sample, torch-ms-deform-attn."""
    N, _, M, D = case.input
    t = {name: x.to(setting.device) for name, x in case.tensors().items()}
    # Locations stay float32, as under autocast.
    t["value"] = t["value"].to(setting.dtype)
    own = functools.partial(ops.ms_deform_attn, **case.arguments)
    more = {}
    if setting.device == "cpu" and setting.peers != "none" and setting.dtype == torch.float32:
        more["grid_sample"] = functools.partial(grid_sample, case)
        if not setting.backward:
            more["embedding_bag, places known"] = embedding_bag(case, t)
    if setting.peers == "all" and setting.dtype == torch.float32:
        more |= dict(others.available({"torch-ms-deform-attn": lambda: others.torch_ms_deform_attn(case)}))
    points = case.points if isinstance(case.points, int) else "+".join(map(str, case.points))
    levels = " ".join(f"{H}×{W}" for H, W in case.shapes)
    around = f"{case.near:g} pixels around each query" if case.near else "anywhere"
    shape = f"{N} × {case.queries} queries, {M} heads of {D}, levels {levels}, {points} points {around}"
    return _problem(case.name, shape, setting, own, t, (N, case.queries, M * D), more)


def dcn(op: str, case: DCNCase, setting: Setting) -> Problem:
    """Return a problem of `dcnv3` or `dcnv4`: pliant, a copy of the output, grid_sample."""
    t = {name: x.to(setting.device) for name, x in case.tensors(op).items()}
    t["input"] = t["input"].to(setting.dtype)
    own = functools.partial(getattr(ops, op), **case.arguments)
    more = {}
    if setting.device == "cpu" and setting.peers != "none" and setting.dtype == torch.float32:
        more["grid_sample"] = functools.partial(dcn_grid_sample, case)
    N, H, W, C = case.input
    shape = f"{case.input}, {case.groups} groups, {case.kernel[0]}×{case.kernel[1]}"
    return _problem(case.name, shape, setting, own, t, (N, H, W, C), more)


def _problem(
    name: str,
    shape: str,
    setting: Setting,
    own: Any,
    tensors: dict[str, Tensor],
    output: tuple[int, ...],
    peers: dict[str, Any],
) -> Problem:
    grad = gradient(output, setting)
    timed = functools.partial(call, backward=setting.backward, trained=tuple(tensors))

    def exact() -> tuple[Tensor, ...]:
        first = {name: x[:1].double() for name, x in tensors.items()}
        return timed(functools.partial(own, implementation="reference"), first, grad[:1].double())()

    contestants = [
        Call("copy of the output", grad.clone, checked=False),
        Call("pliant", timed(functools.partial(own, implementation=setting.implementation), tensors, grad)),
        *(Call(name, timed(function, tensors, grad)) for name, function in peers.items()),
    ]
    return Problem(name, shape, contestants, {"copy of the output": 1.0}, exact)


def grid_sample(case: MSDeformAttnCase, value: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    """Multi-scale deformable attention as every framework writes it: one grid_sample per level."""
    N, _, M, D = value.shape
    _, Q, _, L, P, _ = sampling_locations.shape
    levels = value[:, : sum(H * W for H, W in case.shapes)].split([H * W for H, W in case.shapes], 1)
    grids = 2 * sampling_locations - 1
    sampled = []
    for level, (H, W) in enumerate(case.shapes):
        maps = levels[level].flatten(2).transpose(1, 2).reshape(N * M, D, H, W)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = attention_weights.transpose(1, 2).reshape(N * M, 1, Q, L * P)
    output = (torch.stack(sampled, -2).flatten(-2) * weights).sum(-1).view(N, M * D, Q)
    return output.transpose(1, 2).contiguous()


def embedding_bag(case: MSDeformAttnCase, t: dict[str, Tensor]) -> Callable[..., Tensor]:
    """Return torch's kernel for weighted sums of rows, given the rows of all corners and their weights.

    It does not locate samples, so it tells what reading them takes.
    """
    N, S, M, D = t["value"].shape
    places, weights = t["sampling_locations"], t["attention_weights"]
    _, Q, _, L, P, _ = places.shape
    extents = torch.tensor(case.shapes, dtype=places.dtype)
    starts = torch.cat((torch.zeros(1, dtype=torch.long), extents.prod(1).long().cumsum(0)[:-1]))
    x, y = (places * extents.flip(1).view(L, 1, 2) - 0.5).unbind(-1)
    H, W = (side.view(L, 1) for side in extents.unbind(1))
    top, left = y.floor(), x.floor()
    image, head = torch.arange(N).view(N, 1, 1, 1, 1), torch.arange(M).view(M, 1, 1)
    rows, factors = [], []
    for row, below in ((top, top + 1 - y), (top + 1, y - top)):
        for column, beside in ((left, left + 1 - x), (left + 1, x - left)):
            inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
            pixel = torch.where(inside, row * W + column, 0).long() + starts.view(L, 1)
            rows.append((image * S + pixel) * M + head)
            factors.append(torch.where(inside, below * beside * weights, 0))
    read, factor = torch.stack(rows, -1).reshape(-1), torch.stack(factors, -1).reshape(-1)
    bags = torch.arange(0, read.numel(), 4 * L * P)
    return lambda value, **_: F.embedding_bag(
        read, value.reshape(-1, D), bags, mode="sum", per_sample_weights=factor
    ).view(N, Q, M * D)


def dcn_grid_sample(case: DCNCase, input: Tensor, **given: Tensor) -> Tensor:
    """DCNv3 and DCNv4 with a kernel of odd sides and stride 1, as InternImage writes it: one grid_sample."""
    N, H, W, C = input.shape
    (Kh, Kw), G, (dh, dw), (ph, pw) = case.kernel, case.groups, case.dilation, case.padding
    K = Kh * Kw
    if "offset_mask" in given:
        packed = given["offset_mask"][..., : 3 * G * K].unflatten(-1, (G, 3 * K))
        offset, mask = packed[..., : 2 * K].flatten(-2), packed[..., 2 * K :].flatten(-2)
    else:
        offset, mask = given["offset"], given["mask"]
    taps_y = (torch.arange(Kh) * dh).repeat(Kw) - dh * (Kh - 1) // 2
    taps_x = (torch.arange(Kw) * dw).repeat_interleave(Kh) - dw * (Kw - 1) // 2
    _, Ho, Wo, _ = offset.shape
    y = torch.arange(Ho).view(Ho, 1, 1, 1) - ph + dh * (Kh - 1) // 2 + case.offset_scale * taps_y
    x = torch.arange(Wo).view(Wo, 1, 1) - pw + dw * (Kw - 1) // 2 + case.offset_scale * taps_x
    moved = case.offset_scale * offset.view(N, Ho, Wo, G, K, 2)
    places = torch.stack((x + moved[..., 0], y + moved[..., 1]), -1)
    grid = (2 * places + 1) / torch.tensor([W, H]) - 1
    grid = grid.view(N, Ho * Wo, G, K, 2).transpose(1, 2).flatten(0, 1)
    maps = input.view(N, H * W, C).transpose(1, 2).reshape(N * G, C // G, H, W)
    sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    weights = mask.view(N, Ho * Wo, G, K).transpose(1, 2).reshape(N * G, 1, Ho * Wo, K)
    return (sampled * weights).sum(-1).view(N, C, Ho * Wo).transpose(1, 2).contiguous().view(N, Ho, Wo, C)
