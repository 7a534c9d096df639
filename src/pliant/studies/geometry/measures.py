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
from pliant.studies.measures import OffsetSums, correlation, effective_dilation

BINS = 6


@torch.no_grad()
def watch(net: Net, images: Tensor) -> Iterator[tuple[str, DeformConv2d, Tensor, Tensor]]:
    """Return (name, layer, its input, its offsets) of every deformable layer while `images` pass."""
    net.eval()
    map_ = images
    for name, layer in net.features.named_children():
        if isinstance(layer, DeformConv2d):
            yield name, layer, map_, layer.predict(map_)[0]
        map_ = layer(map_)


def offsets(net: Net, batches: Iterable[Tensor]) -> dict[str, dict[str, float]]:
    """Return per deformable layer mean |offset| in map pixels and the share of samples that read nothing."""
    sums = OffsetSums()
    for images in batches:
        for name, layer, map_, offset in watch(net, images):
            sums.add(name, layer, offset, *map_.shape[2:])
    return sums.means()


def dilation_of_objects(net: Net, canvas: Tensor) -> dict[str, Tensor]:
    """Return per deformable layer the effective dilation on the object of every image, (N,); NaN without any.

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
    """Return how the effective dilation on objects depends on their size: means per size bin, and Spearman's ρ.

    Args:
        net: with deformable layers.
        tests: several drawings of the same images in the same order, each as batches of canvases.
        seed: of the bootstrap.

    Returns:
        Rows of layer, scale (mean √area of the bin's objects in canvas pixels), dilation (mean, in pixels of the
        layer's input map), sd and n; and per layer ρ with the 95 % interval of a bootstrap over images: all
        drawings of an image are resampled together, since they are not independent.
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
    every = torch.stack(sizes).double().numpy()  # (tests, images)
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
