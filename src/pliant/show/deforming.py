"""Where deformable convolutions, DCNv3 and DCNv4 sample their input, derived from the arguments of a call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pliant.nn.deformable import taps_by_row
from pliant.show.maps import Geometry, Map, extent, grid_of_taps, lost, two, unfit
from pliant.show.paths import Step


def deformable(name: str, values: dict[str, Any], node: Map, source: Tensor, out: Tensor) -> Geometry:
    """Follow a deformable convolution, ours or torchvision's."""
    if name.startswith("torchvision"):
        pairs = (("stride_h", "stride_w"), ("pad_h", "pad_w"), ("dilation_h", "dilation_w"))
        stride, padding, dilation = ((values[a], values[b]) for a, b in pairs)
    else:
        stride, padding, dilation = values["stride"], values["padding"], values["dilation"]
    return deformed(
        node,
        source,
        out,
        values["offset"],
        values["mask"] if values.get("use_mask", True) else None,
        kernel=values["weight"].shape[2:],
        stride=stride,
        padding=padding,
        dilation=dilation,
        boundary="clamp" if values.get("clamp") else "zeros",
    )


def deformed(
    node: Map,
    source: Tensor,
    out: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    *,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    boundary: str,
) -> Geometry:
    """Return the geometry of a deformable convolution of `node`, the map in `source`, to `out`."""
    if why := unfit(node, source, out):
        return lost(out, why)
    (Kh, Kw), (Ho, Wo) = kernel, extent(out)
    taps = offset.shape[1] // 2
    G = taps // (Kh * Kw)
    step = Step(
        grid_of_taps(kernel, padding, dilation).repeat(G, 1),
        two(stride),
        node.size,
        (Ho, Wo),
        weight=1 / G,
        offset=offset.detach().cpu().reshape(taps, 2, Ho, Wo).clone(),
        mask=None if mask is None else mask.detach().cpu().reshape(taps, Ho, Wo).clone(),
        boundary=boundary,
        groups=G,
        kernel=(Kh, Kw),
    )
    return Geometry(node.axes, step)


def aggregation(name: str, values: dict[str, Any], node: Map, source: Tensor, out: Tensor) -> Geometry:
    """Follow DCNv3 or DCNv4."""
    G, predicted = values["groups"], values["offset"] if name == "pliant::dcnv3" else values["offset_mask"]
    K = math.prod(values["kernel_size"]) - values["remove_center"]
    if name == "pliant::dcnv3":
        offset, mask = predicted.unflatten(-1, (G, K, 2)), values["mask"].unflatten(-1, (G, K))
    else:
        packed = predicted[..., : G * K * 3].unflatten(-1, (G, K * 3))
        offset, mask = packed[..., : 2 * K].unflatten(-1, (K, 2)), packed[..., 2 * K :]
    names = ("kernel_size", "stride", "padding", "dilation", "offset_scale", "remove_center")
    return aggregated(node, out, offset, mask, *(values[name] for name in names))


def aggregated(
    node: Map,
    out: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    scale: float,
    remove_center: bool,
) -> Geometry:
    """Return the geometry of DCNv3 or DCNv4 from `node` to `out`, with rows of taps first.

    Args:
        node: the map, whose rows and columns are the second and third dimension.
        out: (1, Ho, Wo, C).
        offset: (1, Ho, Wo, G, K, 2), x first, before `scale`.
        mask: (1, Ho, Wo, G, K); how much a sample counts is its amount, for those of DCNv4 may be negative.
        kernel: Kh, Kw.
        stride: distance between adjacent outputs.
        padding: rows and columns added around the map.
        dilation: distance between adjacent taps.
        scale: of offsets and taps, about the centre of the window.
        remove_center: the middle tap is missing; its step has the mask 0.
    """
    if node.axes != (1, 2) or out.shape[0] != 1:
        return lost(out, "rows and columns of its input are not the second and third dimension")
    centre = torch.tensor([d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)], dtype=torch.float64)
    grid = grid_of_taps(kernel, (0, 0), dilation) - centre
    G, (Ho, Wo) = offset.shape[3], out.shape[1:3]

    def maps(values: Tensor) -> Tensor:
        """Return (1, Ho, Wo, G, K, D) as (G·Kh·Kw, D, Ho, Wo)."""
        rows = taps_by_row(values.detach().cpu()[0], kernel, remove_center)
        return rows.flatten(2, 3).permute(2, 3, 0, 1).clone()

    step = Step(
        (scale * grid + centre - two(padding)).repeat(G, 1),
        two(stride),
        node.size,
        (int(Ho), int(Wo)),
        weight=1 / G,
        offset=scale * maps(offset.flip(-1)),
        mask=maps(mask.abs().unsqueeze(-1))[:, 0],
        groups=G,
        kernel=(kernel[0], kernel[1]),
    )
    return Geometry(node.axes, step)
