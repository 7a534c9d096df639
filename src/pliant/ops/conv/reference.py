"""Deformable convolution in plain PyTorch: the formula, differentiable any number of times."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from pliant.ops.sampling.reference import bilinear


def _without_autocast(kind: str) -> AbstractContextManager[object]:
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mask: Tensor | None,
    clamp: bool,
) -> Tensor:
    """Convolve with every tap moved by its own offset.

    ``y[n,o,p] = bias[o] + Σ_k Σ_c weight[o,c,k] · mask[n,G(c),k,p] · x[n,c, p·stride − padding + k·dilation + offset]``

    Arguments are already checked. Low precision computes in float32 and rounds once, at the end.
    """
    N, C, H, W = input.shape
    O, Cg, Kh, Kw = weight.shape
    Ho, Wo = offset.shape[-2:]
    K = Kh * Kw
    G, g = offset.shape[1] // (2 * K), C // Cg
    work = torch.float64 if input.dtype == torch.float64 else torch.float32

    def line(count: int, distance: int, start: int = 0) -> Tensor:
        return torch.arange(count, device=input.device, dtype=work) * distance + start

    # Positions of tap k = i·Kw + j of output (ho, wo) without its offset: (Kh, Kw, Ho, Wo), taps row-major.
    grid_y = line(Ho, stride[0], -padding[0]).view(1, 1, Ho, 1) + line(Kh, dilation[0]).view(Kh, 1, 1, 1)
    grid_x = line(Wo, stride[1], -padding[1]).view(1, 1, 1, Wo) + line(Kw, dilation[1]).view(1, Kw, 1, 1)
    dy, dx = offset.to(work).reshape(N, G, K, 2, Ho, Wo).unbind(3)
    y = grid_y.expand(Kh, Kw, Ho, Wo).reshape(K, Ho, Wo) + dy
    x = grid_x.expand(Kh, Kw, Ho, Wo).reshape(K, Ho, Wo) + dx

    maps = input.to(work).reshape(N * G, C // G, H, W)
    sampled = bilinear(maps, y.reshape(N * G, K * Ho * Wo), x.reshape(N * G, K * Ho * Wo), clamp)
    sampled = sampled.reshape(N, G, C // G, K, Ho, Wo)
    if mask is not None:
        sampled = sampled * mask.to(work).reshape(N, G, 1, K, Ho, Wo)

    columns = sampled.reshape(N, g, Cg * K, Ho * Wo)
    taps = weight.to(work).reshape(g, O // g, Cg * K)
    # Autocast would run this product in low precision, and the kernels would be compared with rounded values.
    with _without_autocast(input.device.type):
        output = (taps @ columns).reshape(N, O, Ho, Wo)
    if bias is not None:
        output = output + bias.to(work).reshape(1, O, 1, 1)
    return output.to(input.dtype)
