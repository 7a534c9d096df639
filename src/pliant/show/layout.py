"""Sizes of panels, parts of images and backgrounds: the small parts that figures are laid out with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
