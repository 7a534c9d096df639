"""Local response normalization on GPUs: forward and backward read and write each tensor once."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pliant.ops.gpu.launch import Launch, ceil
from pliant.ops.gpu.launch import power as power_of_two

# Exponents that need no logarithm; the others are computed as 2^(−β·log2 S).
POWERS = {0.0: 0, 0.5: 1, 0.75: 2, 1.0: 3}
# Elements of one program.
TILE = 2048


@triton.jit
def power(s, beta, POWER: tl.constexpr):
    """Return s^−β."""
    if POWER == 0:
        return tl.full(s.shape, 1.0, tl.float32)
    elif POWER == 1:
        return tl.rsqrt(s)
    elif POWER == 2:
        r = tl.rsqrt(s)
        return r * tl.sqrt(r)
    elif POWER == 3:
        return 1.0 / s
    else:
        return tl.exp2(-beta * tl.log2(s))


@triton.jit
def lines(
    numel, D, inner, step, tile, first,
    LAST: tl.constexpr, INDEX: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Return the start of a tile in memory, its elements from there, their indices along D, and which exist.

    A dense tensor is [outer][D][inner] in memory, whatever its dimensions mean. Lanes of a warp run over inner, or with
    LAST, where inner is 1, over D. `step` is then 1, which the compiler must not know: a lane would load several
    neighbours at once, and shifted ones from unaligned addresses.
    """
    if LAST:
        line = tile.to(tl.int64) * BLOCK_I
        i = tl.arange(0, BLOCK_I)[:, None]
        d = first + tl.arange(0, BLOCK_D)[None, :]
        return line * D, i.to(INDEX) * D + d * step, d, (line + i < numel // D) & (d >= 0) & (d < D)
    else:
        tiles = tl.cdiv(inner, BLOCK_I)
        i = tile % tiles * BLOCK_I + tl.arange(0, BLOCK_I)[None, :]
        d = first + tl.arange(0, BLOCK_D)[:, None]
        start = (tile // tiles).to(tl.int64) * D * inner
        return start, d.to(INDEX) * inner + i, d, (i < inner) & (d >= 0) & (d < D)


@triton.jit
def energy(x, at, d, exists, D, step, a, k, BEFORE: tl.constexpr, AFTER: tl.constexpr, INDEX: tl.constexpr):
    """Return S = k + a·Σ x² over the window of every element; its neighbours are read from the cache."""
    total = tl.zeros(at.shape, tl.float32)
    for j in range(-BEFORE, AFTER + 1):
        near = tl.load(x + (at + tl.cast(j, INDEX) * step), mask=exists & (d + j >= 0) & (d + j < D), other=0.0)
        total += near.to(tl.float32) * near.to(tl.float32)
    return k + a * total


@triton.jit(do_not_specialize=["numel", "step", "tiles"])
def forward(
    input, output,
    numel, D, inner, step, tiles, a, beta, k,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, POWER: tl.constexpr, LAST: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Normalize BLOCK_D elements of each of BLOCK_I lines."""
    tile = tl.program_id(0) % tiles
    first = tl.program_id(0) // tiles * BLOCK_D
    start, at, d, exists = lines(numel, D, inner, step, tile, first, LAST, INDEX, BLOCK_D, BLOCK_I)
    x = input + start
    s = energy(x, at, d, exists, D, step if LAST else inner, a, k, BEFORE, AFTER, INDEX)
    y = tl.load(x + at, mask=exists, other=0.0).to(tl.float32) * power(s, beta, POWER)
    tl.store(output + start + at, y.to(output.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=["numel", "step", "tiles"])
def backward(
    grad, input, output,
    numel, D, inner, step, tiles, a, beta, k,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, POWER: tl.constexpr, LAST: tl.constexpr, INDEX: tl.constexpr,
    HALO: tl.constexpr, USED: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Compute ``g_i·S_i^−β − 2aβ·x_i·Σ_j g_j·x_j·S_j^(−β−1)`` over the mirrored window, for USED elements of a block.

    The HALO elements before and behind them are computed by two blocks, so that every window lies in one block; where a
    block holds the whole line there is no halo.
    """
    tile = tl.program_id(0) % tiles
    first = tl.program_id(0) // tiles * USED - HALO
    start, at, d, exists = lines(numel, D, inner, step, tile, first, LAST, INDEX, BLOCK_D, BLOCK_I)
    s = energy(input + start, at, d, exists, D, step if LAST else inner, a, k, BEFORE, AFTER, INDEX)
    x = tl.load(input + start + at, mask=exists, other=0.0).to(tl.float32)
    g = tl.load(grad + start + at, mask=exists, other=0.0).to(tl.float32)
    p = power(s, beta, POWER)
    # Outside the tensor S may be 0, and 0/0 must not reach the sums.
    t = tl.where(exists, g * x * p / s, 0.0)
    lane = tl.broadcast_to(d - first, t.shape)
    total = tl.zeros(t.shape, tl.float32)
    for j in range(-AFTER, BEFORE + 1):
        there = lane + j
        inside = (there >= 0) & (there < BLOCK_D)
        total += tl.where(inside, tl.gather(t, tl.where(inside, there, 0), 1 if LAST else 0), 0.0)
    y = g * p - (2.0 * a * beta) * x * total
    keep = exists & (d >= first + HALO) & (d < first + HALO + USED)
    tl.store(output + start + at, y.to(output.dtype.element_ty), mask=keep)


@triton.jit
def around(map, m, exists, H, W, stride_h, stride_w, HALF: tl.constexpr, SQUARE: tl.constexpr):
    """Return the sums of values, or of their squares, over the (2·HALF + 1)² window of elements `m` in memory."""
    h = m // stride_h % H
    w = m // stride_w % W
    total = tl.zeros(m.shape, tl.float32)
    for i in range(-HALF, HALF + 1):
        for j in range(-HALF, HALF + 1):
            inside = exists & (h + i >= 0) & (h + i < H) & (w + j >= 0) & (w + j < W)
            near = tl.load(map + (m + i * stride_h + j * stride_w), mask=inside, other=0.0).to(tl.float32)
            total += near * near if SQUARE else near
    return total


@triton.jit
def spatial_forward(
    grad, input, output,
    numel, H, W, stride_h, stride_w, a, beta, k,
    HALF: tl.constexpr, POWER: tl.constexpr, BACKWARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Normalize over a window of the map, or with BACKWARD write ``g·x·S^(−β−1)``, which `spatial_backward` sums."""
    m = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = m < numel
    s = k + a * around(input, m, exists, H, W, stride_h, stride_w, HALF, True)
    y = tl.load(input + m, mask=exists, other=0.0).to(tl.float32) * power(s, beta, POWER)
    if BACKWARD:
        y = y / s * tl.load(grad + m, mask=exists, other=0.0).to(tl.float32)
    tl.store(output + m, y.to(output.dtype.element_ty), mask=exists)


@triton.jit
def spatial_backward(
    grad, input, terms, output,
    numel, H, W, stride_h, stride_w, a, beta, k,
    HALF: tl.constexpr, POWER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the gradient from the terms that `spatial_forward` wrote."""
    m = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = m < numel
    s = k + a * around(input, m, exists, H, W, stride_h, stride_w, HALF, True)
    total = around(terms, m, exists, H, W, stride_h, stride_w, HALF, False)
    x = tl.load(input + m, mask=exists, other=0.0).to(tl.float32)
    g = tl.load(grad + m, mask=exists, other=0.0).to(tl.float32)
    y = g * power(s, beta, POWER) - (2.0 * a * beta) * x * total
    tl.store(output + m, y.to(output.dtype.element_ty), mask=exists)


def local_response_norm(
    input: Tensor, dim: int, before: int, after: int, spatial: bool, a: float, beta: float, k: float
) -> Tensor:
    """Return the output, with input's strides where they are dense."""
    output = torch.empty_like(input)
    for launch in launches(None, _like(input, output), output, dim, before, after, spatial, a, beta, k):
        launch.run(input.device)
    return output


def local_response_norm_backward(
    grad: Tensor, input: Tensor, dim: int, before: int, after: int, spatial: bool, a: float, beta: float, k: float
) -> Tensor:
    """Return the gradient of the input."""
    output = torch.empty_like(input)
    tensors = (_like(grad, output), _like(input, output), output)
    for launch in launches(*tensors, dim, before, after, spatial, a, beta, k):
        launch.run(input.device)
    return output


def _like(t: Tensor, output: Tensor) -> Tensor:
    """Return `t` with output's strides, which are dense."""
    return t if t.stride() == output.stride() else torch.empty_like(output).copy_(t)


def launches(
    grad: Tensor | None,
    input: Tensor,
    output: Tensor,
    dim: int,
    before: int,
    after: int,
    spatial: bool,
    a: float,
    beta: float,
    k: float,
) -> list[Launch]:
    """Return what computes `output`: the normalized input, or with `grad` its gradient."""
    numbers: dict[str, Any] = {
        "input": input, "output": output, "grad": input if grad is None else grad, "numel": input.numel(),
        "a": a, "beta": beta, "k": k, "POWER": POWERS.get(beta, 4),
    }  # fmt: skip
    if not input.numel():
        return []
    if spatial:
        H, W = input.shape[-2:]
        # The strides of a dense tensor locate every element; the stride of a dimension of size 1 is not used.
        sizes: dict[str, Any] = {"H": H, "W": W, "stride_h": input.stride(-2), "stride_w": input.stride(-1)}
        sizes["HALF"] = min(before, max(H, W) - 1)
        grid = (ceil(input.numel(), 1024), 1, 1)
        if grad is None:
            return [Launch.of(spatial_forward, grid, **numbers, **sizes, BACKWARD=False, BLOCK=1024)]
        terms = torch.empty_like(output, dtype=torch.float32)
        first = numbers | {"output": terms}
        return [
            Launch.of(spatial_forward, grid, **first, **sizes, BACKWARD=True, BLOCK=1024),
            Launch.of(spatial_backward, grid, **numbers, **sizes, terms=terms, BLOCK=1024),
        ]

    D = input.shape[dim]
    inner = input.stride(dim) if D > 1 else 1
    last = inner == 1
    # No window extends beyond the other end.
    before, after = min(before, D - 1), min(after, D - 1)
    size, halo = (power_of_two(D, 1, 256), 0) if grad is None else _with_halo(D, max(before, after))
    lanes = power_of_two(input.numel() // D if last else inner, 1, max(TILE // size, 1))
    used = size - 2 * halo
    tiles = ceil(input.numel() // D, lanes) if last else input.numel() // (D * inner) * ceil(inner, lanes)
    # All in one dimension: the others hold 2¹⁶ programs, too few for the blocks of a line of many millions.
    grid = (tiles * ceil(D, used), 1, 1)
    sizes = {
        "D": D, "inner": inner, "step": inner, "BEFORE": before, "AFTER": after, "LAST": last, "HALO": halo,
        "USED": used, "BLOCK_D": size, "BLOCK_I": lanes, "tiles": tiles,
        "INDEX": tl.int64 if D * (lanes if last else inner) >= 2**31 else tl.int32,
    }  # fmt: skip
    return [Launch.of(forward if grad is None else backward, grid, registers=168, **numbers, **sizes)]


def _with_halo(D: int, halo: int) -> tuple[int, int]:
    """Return the size of a block and of its halo: the whole line, or where the fewest elements are computed twice."""
    whole = power_of_two(D, 1, 1 << 62)
    some = [n for n in (32, 64, 128, 256, 512, 1024) if 4 * halo <= n < whole]
    best = min(some, key=lambda n: n * ceil(D, n - 2 * halo), default=whole)
    return (best, halo) if best < whole and best * ceil(D, best - 2 * halo) < whole else (whole, 0)
