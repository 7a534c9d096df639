"""Offset fields as colours, masks, and effective dilation: what a deformable convolution predicts for a map."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pliant.show.canvas import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, VERMILION, show_picture
from pliant.show.paths import Step
from pliant.show.recording import Recording

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def offsets(step: Step) -> np.ndarray:
    """Return the offsets of a deformable convolution, (G, Kh, Kw, Ho, Wo, 2), (dy, dx) in pixels of the map it samples.

    Args:
        step: from :meth:`pliant.show.recording.Recording.deformable`.
    """
    return _taps(step, _offset(step)).movedim(3, -1).numpy()


def masks(step: Step) -> np.ndarray | None:
    """Return the modulation of a deformable convolution, (G, Kh, Kw, Ho, Wo); None for version 1."""
    return None if step.mask is None else _taps(step, step.mask.double()).numpy()


def effective_dilation(step: Step) -> np.ndarray:
    """Compute the mean distance of horizontally or vertically adjacent taps, (Ho, Wo), in pixels of the map below.

    Where offsets are zero this is the dilation. It is NaN where an offset is NaN or infinite.

    Raises:
        ValueError: a kernel of one tap.

    Source: Dai et al., ICCV 2017, section 4.2.
    """
    if math.prod(step.kernel) == 1:
        raise ValueError("effective_dilation: a kernel of one tap has no dilation")
    mean = spacing(_taps(step, _offset(step) + step.regular[:, :, None, None]))
    return torch.where(mean.isfinite(), mean, torch.nan).numpy()


def spacing(at: Tensor) -> Tensor:
    """Compute the mean distance of horizontally or vertically adjacent taps, over all offset groups.

    Args:
        at: (…, G, Kh, Kw, 2, Ho, Wo), (y, x) of more than one tap, from any origin.

    Returns:
        (…, Ho, Wo): the effective dilation, in the unit of `at`.

    >>> rows, columns = torch.meshgrid(torch.arange(3.0), torch.arange(3.0), indexing="ij")
    >>> spacing(2 * torch.stack((rows, columns), -1)[None, ..., None, None]).tolist()
    [[2.0]]
    """
    down, across = at.diff(dim=-5).norm(dim=-3), at.diff(dim=-4).norm(dim=-3)
    return torch.cat((down.flatten(-5, -3), across.flatten(-5, -3)), -3).mean(-3)


class Spread(NamedTuple):
    """Mean effective dilation of one layer inside one box; `size` is √(width·height), over `positions` of the map."""

    layer: str
    size: float
    dilation: float
    positions: int


def dilation_in_boxes(recording: Recording, boxes: Iterable[tuple[float, float, float, float]]) -> list[Spread]:
    """Compute the effective dilation of every deformable layer inside boxes: it should grow with the object.

    A position of a layer's map belongs to the boxes that contain its centre. Boxes without a position are left out.

    Args:
        recording: of the image.
        boxes: x1, y1, x2, y2 in pixels of the image.
    """
    import numpy as np

    boxes, rows = list(boxes), []
    for name, step in recording.deformable().items():
        if math.prod(step.kernel) == 1:
            continue
        distance, centres = effective_dilation(step), recording.centres(name) + 0.5
        for x1, y1, x2, y2 in boxes:
            y, x = centres[..., 0], centres[..., 1]
            inside = (y >= y1) & (y < y2) & (x >= x1) & (x < x2) & np.isfinite(distance)
            if inside.any():
                size = math.sqrt((x2 - x1) * (y2 - y1))
                rows.append(Spread(name, size, float(distance[inside].mean()), int(inside.sum())))
    return rows


def flow_colours(field: np.ndarray, largest: float | None = None) -> np.ndarray:
    """Return a field of vectors as colours: the hue shows the direction; the shorter a vector, the paler its colour.

    Right is red, down yellow-green, left cyan, up violet; zero is white.

    Args:
        field: (…, 2), (dy, dx).
        largest: length of full saturation; None: the longest vector's. Longer vectors are fully saturated too.

    Returns:
        (…, 3), float64, 0 … 1; NaN vectors are grey.

    >>> import numpy as np
    >>> flow_colours(np.array([[0.0, 0.0], [0.0, 2.0], [0.0, -1.0]])).round(2).tolist()
    [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.5, 1.0, 1.0]]
    """
    import numpy as np
    from matplotlib.colors import hsv_to_rgb

    dy, dx = np.moveaxis(np.asarray(field, dtype=np.float64), -1, 0)
    known = np.isfinite(dy) & np.isfinite(dx)
    dy, dx = np.where(known, dy, 0), np.where(known, dx, 0)
    length = np.hypot(dy, dx)
    most = length.max(initial=0.0) if largest is None else largest
    hue = np.arctan2(dy, dx) / (2 * np.pi) % 1
    strong = np.clip(length / most, 0, 1) if most > 0 else np.zeros_like(length)
    colours: np.ndarray = hsv_to_rgb(np.stack((hue, strong, np.ones_like(hue)), -1))
    colours[~known] = 0.6
    return colours


def draw_offsets(figure: Figure, step: Step, group: int = 0) -> None:
    """Draw the offset field of every tap as flow colours, laid out as the kernel, and a colour wheel as the legend.

    Args:
        figure: an empty figure.
        step: of a deformable convolution.
        group: offset group.
    """
    import numpy as np

    field = offsets(step)[group]
    most = float(np.nan_to_num(np.hypot(field[..., 0], field[..., 1]), posinf=0.0).max())
    Kh, Kw = step.kernel
    grid = figure.add_gridspec(Kh, Kw + 1, width_ratios=[1.0] * Kw + [0.6])
    for i in range(Kh):
        for j in range(Kw):
            axes = figure.add_subplot(grid[i, j])
            axes.imshow(flow_colours(field[i, j], most), interpolation="nearest")
            _bare(axes, f"tap {i}, {j}" if Kh * Kw > 1 else "offset")
    axes = figure.add_subplot(grid[:, Kw])  # spans all rows: its text would stretch a single row
    axes.set_anchor("N")
    y, x = np.mgrid[-1:1:81j, -1:1:81j]
    wheel = flow_colours(np.stack((y, x), -1), 1.0)
    wheel[np.hypot(y, x) > 1] = 1.0
    axes.imshow(wheel, interpolation="bilinear")
    _bare(axes, "direction", frame=False)
    axes.text(40, 88, f"rim: {most:.2g} pixels\nof its map", ha="center", va="top", fontsize=9, color=INK)


def draw_masks(figure: Figure, step: Step, group: int = 0) -> None:
    """Draw the mask of every tap, laid out as the kernel, on one scale from 0.

    Raises:
        ValueError: the convolution has no mask.
    """
    found = masks(step)
    if found is None:
        raise ValueError("draw_masks: this convolution has no mask; only version 2 has one")
    Kh, Kw = step.kernel
    most = float(found[group].max()) or 1.0
    cells = figure.subplots(Kh, Kw, squeeze=False)
    for i in range(Kh):
        for j in range(Kw):
            image = cells[i, j].imshow(found[group, i, j], cmap="cividis", vmin=0, vmax=most, interpolation="nearest")
            _bare(cells[i, j], f"tap {i}, {j}")
    bar = figure.colorbar(image, ax=cells.ravel().tolist(), fraction=0.04, pad=0.02)
    bar.set_label("mask, the factor of a sample", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def draw_map(
    axes: Axes,
    picture: np.ndarray,
    values: np.ndarray,
    centres: np.ndarray | None = None,
    *,
    title: str = "",
    cmap: str = "cividis",
    alpha: float = 0.75,
    bar: bool = True,
    limits: tuple[float, float] | None = None,
    size: tuple[int, int] | None = None,
    unit: str = "",
) -> None:
    """Draw a map of numbers over an image, each number over the pixels that it belongs to.

    Args:
        axes: matplotlib axes to draw on.
        picture: the image, (H, W) or (H, W, 3).
        values: (h, w).
        centres: (h, w, 2), (y, x) of their centres in the image, a regular grid; None: the map has the image's size.
        title: above the image.
        cmap: colours.
        alpha: opacity of the colours.
        bar: draw a colour scale beside the image.
        limits: minimum and maximum of the scale; None: those of the values.
        size: (H, W) of the image as the network reads it, where `picture` has another resolution.
        unit: of the numbers, beside the scale.
    """
    show_picture(axes, picture, title, size=size)
    H, W = picture.shape[:2] if size is None else size
    view = (axes.get_xlim(), axes.get_ylim())
    h, w = values.shape
    extent: Any = (-0.5, W - 0.5, H - 0.5, -0.5)
    if centres is not None:
        (top, left), (bottom, right) = centres[0, 0], centres[-1, -1]
        dy = (bottom - top) / (h - 1) if h > 1 else H
        dx = (right - left) / (w - 1) if w > 1 else W
        extent = (left - dx / 2, right + dx / 2, bottom + dy / 2, top - dy / 2)
    low, high = limits or (None, None)
    image = axes.imshow(
        values, cmap=cmap, alpha=alpha, extent=extent, interpolation="nearest", zorder=1, vmin=low, vmax=high
    )
    axes.set_xlim(view[0])
    axes.set_ylim(view[1])
    if bar and axes.figure is not None:
        scale = axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
        scale.ax.tick_params(labelsize=8)
        scale.set_label(unit, fontsize=9, color=INK)
        if scale.solids is not None:
            scale.solids.set_alpha(1)
        scale.outline.set_visible(False)


def draw_dilation(axes: Axes, rows: Iterable[Spread]) -> None:
    """Draw effective dilation against the size of the object, one colour per layer.

    Raises:
        ValueError: there are no rows.
    """
    by_layer: dict[str, list[Spread]] = {}
    for row in rows:
        by_layer.setdefault(row.layer, []).append(row)
    if not by_layer:
        raise ValueError("draw_dilation: no box contains a position of a map")
    colours, markers = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY), "os^Dvp"
    for i, (layer, found) in enumerate(by_layer.items()):
        axes.scatter(
            [row.size for row in found], [row.dilation for row in found], s=34, color=colours[i % 6],
            marker=markers[i // 6 % 6], label=layer or "the model", edgecolors="white", linewidths=0.5,
        )  # fmt: skip
    axes.set_xlabel("√(width·height) of the object, pixels", fontsize=10)
    axes.set_ylabel("effective dilation, map pixels", fontsize=10)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _bare(axes: Axes, title: str, frame: bool = True) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(frame)
        spine.set_edgecolor("#B5B5B5")
    axes.set_title(title, fontsize=8, color=INK, pad=3)


def _offset(step: Step) -> Tensor:
    if step.offset is None:
        raise ValueError("this layer has no offsets, it is not deformable")
    return step.offset.double()


def _taps(step: Step, values: Tensor) -> Tensor:
    """Return (T, …) as (G, Kh, Kw, …)."""
    taps: Tensor = values.unflatten(0, (step.groups, *step.kernel))
    return taps
