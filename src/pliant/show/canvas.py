"""Colours, and the few things that every figure draws."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, which is safe for every kind of colour vision.
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
TAPS, REGULAR, CENTRE, BACKGROUND, INK = VERMILION, BLUE, GREEN, "#FFFFFF", "#222222"


def sheet(width: float, height: float) -> Figure:
    """Return an empty white figure of `width` × `height` inches that can be saved without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure, dpi: int = 100) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    # matplotlib's version in the file would make equal figures differ.
    figure.savefig(buffer, format="png", dpi=dpi, facecolor=figure.get_facecolor(), metadata={"Software": None})
    return buffer.getvalue()


def show_picture(
    axes: Axes, picture: np.ndarray, title: str = "", *, margin: float = 0.0, size: tuple[int, int] | None = None
) -> None:
    """Draw an image, a grey one light enough for points on top of it.

    Args:
        axes: matplotlib axes to draw on.
        picture: the image, (H, W) with 0 for white and its maximum for dark grey, or (H, W, 3) in 0 … 1.
        title: above the image.
        margin: white border around the image in pixels, for points that lie outside.
        size: (H, W) of the image that the coordinates of points are for, where `picture` shows it at another
            resolution; None is that of `picture`.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    H, W = picture.shape[:2] if size is None else size
    kind: dict[str, Any] = {}
    if picture.ndim == 2:
        kind = {"cmap": LinearSegmentedColormap.from_list("ink", ["#FFFFFF", "#8C8C8C"]), "vmin": 0}
    # Pixels of the network are shown as such, those of a photograph are not.
    smooth = "nearest" if picture.shape[:2] == (H, W) else "hanning"
    axes.imshow(picture, interpolation=smooth, extent=(-0.5, W - 0.5, H - 0.5, -0.5), zorder=0, **kind)
    axes.add_patch(
        Rectangle((-0.5, -0.5), W, H, fill=False, edgecolor="#B5B5B5", linewidth=0.8, zorder=1, clip_on=False)
    )
    axes.set_xlim(-0.5 - margin, W - 0.5 + margin)
    axes.set_ylim(H - 0.5 + margin, -0.5 - margin)
    axes.set_axis_off()
    if title:
        axes.set_title(title, fontsize=11, color=INK, pad=5)


def scatter(
    axes: Axes,
    points: np.ndarray,
    color: str,
    *,
    size: float,
    alpha: Any = 1.0,
    hollow: bool = False,
    outlined: bool = True,
    marker: str = "o",
    layer: int = 4,
) -> None:
    """Draw points (P, 2), (y, x); `outlined` draws a white rim that makes them visible on any background.

    `alpha` is one number, or one number per point.
    """
    ring = color if hollow else BACKGROUND
    axes.scatter(
        points[:, 1],
        points[:, 0],
        s=size,
        marker=marker,
        facecolors="none" if hollow else color,
        edgecolors=ring if hollow or outlined else "none",
        linewidths=(1.1 if hollow else 0.6) if hollow or outlined else 0,
        alpha=alpha,
        zorder=layer,
    )
