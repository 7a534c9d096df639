"""What deformable layers do: effective dilation against object size, and statistics of the offsets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pliant.data import drawing, object_size
from pliant.nn import DeformConv2d
from pliant.studies.geometry.contestants import Net

BINS = 6
RESAMPLES = 1000


def tap_positions(layer: DeformConv2d, offset: Tensor) -> Tensor:
    """Return where the taps lie beside the kernel's corner: (N, G, Kh, Kw, 2, Ho, Wo), (dy, dx) in map pixels."""
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
    at = tap_positions(layer, offset)
    down, across = at.diff(dim=2).norm(dim=4), at.diff(dim=3).norm(dim=4)
    return torch.cat((down.flatten(1, 3), across.flatten(1, 3)), 1).mean(1)


def outside(layer: DeformConv2d, offset: Tensor, height: int, width: int) -> Tensor:
    """Return which samples read nothing of the (height, width) map: (N, G, Kh, Kw, Ho, Wo), bool."""
    at = tap_positions(layer, offset)
    Ho, Wo = offset.shape[2:]
    y = at[..., 0, :, :] + (torch.arange(Ho) * layer.stride[0] - layer.padding[0]).to(offset)[:, None]
    x = at[..., 1, :, :] + (torch.arange(Wo) * layer.stride[1] - layer.padding[1]).to(offset)
    return ~((y > -1) & (y < height) & (x > -1) & (x < width))


@torch.no_grad()
def watch(net: Net, pictures: Tensor) -> Iterator[tuple[str, DeformConv2d, Tensor, Tensor]]:
    """Return (name, layer, its input, its offsets) of every deformable layer while `pictures` pass."""
    net.eval()
    map_ = pictures
    for name, layer in net.features.named_children():
        if isinstance(layer, DeformConv2d):
            yield name, layer, map_, layer.predict(map_)[0]
        map_ = layer(map_)


def offsets(net: Net, batches: Iterable[Tensor]) -> dict[str, dict[str, float]]:
    """Return per deformable layer mean |offset| in map pixels and the share of samples that read nothing."""
    sums: dict[str, list[float]] = {}
    for pictures in batches:
        for name, layer, map_, offset in watch(net, pictures):
            missed = outside(layer, offset, *map_.shape[2:])
            total = sums.setdefault(name, [0.0, 0.0, 0.0, 0.0])
            total[0] += float(offset.abs().sum(dtype=torch.float64))
            total[1] += offset.numel()
            total[2] += float(missed.sum())
            total[3] += missed.numel()
    return {name: {"mean_abs": t[0] / t[1], "outside": t[2] / t[3]} for name, t in sums.items()}


def dilation_of_objects(net: Net, canvas: Tensor) -> dict[str, Tensor]:
    """Return per deformable layer the effective dilation on the object of every picture, (N,); NaN without any.

    A position of the map lies on the object where at least half of its canvas pixels are ink.
    """
    ink = (canvas > drawing.INK).float()
    found = {}
    for name, layer, _, offset in watch(net, canvas):
        cell = canvas.shape[2] // offset.shape[2]
        on = F.avg_pool2d(ink, cell)[:, 0] >= 0.5
        distance = effective_dilation(layer, offset)
        found[name] = (distance * on).sum((1, 2)) / on.sum((1, 2))
    return found


def adaptation(
    net: Net, tests: Iterable[Iterable[Tensor]], seed: int = 0
) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    """Return how the effective dilation on objects goes with their size: means per size bin, and Spearman's ρ.

    Args:
        net: with deformable layers.
        tests: several drawings of the same pictures in the same order, each as batches of canvases.
        seed: of the bootstrap.

    Returns:
        Rows of layer, scale (mean √area of the bin's objects in canvas pixels), dilation (mean, in pixels of the
        layer's input map), sd and n; and per layer ρ with the 95 % interval of a bootstrap over pictures: all
        drawings of a picture are drawn together, since they are not independent.
    """
    import numpy as np

    sizes: list[Tensor] = []
    dilations: dict[str, list[Tensor]] = {}
    for batches in tests:
        size: list[Tensor] = []
        found: dict[str, list[Tensor]] = {}
        for canvas in batches:
            size.append(object_size(canvas))
            for name, values in dilation_of_objects(net, canvas).items():
                found.setdefault(name, []).append(values)
        sizes.append(torch.cat(size))
        for name, parts in found.items():
            dilations.setdefault(name, []).append(torch.cat(parts))
    every = torch.stack(sizes).double().numpy()  # (tests, pictures)
    rows: list[dict[str, Any]] = []
    spearman = {}
    for name, parts in dilations.items():
        dilation = torch.stack(parts).double().numpy()
        known = np.isfinite(dilation)
        edges = np.quantile(every[known], np.linspace(0, 1, BINS + 1))
        place = np.clip(np.searchsorted(edges, every, side="right") - 1, 0, BINS - 1)
        for b in range(BINS):
            chosen = known & (place == b)
            if chosen.any():
                inside = dilation[chosen]
                rows.append(
                    {
                        "layer": name,
                        "scale": float(every[chosen].mean()),
                        "dilation": float(inside.mean()),
                        "sd": float(inside.std()),
                        "n": int(chosen.sum()),
                    }
                )
        spearman[name] = correlation(every, dilation, seed)
    return rows, spearman


def correlation(size: Any, dilation: Any, seed: int = 0) -> dict[str, float]:
    """Return Spearman's ρ of two arrays (tests, pictures) and its 95 % bootstrap interval over pictures.

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
