"""What deformable layers do with their taps: positions, effective dilation, samples that are out of bounds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pliant.nn import DeformConv2d
from pliant.show.fields import spacing

RESAMPLES = 1000


def tap_positions(layer: DeformConv2d, offset: Tensor) -> Tensor:
    """Return where the taps lie relative to the kernel's corner: (N, G, Kh, Kw, 2, Ho, Wo), (dy, dx) in map pixels."""
    N, _, Ho, Wo = offset.shape
    Kh, Kw = layer.kernel_size
    rows = torch.arange(Kh, dtype=offset.dtype) * layer.dilation[0]
    columns = torch.arange(Kw, dtype=offset.dtype) * layer.dilation[1]
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).to(offset.device)
    return offset.view(N, layer.offset_groups, Kh, Kw, 2, Ho, Wo) + grid[..., None, None]


def effective_dilation(layer: DeformConv2d, offset: Tensor) -> Tensor:
    """Return the mean distance of horizontally or vertically adjacent taps (N, Ho, Wo), in pixels of the input map.

    Equal to the dilation where all offsets are zero. Needs a kernel of more than one tap.

    Source: Dai et al., ICCV 2017, section 4.2 (effective dilation).
    """
    return spacing(tap_positions(layer, offset))


def sample_positions(layer: DeformConv2d, offset: Tensor) -> Tensor:
    """Return where a layer samples its input map: (N, G, Kh, Kw, 2, Ho, Wo), (y, x) in map pixels."""
    Ho, Wo = offset.shape[2:]
    rows = torch.arange(Ho) * layer.stride[0] - layer.padding[0]
    columns = torch.arange(Wo) * layer.stride[1] - layer.padding[1]
    return tap_positions(layer, offset) + torch.stack(torch.meshgrid(rows, columns, indexing="ij")).to(offset)


def outside(layer: DeformConv2d, offset: Tensor, height: int, width: int) -> Tensor:
    """Return which samples are out of bounds of the (height, width) map: (N, G, Kh, Kw, Ho, Wo), bool."""
    y, x = sample_positions(layer, offset).unbind(-3)
    return ~((y > -1) & (y < height) & (x > -1) & (x < width))


class OffsetSums:
    """Mean |offset| in pixels of the map, and the share of samples that read nothing of it, per layer."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, name: str, layer: DeformConv2d, offset: Tensor, height: int, width: int) -> None:
        """Add the offsets that a layer predicts for a (height, width) map."""
        missed = outside(layer, offset, height, width)
        found = float(offset.abs().sum(dtype=torch.float64)), offset.numel(), float(missed.sum()), missed.numel()
        self._sums[name] = [a + b for a, b in zip(self._sums.get(name, [0.0] * 4), found, strict=True)]

    def means(self) -> dict[str, dict[str, float]]:
        """Return ``mean_abs`` and ``outside`` per layer."""
        return {name: {"mean_abs": s[0] / s[1], "outside": s[2] / s[3]} for name, s in self._sums.items()}


def correlation(size: Any, dilation: Any, seed: int = 0) -> dict[str, float]:
    """Return Spearman's ρ of two arrays (tests, images) and its 95 % bootstrap interval over images.

    NaN pairs are left out. Constant values have no rank order: ρ and the interval are 0.
    """
    import numpy as np
    from scipy.stats import rankdata

    def rho(s: Any, d: Any) -> float:
        known = np.isfinite(s) & np.isfinite(d)
        s, d = rankdata(s[known]), rankdata(d[known])
        s, d = s - s.mean(), d - d.mean()
        norm = np.sqrt((s @ s) * (d @ d))
        return float(s @ d / norm) if norm > 0 else 0.0

    random = np.random.default_rng(seed)
    count = size.shape[1]
    drawn = [rho(size[:, i], dilation[:, i]) for i in random.integers(0, count, (RESAMPLES, count))]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"rho": rho(size, dilation), "low": float(low), "high": float(high)}
