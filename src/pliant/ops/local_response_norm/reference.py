"""Local response normalization in plain PyTorch: the formula."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def local_response_norm(input: Tensor, dim: int, before: int, after: int, a: float, beta: float, k: float) -> Tensor:
    """Compute ``y_i = x_i·(k + a·Σ_{j=i−before}^{i+after} x_j²)^−β`` along `dim`, the window cut off at the ends."""
    work = torch.float64 if input.dtype == torch.float64 else torch.float32
    x = input.to(work).movedim(dim, -1)
    squares = F.pad(x * x, (before, after))
    total = squares.unfold(-1, before + after + 1, 1).sum(-1)
    return (x * (k + a * total).pow(-beta)).movedim(-1, dim).to(input.dtype)


def within_channel(input: Tensor, size: int, a: float, beta: float, k: float) -> Tensor:
    """Compute the same over a `size` × `size` window of the last two dimensions, zeros counted outside."""
    work = torch.float64 if input.dtype == torch.float64 else torch.float32
    x = input.to(work)
    half = size // 2
    squares = F.pad(x * x, (half, half, half, half))
    total = squares.unfold(-1, size, 1).sum(-1).unfold(-2, size, 1).sum(-1)
    return (x * (k + a * total).pow(-beta)).to(input.dtype)
