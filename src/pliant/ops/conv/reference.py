"""Deformable convolution in plain PyTorch: the formulas, differentiable any number of times."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod

import torch
from torch import Tensor

from pliant.ops.sampling.reference import linear, scatter


def _without_autocast(kind: str) -> AbstractContextManager[object]:
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


def deform_conv(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    mask: Tensor | None,
    clamp: bool,
) -> Tensor:
    """Convolve with every tap moved by its own offset, over any number of axes.

    ``y[n,o,p] = bias[o] + Σ_k Σ_c weight[o,c,k] · mask[n,G(c),k,p] · x[n,c, p·stride − padding + k·dilation + offset]``

    Arguments are already checked. Low precision computes in float32 and rounds once, at the end.
    """
    N, C, *size = input.shape
    O, Cg, *kernel = weight.shape
    positions = offset.shape[2:]
    K, P, g = prod(kernel), prod(positions), C // Cg
    G = offset.shape[1] // (len(size) * K)
    work = torch.float64 if input.dtype == torch.float64 else torch.float32

    maps = input.to(work).reshape(N * G, C // G, *size)
    sampled = linear(maps, _places(offset.to(work), G, kernel, stride, padding, dilation), clamp)
    sampled = sampled.reshape(N, G, C // G, K, P)
    if mask is not None:
        sampled = sampled * mask.to(work).reshape(N, G, 1, K, P)

    columns = sampled.reshape(N, g, Cg * K, P)
    taps = weight.to(work).reshape(g, O // g, Cg * K)
    # Autocast would run this product in low precision, and the kernels would be compared with rounded values.
    with _without_autocast(input.device.type):
        output = (taps @ columns).reshape(N, O, *positions)
    return _biased(output, bias).to(input.dtype)


def deform_conv_transpose2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    mask: Tensor | None,
    groups: int,
    clamp: bool,
) -> Tensor:
    """Add every input pixel, times the weight, around the places where its taps lie.

    ``y[n,o,q] = bias[o] + Σ_p Σ_k Σ_c x[n,c,p] · weight[c,o,k] · mask[n,G(o),k,p] · b(q, s)``, where tap k of p lies at
    ``s = p·stride − padding + k·dilation + offset[n,G(o),k,p]``, and the bilinear weight is
    ``b(q, s) = Π_d max(0, 1−|q_d−s_d|)``: the adjoint of :func:`deform_conv` in its input.
    """
    N, C, *positions = input.shape
    _, Og, *kernel = weight.shape
    K, P = prod(kernel), prod(positions)
    O, G = Og * groups, offset.shape[1] // (2 * K)
    work = torch.float64 if input.dtype == torch.float64 else torch.float32
    size = [
        (n - 1) * s - 2 * p + d * (k - 1) + 1 + more
        for n, s, p, d, k, more in zip(positions, stride, padding, dilation, kernel, output_padding, strict=True)
    ]

    taps = weight.to(work).reshape(groups, C // groups, Og * K)
    with _without_autocast(input.device.type):
        columns = taps.transpose(1, 2) @ input.to(work).reshape(N, groups, C // groups, P)
    columns = columns.reshape(N, G, O // G, K, P)
    if mask is not None:
        columns = columns * mask.to(work).reshape(N, G, 1, K, P)
    places = _places(offset.to(work), G, kernel, stride, padding, dilation)
    output = scatter(columns.reshape(N * G, O // G, K * P), places, size, clamp).reshape(N, O, *size)
    return _biased(output, bias).to(input.dtype)


def _places(
    offset: Tensor,
    G: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[Tensor]:
    """Return where the taps lie, (N·G, K·P) per axis: ``p·stride − padding + k·dilation + offset``, taps row-major."""
    N, D, K, positions = offset.shape[0], len(kernel), prod(kernel), offset.shape[2:]
    moves = offset.reshape(N, G, *kernel, D, *positions).movedim(2 + D, 0)
    found = []
    for d, move in enumerate(moves):
        steps = torch.arange(positions[d], device=offset.device, dtype=offset.dtype) * stride[d] - padding[d]
        taps = torch.arange(kernel[d], device=offset.device, dtype=offset.dtype) * dilation[d]
        # Taps along kernel axis d, positions along axis d of the grid, everything else the same.
        grid = taps.reshape(-1, *[1] * (2 * D - 1 - d)) + steps.reshape(-1, *[1] * (D - 1 - d))
        found.append((grid + move).reshape(N * G, K * prod(positions)))
    return found


def _biased(output: Tensor, bias: Tensor | None) -> Tensor:
    return output if bias is None else output + bias.to(output.dtype).reshape(1, -1, *[1] * (output.dim() - 2))
