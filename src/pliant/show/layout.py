"""Sizes of panels, frames of boxes and backgrounds: the small parts that figures are laid out with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pliant.show.canvas import INK

if TYPE_CHECKING:
    import numpy as np


def coloured(image: np.ndarray) -> np.ndarray:
    """Return an image in three channels as it is drawn: (H, W) becomes grey on white."""
    if image.ndim == 3:
        return image
    paper: np.ndarray = 1 - 0.6 * image[..., None].repeat(3, 2) / max(float(image.max()), 1e-12)
    return paper


def grey(image: np.ndarray) -> np.ndarray:
    """Return an image without its colours, in three channels."""
    shade: np.ndarray = coloured(image).mean(2, keepdims=True).repeat(3, 2)
    return shade


def enlarged(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return a mask (h, w) at another resolution, (H, W): each pixel is that of the mask in which its centre lies."""
    import numpy as np

    rows, columns = (
        ((2 * np.arange(many) + 1) * few) // (2 * many) for many, few in zip(size, mask.shape, strict=True)
    )
    whole: np.ndarray = mask[rows][:, columns]
    return whole


def row(point: tuple[float, float]) -> np.ndarray:
    """Return a point as an array of one point."""
    import numpy as np

    return np.array([point])


def window(image: np.ndarray, points: np.ndarray) -> tuple[float, float, float, float]:
    """Return the part of an image that shows all points: top, bottom, left, right.

    It is the whole image if the points are spread over a large part of it.
    """
    H, W = image.shape[:2]
    middle, reach = points.mean(0), float(abs(points - points.mean(0)).max()) * 1.35 + 2
    if reach > 0.3 * max(H, W):
        return -0.5, H - 0.5, -0.5, W - 0.5
    side = min(max(reach, 0.15 * max(H, W)), min(H, W) / 2)
    y = min(max(float(middle[0]), side - 0.5), H - 0.5 - side)
    x = min(max(float(middle[1]), side - 0.5), W - 0.5 - side)
    return y - side, y + side, x - side, x + side


def widened(part: tuple[float, float, float, float], points: np.ndarray) -> tuple[float, float, float, float]:
    """Return a part with an equal margin on every side for points that lie outside, at most a twelfth of its size."""
    top, bottom, left, right = part
    y, x = points.T
    most = 0.08 * max(bottom - top, right - left)
    away = max(float((top - y).max()), float((y - bottom).max()), float((left - x).max()), float((x - right).max()))
    more = min(away + 0.02 * (right - left), most) if away > 0 else 0.0
    return top - more, bottom + more, left - more, right + more


def height(width: float, ratio: float) -> float:
    """Return the height of a panel in inches: in the ratio of the image, which is limited to 0.35 … 2.5."""
    return width * min(max(ratio, 0.35), 2.5)


def look_at(axes: Any, part: tuple[float, float, float, float]) -> None:
    """Show a part of the image, with a frame around it."""
    top, bottom, left, right = part
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    for patch in axes.patches:
        patch.set_clip_on(True)
    for spine in axes.spines.values():
        spine.set_edgecolor("#B5B5B5")


def frame(axes: Any, box: Sequence[float], color: str, text: str) -> Any:
    """Draw a box that is visible on any background, and above it a text, which is returned."""
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = box
    for shade, width in ((INK, 2.8), (color, 1.6)):
        axes.add_patch(
            Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor=shade, linewidth=width, zorder=3)
        )
    return axes.text(
        x1 - 0.5, y1 - 0.5, text, fontsize=9.5, color="white", va="bottom", clip_on=True, zorder=5,
        bbox={"facecolor": color, "edgecolor": "none", "pad": 1.0},
    ) if text else None  # fmt: skip


def apart(axes: Any, names: Sequence[tuple[Any, Sequence[float]]]) -> None:
    """Move the texts of boxes, from :func:`frame`, to corners where they lie on the image and cover no earlier text.

    Args:
        axes: axes that fill their figure.
        names: texts with their boxes, x1, y1, x2, y2; earlier ones are placed first.
    """
    renderer, whole = axes.figure.canvas.get_renderer(), axes.get_window_extent()
    taken: list[Any] = []
    for name, (x1, y1, x2, y2) in names:
        left, right, top, bottom = x1 - 0.5, x2 - 0.5, y1 - 0.5, y2 - 0.5
        corners = (
            (left, top, "left", "bottom"), (left, top, "left", "top"), (left, bottom, "left", "top"),
            (right, top, "right", "bottom"), (right, bottom, "right", "top"), (left, bottom, "left", "bottom"),
            (right, top, "right", "top"), (right, bottom, "right", "bottom"),
        )  # fmt: skip
        best: tuple[float, Any] | None = None
        for x, y, across, down in corners:
            name.set(position=(x, y), horizontalalignment=across, verticalalignment=down)
            here = name.get_window_extent(renderer)
            inside = here.x0 >= whole.x0 and here.x1 <= whole.x1 and here.y0 >= whole.y0 and here.y1 <= whole.y1
            bad = (not inside) + sum(here.padded(2).overlaps(other) for other in taken)
            if best is None or bad < best[0]:
                best = (bad, (x, y, across, down, here))
        assert best is not None
        x, y, across, down, here = best[1]
        name.set(position=(x, y), horizontalalignment=across, verticalalignment=down)
        taken.append(here)
