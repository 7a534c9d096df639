"""Weighted sums of samples on GPUs: multi-scale deformable attention, DCNv3 and DCNv4 as one problem, and its kernels.

Queries (N, Q) have K samples for each of M heads, in images of S pixels of M·D channels. A sample's pixel is
``start + scale·(x, y)`` in its level; coordinates and factors of the samples are read from two tensors, or from two
places of one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pliant.ops.gpu.launch import Launch, ceil, power
from pliant.ops.sampling.triton import Sums, add, inside, locate, positions, weights

# Sizes that kernels are not specialized for: images come in many sizes, and knowing them makes no load faster.
_SIZES = ["M", "Q", "S", "width", "tiles"]


@triton.jit
def place(places, factors, lines, levels, q, k, K, exists, width, step_x, step_y, places_q, factors_q,
          GRID: tl.constexpr, DISCRETE: tl.constexpr):  # fmt: skip
    """Return where sample `k` of queries `q` lies, and its factor.

    That is the index of its upper left corner, the width of its level, its position past that corner, whether it
    counts, and which of its corners are read. `places` and `factors` begin with the head.
    """
    at = places + (q * places_q + 2 * k)
    x = tl.load(at, mask=exists, other=0.0).to(tl.float32)
    y = tl.load(at + 1, mask=exists, other=0.0).to(tl.float32)
    factor = tl.load(factors + (q * factors_q + k), mask=exists, other=0.0).to(tl.float32)
    start_x = tl.load(lines + k)
    start_y = tl.load(lines + K + k)
    if GRID:
        start_x += (q % width * step_x).to(tl.float32)
        start_y += (q // width * step_y).to(tl.float32)
    x = start_x + tl.load(lines + 2 * K + k) * x
    y = start_y + tl.load(lines + 3 * K + k) * y
    H = tl.load(levels + k)
    W = tl.load(levels + K + k)
    if DISCRETE:
        # False for NaN and infinity.
        counts = exists & (x - x == 0.0) & (y - y == 0.0)
        left = tl.minimum(tl.maximum(tl.where(counts, x, 0.0), 0.0), (W - 1).to(tl.float32)).to(tl.int32)
        top = tl.minimum(tl.maximum(tl.where(counts, y, 0.0), 0.0), (H - 1).to(tl.float32)).to(tl.int32)
        fy = tl.zeros(x.shape, tl.float32)
        fx = tl.zeros(x.shape, tl.float32)
        in0 = counts
        in1 = counts & False
        in2 = in1
        in3 = in1
    else:
        top, left, fy, fx, counts = locate(y, x, exists, H, W, False)
        in0, in1, in2, in3 = inside(top, left, counts, H, W, False)
    corner = tl.load(levels + 2 * K + k) + top * W + left
    return corner, W, fy, fx, counts, in0, in1, in2, in3, factor


@triton.jit(do_not_specialize=_SIZES)
def forward(
    map, places, factors, lines, levels, output,
    M, Q, S, D, K, width, step_x, step_y,
    places_n, places_q, places_m, factors_n, factors_q, factors_m, factors_first,
    tiles, chunks,
    GRID: tl.constexpr, DISCRETE: tl.constexpr, INDEX: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_D channels of one head for BLOCK_Q queries."""
    d = tl.program_id(0) % chunks * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    head, q = positions(tl.program_id(0) // chunks, tiles, BLOCK_Q)
    n = head // M
    m = head % M
    exists = q < Q
    q = tl.minimum(q, Q - 1).to(INDEX)
    places += n * places_n + m * places_m
    factors += n * factors_n + m * factors_m + factors_first
    map += n * S * M * D + m * D
    some = d < D
    sums = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for k in range(K):
        corner, W, fy, fx, _counts, in0, in1, in2, in3, factor = place(
            places, factors, lines, levels, q, k, K, exists, width, step_x, step_y, places_q, factors_q, GRID, DISCRETE
        )
        w0, w1, w2, w3 = weights(fy, fx, factor)
        at = map + (corner.to(INDEX) * M * D)[:, None]
        right = M * D
        x = tl.load(at + d, mask=in0[:, None] & some, other=0.0).to(tl.float32)
        sums += w0[:, None] * x
        x = tl.load(at + right + d, mask=in1[:, None] & some, other=0.0).to(tl.float32)
        sums += w1[:, None] * x
        at += W.to(INDEX) * M * D
        x = tl.load(at + d, mask=in2[:, None] & some, other=0.0).to(tl.float32)
        sums += w2[:, None] * x
        x = tl.load(at + right + d, mask=in3[:, None] & some, other=0.0).to(tl.float32)
        sums += w3[:, None] * x
    to = output + n * Q * M * D + m * D + ((q * M * D)[:, None] + d)
    tl.store(to, sums.to(output.dtype.element_ty), mask=exists[:, None] & some)


@triton.jit(do_not_specialize=_SIZES)
def backward(
    grad, map, places, factors, lines, levels, grad_map, grad_places, grad_factors, unit,
    M, Q, S, D, K, width, step_x, step_y,
    places_n, places_q, places_m, factors_n, factors_q, factors_m, factors_first,
    tiles,
    GRID: tl.constexpr, DISCRETE: tl.constexpr, INDEX: tl.constexpr,
    WANT_MAP: tl.constexpr, FIXED: tl.constexpr, WANT_PLACES: tl.constexpr, WANT_FACTORS: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of one head's samples for BLOCK_Q queries, and add those of the pixels they read.

    One program sees all channels of a sample, so it sums the gradients of place and factor alone. Those of pixels are
    added atomically, as float32, or with FIXED as integers in units of 1/unit (see `Sums`).
    """
    head, q = positions(tl.program_id(0), tiles, BLOCK_Q)
    n = head // M
    m = head % M
    exists = q < Q
    q = tl.minimum(q, Q - 1).to(INDEX)
    own = n * places_n + m * places_m
    places += own
    grad_places += own
    own = n * factors_n + m * factors_m + factors_first
    factors += own
    grad_factors += own
    own = n * S * M * D + m * D
    map += own
    grad_map += own
    grad += n * Q * M * D + m * D
    right = M * D
    for k in range(K):
        corner, W, fy, fx, counts, in0, in1, in2, in3, factor = place(
            places, factors, lines, levels, q, k, K, exists, width, step_x, step_y, places_q, factors_q, GRID, DISCRETE
        )
        w0, w1, w2, w3 = weights(fy, fx, factor)
        pixel = (corner.to(INDEX) * M * D)[:, None]
        below = pixel + W.to(INDEX) * M * D
        dot0 = tl.zeros((BLOCK_Q,), tl.float32)
        dot1 = tl.zeros((BLOCK_Q,), tl.float32)
        dot2 = tl.zeros((BLOCK_Q,), tl.float32)
        dot3 = tl.zeros((BLOCK_Q,), tl.float32)
        for c in range(0, D, BLOCK_D):
            d = c + tl.arange(0, BLOCK_D)[None, :]
            some = d < D
            g = tl.load(grad + ((q * M * D)[:, None] + d), mask=exists[:, None] & some, other=0.0).to(tl.float32)
            if WANT_PLACES or WANT_FACTORS:
                x = tl.load(map + pixel + d, mask=in0[:, None] & some, other=0.0).to(tl.float32)
                dot0 += tl.sum(g * x, 1)
                x = tl.load(map + pixel + right + d, mask=in1[:, None] & some, other=0.0).to(tl.float32)
                dot1 += tl.sum(g * x, 1)
                x = tl.load(map + below + d, mask=in2[:, None] & some, other=0.0).to(tl.float32)
                dot2 += tl.sum(g * x, 1)
                x = tl.load(map + below + right + d, mask=in3[:, None] & some, other=0.0).to(tl.float32)
                dot3 += tl.sum(g * x, 1)
            if WANT_MAP:
                if FIXED:
                    g *= tl.load(unit)
                add(grad_map + pixel + d, g * w0[:, None], in0[:, None] & some)
                add(grad_map + pixel + right + d, g * w1[:, None], in1[:, None] & some)
                add(grad_map + below + d, g * w2[:, None], in2[:, None] & some)
                add(grad_map + below + right + d, g * w3[:, None], in3[:, None] & some)
        if WANT_FACTORS:
            w0, w1, w2, w3 = weights(fy, fx, 1.0)
            found = tl.where(counts, w0 * dot0 + w1 * dot1 + w2 * dot2 + w3 * dot3, 0.0)
            tl.store(grad_factors + (q * factors_q + k), found.to(grad_factors.dtype.element_ty), mask=exists)
        if WANT_PLACES:
            dx = factor * ((1.0 - fy) * (dot1 - dot0) + fy * (dot3 - dot2))
            dy = factor * ((1.0 - fx) * (dot2 - dot0) + fx * (dot3 - dot1))
            # A discrete sample does not move with its coordinates.
            counts = counts & (not DISCRETE)
            dx = tl.where(counts, tl.load(lines + 2 * K + k) * dx, 0.0)
            dy = tl.where(counts, tl.load(lines + 3 * K + k) * dy, 0.0)
            to = grad_places + (q * places_q + 2 * k)
            tl.store(to, dx.to(grad_places.dtype.element_ty), mask=exists)
            tl.store(to + 1, dy.to(grad_places.dtype.element_ty), mask=exists)


class Source(NamedTuple):
    """A contiguous tensor, and where it holds numbers: from ``n·image + q·query + m·head + first`` on."""

    tensor: Tensor
    image: int
    query: int
    head: int
    first: int = 0


class Samples(NamedTuple):
    """What does not depend on the query: start and scale of each of K samples, H, W and first pixel of its level."""

    start_x: tuple[float, ...]
    start_y: tuple[float, ...]
    scale_x: tuple[float, ...]
    scale_y: tuple[float, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    first: tuple[int, ...]


@functools.lru_cache(maxsize=256)
def _on_device(samples: Samples, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return (4, K) numbers and (3, K) sizes; kept, so that a repeated call copies nothing to the device."""
    lines = torch.tensor(samples[:4], dtype=torch.float32, device=device)
    return lines, torch.tensor(samples[4:], dtype=torch.int32, device=device)


class Problem:
    """One call: its tensors as the kernels read them, its sizes, and everything a kernel may ask for by name."""

    def __init__(
        self,
        map: Tensor,
        size: tuple[int, int, int, int],
        queries: int,
        samples: Samples,
        places: Source,
        factors: Source,
        *,
        discrete: bool = False,
        grid: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        """Take the arguments of a call; `size` is N, S, M, D, `grid` the queries in a row and the step to the next."""
        self.size, self.map, self.places, self.factors = size, map, places, factors
        N, S, M, D = size
        K = len(samples.first)
        self.lines, self.levels = _on_device(samples, map.device)
        self.D = power(D, 1, 64)
        # As many lanes as let each thread load 16 bytes at once without spilling registers.
        self.Q = power(queries, 1, 1024 // self.D)
        tiles = ceil(queries, self.Q)
        self.heads, self.tiles = N * M, tiles
        width, step_x, step_y = grid
        largest = max(S * M * D, queries * places.query, queries * M * D)
        self.arguments: dict[str, Any] = {
            "map": map, "places": places.tensor, "factors": factors.tensor, "lines": self.lines, "levels": self.levels,
            "M": M, "Q": queries, "S": S, "D": D, "K": K, "width": width, "step_x": step_x, "step_y": step_y,
            "places_n": places.image, "places_q": places.query, "places_m": places.head,
            "factors_n": factors.image, "factors_q": factors.query, "factors_m": factors.head,
            "factors_first": factors.first, "tiles": tiles, "GRID": width > 0, "DISCRETE": discrete,
            # Images are indexed in 64 bits, what lies in one image only where 32 bits do not suffice.
            "INDEX": tl.int64 if largest >= 2**31 else tl.int32,
            "BLOCK_Q": self.Q, "BLOCK_D": self.D,
        }  # fmt: skip

    def most(self, grad: Tensor) -> Tensor:
        """Return an upper limit of the map's gradient: a pixel gets at most the gradient of every sample."""
        Q, K, factors = self.arguments["Q"], self.arguments["K"], self.factors
        given = factors.tensor
        if factors.first:
            # Offsets beside the factors may be infinite.
            M = self.size[2]
            given = given[..., : M * factors.head].unflatten(-1, (M, factors.head))[..., factors.first :]
        limit: Tensor = Q * K * grad.abs().amax().double() * given.abs().amax().double()
        return limit


def forward_launch(problem: Problem, output: Tensor) -> Launch:
    """Return what computes `output`."""
    chunks = ceil(problem.size[3], problem.D)
    grid = (problem.heads * problem.tiles * chunks, 1, 1)
    return Launch.of(forward, grid, registers=128, fused=False, **problem.arguments, output=output, chunks=chunks)


def backward_launch(
    problem: Problem,
    grad: Tensor,
    sums: Tensor | None,
    unit: Tensor | None,
    places: Tensor | None,
    factors: Tensor | None,
) -> Launch:
    """Return what computes the gradients of the map (added to what is there), of places and of factors."""
    more: dict[str, Any] = {
        "grad": grad, "grad_map": grad if sums is None else sums, "WANT_MAP": sums is not None,
        "unit": grad if unit is None else unit, "FIXED": unit is not None,
        "grad_places": grad if places is None else places, "WANT_PLACES": places is not None,
        "grad_factors": grad if factors is None else factors, "WANT_FACTORS": factors is not None,
    }  # fmt: skip
    # Sums in 64 bits need more registers.
    registers = 128 if unit is None else 168
    grid = (problem.heads * problem.tiles, 1, 1)
    return Launch.of(backward, grid, registers=registers, fused=False, **problem.arguments, **more)


def _forward(problem: Problem, size: Sequence[int]) -> Tensor:
    output = problem.map.new_empty(size)
    forward_launch(problem, output).run(output.device)
    return output


def _backward(problem: Problem, grad: Tensor, wanted: bool, places: Tensor | None, factors: Tensor | None) -> Tensor:
    """Write the gradients of places and factors, and return that of the map, empty where it is not wanted."""
    N, S, M, D = problem.size
    grad = grad.contiguous()
    found = Sums.zeros(grad, (N, M * D, S, 1), True, lambda: problem.most(grad)) if wanted else None
    sums, unit = found or (None, None)
    if sums is not None or places is not None or factors is not None:
        backward_launch(problem, grad, sums, unit, places, factors).run(grad.device)
    if found is None:
        return problem.map.new_empty(0)
    d_map: Tensor = found.total().permute(0, 2, 3, 1).reshape(problem.map.shape).to(problem.map.dtype)
    return d_map


# Multi-scale deformable attention.


def attention(
    value: Tensor,
    spatial_shapes: Sequence[int],
    level_start_index: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    points: Sequence[int],
    discrete: bool,
) -> Problem:
    """Return the problem of a call of `ms_deform_attn`."""
    N, S, M, D = value.shape
    Q = sampling_locations.shape[1]
    each = list(points) or [sampling_locations.shape[4]] * len(level_start_index)
    of_level = [level for level, P in enumerate(each) for _ in range(P)]
    K = len(of_level)
    rows, columns = (tuple(int(spatial_shapes[2 * level + i]) for level in of_level) for i in (0, 1))
    first = tuple(int(level_start_index[level]) for level in of_level)
    half = (0.5 if discrete else -0.5,) * K
    samples = Samples(half, half, tuple(map(float, columns)), tuple(map(float, rows)), rows, columns, first)
    places = Source(sampling_locations.contiguous(), Q * M * K * 2, M * K * 2, K * 2)
    factors = Source(attention_weights.contiguous(), Q * M * K, M * K, K)
    return Problem(value.contiguous(), (N, S, M, D), Q, samples, places, factors, discrete=discrete)


def ms_deform_attn(value: Tensor, *arguments: Any) -> Tensor:
    """Return the output of `ms_deform_attn`; arguments are checked."""
    N, _, M, D = value.shape
    problem = attention(value, *arguments)
    return _forward(problem, (N, problem.arguments["Q"], M * D))


def ms_deform_attn_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, locations and weights, empty where they are not wanted."""
    *given, wanted = arguments
    problem = attention(*given)
    return _three(problem, grad, wanted)


def _three(problem: Problem, grad: Tensor, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
    places, factors = problem.places.tensor, problem.factors.tensor
    d_places = torch.empty_like(places) if wanted & 2 else None
    d_factors = torch.empty_like(factors) if wanted & 4 else None
    d_map = _backward(problem, grad, bool(wanted & 1), d_places, d_factors)
    none = grad.new_empty(0)
    return d_map, none if d_places is None else d_places, none if d_factors is None else d_factors


# DCNv3 and DCNv4.


def convolution(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
) -> Problem:
    """Return the problem of a call of `dcnv3`, or of `dcnv4` where `offset` holds the masks too and `mask` is None."""
    N, H, W, C = input.shape
    _, Ho, Wo, channels = offset.shape
    (Kh, Kw), (sh, sw) = kernel_size, stride
    center_y, center_x = (d * (k - 1) // 2 for d, k in zip(dilation, kernel_size, strict=True))
    taps = [(i, j) for i in range(Kw) for j in range(Kh)]
    if remove_center:
        taps.remove((Kw // 2, Kh // 2))
    K = len(taps)
    samples = Samples(
        tuple(float(center_x - int(padding[1]) + offset_scale * (i * dilation[1] - center_x)) for i, _ in taps),
        tuple(float(center_y - int(padding[0]) + offset_scale * (j * dilation[0] - center_y)) for _, j in taps),
        *((offset_scale,) * K, (offset_scale,) * K, (H,) * K, (W,) * K, (0,) * K),
    )
    Q = Ho * Wo
    offset = offset.contiguous()
    if mask is None:
        places = Source(offset, Q * channels, channels, 3 * K)
        factors = places._replace(first=2 * K)
    else:
        places = Source(offset, Q * channels, channels, 2 * K)
        factors = Source(mask.contiguous(), Q * groups * K, groups * K, K)
    size = (N, H * W, groups, C // groups)
    return Problem(input.contiguous(), size, Q, samples, places, factors, grid=(Wo, sw, sh))


def dcnv3(input: Tensor, offset: Tensor, *arguments: Any) -> Tensor:
    """Return the output of `dcnv3`; arguments are checked."""
    return _forward(convolution(input, offset, *arguments), (*offset.shape[:3], input.shape[3]))


def dcnv3_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of input, offset and mask, empty where they are not wanted."""
    *given, wanted = arguments
    return _three(convolution(*given), grad, wanted)


def dcnv4(input: Tensor, offset_mask: Tensor, *arguments: Any) -> Tensor:
    """Return the output of `dcnv4`; arguments are checked."""
    return _forward(convolution(input, offset_mask, None, *arguments), (*offset_mask.shape[:3], input.shape[3]))


def dcnv4_backward(grad: Tensor, input: Tensor, offset_mask: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Return the gradients of input and offset_mask, empty where they are not wanted."""
    *given, wanted = arguments
    problem = convolution(input, offset_mask, None, *given)
    # Channels past the last group are not read.
    packed = torch.zeros_like(problem.places.tensor) if wanted & 2 else None
    d_map = _backward(problem, grad, bool(wanted & 1), packed, packed)
    return d_map, grad.new_empty(0) if packed is None else packed
