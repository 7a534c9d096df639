"""Regular, scaled, sheared and rotated sampling grids as offsets: special cases of deformation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pliant import _check
from pliant.show.canvas import BACKGROUND, INK, REGULAR, TAPS, scatter, show_picture

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes


def regular(kernel_size: int | Sequence[int] = 3, dilation: int | Sequence[int] = 1) -> Tensor:
    """Return the regular grid of a kernel, relative to its centre.

    Args:
        kernel_size: Kh, Kw, taps.
        dilation: distance of adjacent taps in pixels.

    Returns:
        (K, 2), float64, (y, x) of every tap, row-major.

    >>> regular((1, 3), dilation=2).tolist()
    [[0.0, -2.0], [0.0, 0.0], [0.0, 2.0]]
    """
    Kh, Kw = _check.pair("regular", "kernel_size", kernel_size, 1)
    dh, dw = _check.pair("regular", "dilation", dilation, 1)
    rows = (torch.arange(Kh, dtype=torch.float64) - (Kh - 1) / 2) * dh
    columns = (torch.arange(Kw, dtype=torch.float64) - (Kw - 1) / 2) * dw
    return torch.cartesian_prod(rows, columns).reshape(-1, 2)


def affine_offsets(
    kernel_size: int | Sequence[int] = 3,
    dilation: int | Sequence[int] = 1,
    *,
    scale: float | tuple[float, float] = 1.0,
    angle: float = 0.0,
    shear: float = 0.0,
) -> Tensor:
    """Compute the offsets that turn a regular grid into a scaled, sheared and rotated one: ``Δp = (R·S·D − I)·p``.

    Args:
        kernel_size: Kh, Kw, taps.
        dilation: distance of adjacent taps in pixels before the transformation.
        scale: D, factor of the distances, or a vertical and a horizontal factor. 0 moves all taps to the centre.
        angle: R, degrees by which the grid is rotated clockwise on the screen, where y points down.
        shear: S, pixels by which a tap moves to the right per pixel that it lies above the centre.

    Returns:
        (2·K,), float64, in :func:`pliant.ops.deform_conv2d`'s order of channels: (dy, dx) of each tap, row-major.

    Source: Dai et al., ICCV 2017, figure 1 (c) and (d).

    >>> affine_offsets(3, scale=2.0)[:4].tolist()
    [-1.0, -1.0, -1.0, 0.0]
    """
    vertical, horizontal = (scale, scale) if isinstance(scale, int | float) else scale
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # Rows and columns are (y, x): clockwise on the screen takes right (0, 1) to down (1, 0).
    turn = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)
    slant = torch.tensor([[1.0, 0.0], [-shear, 1.0]], dtype=torch.float64)
    stretch = torch.tensor([[vertical, 0.0], [0.0, horizontal]], dtype=torch.float64)
    grid = regular(kernel_size, dilation)
    return (grid @ (turn @ slant @ stretch - torch.eye(2, dtype=torch.float64)).T).reshape(-1)


def draw(
    axes: Axes,
    picture: np.ndarray,
    centre: tuple[float, float],
    offsets: Tensor | None = None,
    *,
    kernel_size: int | Sequence[int] = 3,
    dilation: int | Sequence[int] = 1,
    pixel: float = 1.0,
    title: str = "",
) -> None:
    """Draw a grid of taps over an image: hollow at the regular positions, filled where `offsets` move them.

    Args:
        axes: matplotlib axes to draw on.
        picture: the image, (H, W) or (H, W, 3).
        centre: (y, x) of the kernel's centre in the image.
        offsets: (2·K,), in pixels of the map that the kernel samples; None draws the regular grid.
        kernel_size: Kh, Kw, taps.
        dilation: distance of adjacent taps on that map.
        pixel: size of one pixel of that map in pixels of the image.
        title: of the axes.
    """
    grid = regular(kernel_size, dilation)
    moved = grid if offsets is None else grid + offsets.detach().double().cpu().reshape(-1, 2)
    start = grid.numpy() * pixel + centre
    end = moved.numpy() * pixel + centre
    show_picture(axes, picture, title)
    if offsets is not None:
        for (y0, x0), (y1, x1) in zip(start, end, strict=True):
            axes.plot([x0, x1], [y0, y1], color=BACKGROUND, linewidth=2.2, zorder=2)
            axes.plot([x0, x1], [y0, y1], color=REGULAR, linewidth=1.0, zorder=3)
        scatter(axes, start, REGULAR, size=22, hollow=True)
    scatter(axes, end, TAPS, size=34)


def legend(axes: Axes) -> None:
    """Say in an empty panel what the marks of :func:`draw` are."""
    import numpy as np

    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    scatter(axes, np.array([[0.62, 0.12]]), REGULAR, size=40, hollow=True)
    scatter(axes, np.array([[0.45, 0.12]]), TAPS, size=52)
    axes.text(0.2, 0.62, "tap of the regular grid", va="center", fontsize=11, color=INK)
    axes.text(0.2, 0.45, "where its offset moves it", va="center", fontsize=11, color=INK)


SPECIAL_CASES: Mapping[str, Mapping[str, Any]] = {
    "regular": {},
    "scaled": {"scale": 1.9},
    "stretched": {"scale": (2.1, 0.8)},
    "sheared": {"scale": 1.3, "shear": 0.7},
    "rotated": {"scale": 1.3, "angle": 30.0},
}
