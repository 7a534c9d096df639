"""Local response normalization in plain PyTorch: the formula, differentiable any number of times."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def local_response_norm(
    input: Tensor, dim: int, before: int, after: int, spatial: bool, a: float, beta: float, k: float
) -> Tensor:
    """Normalize along `dim`, or in windows of (2·before + 1)² elements of the last two dimensions."""
    if input.numel() == 0:
        return input.clone()
    if spatial:
        return within_channel(input, before, a, beta, k)
    return along(input, dim, before, after, a, beta, k)


def along(input: Tensor, dim: int, before: int, after: int, a: float, beta: float, k: float) -> Tensor:
    """Compute ``y_i = x_i·(k + a·Σ_{j=i−before}^{i+after} x_j²)^−β`` along `dim`, the window cut off at the ends.

    Arguments are already checked. Low precision computes in float32 and rounds once, at the end.
    """
    # No window extends beyond the other end; without this line a huge window would pad to a huge tensor.
    before, after = min(before, input.shape[dim] - 1), min(after, input.shape[dim] - 1)
    x = _work(input).movedim(dim, -1)
    squares = F.pad(x * x, (before, after))
    total = squares.unfold(-1, before + after + 1, 1).sum(-1)
    return (x / (k + a * total).pow(beta)).movedim(-1, dim).to(input.dtype)


def within_channel(input: Tensor, half: int, a: float, beta: float, k: float) -> Tensor:
    """Compute the same over the (2·half + 1)² window of the last two dimensions, zeros outside the map."""
    H, W = input.shape[-2:]
    tall, wide = min(half, H - 1), min(half, W - 1)
    x = _work(input)
    squares = F.pad(x * x, (wide, wide, tall, tall))
    total = squares.unfold(-1, 2 * wide + 1, 1).sum(-1).unfold(-2, 2 * tall + 1, 1).sum(-1)
    return (x / (k + a * total).pow(beta)).to(input.dtype)


def _work(input: Tensor) -> Tensor:
    return input if input.dtype == torch.float64 else input.float()
