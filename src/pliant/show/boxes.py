"""Boxes of objects with their names, in one style: a bright line between dark edges, and white text on a dark ground.

A name lies on the image, beside its box if there is room, and covers no other name. `pliant predict` draws with Pillow,
figures with matplotlib; the page of `pliant explore` draws in the same style.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pliant.show.canvas import GREEN, INK, ORANGE, PURPLE, SKY

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = (SKY, ORANGE, GREEN, PURPLE)  # of the lines, by class
FONT = 9.5  # points, of names in figures
PAD = 1.5  # points around a name, in figures


def colour(label: int) -> str:
    """Return the colour of a class.

    >>> colour(0), colour(4)
    ('#56B4E9', '#56B4E9')
    """
    return COLOURS[label % len(COLOURS)]


def places(
    boxes: Sequence[Sequence[float]], sizes: Sequence[tuple[float, float]], whole: tuple[float, float]
) -> list[tuple[float, float]]:
    """Return where the names of boxes lie: each at a corner of its box, on the image, and on no earlier name.

    Where no corner is free, a name lies where it covers least of the earlier ones.

    Args:
        boxes: (x1, y1, x2, y2) each, in pixels with y downwards; names of earlier ones are placed first.
        sizes: (width, height) of each name.
        whole: (width, height) of the image.

    Returns:
        The upper left corner (x, y) of each name.

    >>> places([(10, 20, 40, 60), (10, 20, 40, 60), (80, 2, 99, 50)], [(30, 8)] * 3, (100, 100))
    [(10, 12), (10, 60), (69, 50)]
    """
    taken: list[tuple[float, float, float, float]] = []
    for (x1, y1, x2, y2), (width, height) in zip(boxes, sizes, strict=True):
        # Outside, above and below; then inside.
        corners = [(x, y) for y in (y1 - height, y2, y1, y2 - height) for x in (x1, x2 - width)]
        inside = [(_within(x, whole[0] - width), _within(y, whole[1] - height)) for x, y in corners]
        # Beside the box before on it: a corner that was moved onto the image comes after those that lie there.
        order = sorted(zip(corners, inside, strict=True), key=lambda pair: pair[0] != pair[1])
        rectangles = [(x, y, x + width, y + height) for _, (x, y) in order]
        taken.append(min(rectangles, key=lambda here: sum(_shared(here, other) for other in taken)))
    return [(x, y) for x, y, _, _ in taken]


def _within(at: float, most: float) -> float:
    return max(0, min(at, most))


def _shared(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the area that two rectangles share."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    return max(0.0, across) * max(0.0, min(one[3], other[3]) - max(one[1], other[1]))


def draw(picture: Image, boxes: Sequence[Sequence[float]], names: Sequence[str], colours: Sequence[str]) -> None:
    """Draw boxes and their names on an image of Pillow's, earlier ones on top.

    Args:
        picture: the image, RGB, which is drawn on.
        boxes: (x1, y1, x2, y2) each, in its pixels; the edge 0 is the left edge of pixel 0.
        names: what is written beside each.
        colours: of the lines.
    """
    from PIL import ImageDraw, ImageFont

    canvas = ImageDraw.Draw(picture)
    line = max(1, round(min(picture.size) / 250))
    font = ImageFont.load_default(max(10.0, min(picture.size) / 32))
    pad = round(font.size / 4) if isinstance(font, ImageFont.FreeTypeFont) else 2
    for (x1, y1, x2, y2), shade in reversed(list(zip(boxes, colours, strict=True))):
        edges = x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)
        rim = edges[0] - 1, edges[1] - 1, edges[2] + 1, edges[3] + 1
        canvas.rectangle(rim, outline=INK, width=line + 2)
        canvas.rectangle(edges, outline=shade, width=line)
    extents = [canvas.textbbox((0, 0), name, font) for name in names]
    # All of one height, so that they stand on one line.
    tall = max((bottom for _, _, _, bottom in extents), default=0.0) + 2 * pad
    sizes = [(right + 2 * pad, tall) for _, _, right, _ in extents]
    where = places(boxes, sizes, picture.size)
    for name, (x, y), (width, height) in reversed(list(zip(names, where, sizes, strict=True))):
        canvas.rectangle((x, y, x + width - 1, y + height - 1), fill=INK)
        canvas.text((x + pad, y + pad / 2), name, fill="white", font=font)


def frame(axes: Any, box: Sequence[float], color: str) -> None:
    """Draw a box on axes of matplotlib, visible on any background."""
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = box
    for shade, width in ((INK, 3.4), (color, 1.8)):
        axes.add_patch(
            Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor=shade, linewidth=width, zorder=3)
        )


def frames(
    axes: Any, boxes: Sequence[Sequence[float]], names: Sequence[str], colours: Sequence[str], font: float = FONT
) -> list[Any]:
    """Draw boxes and their names on axes of matplotlib that already have their place in the figure.

    Args:
        axes: of matplotlib, with the image.
        boxes: (x1, y1, x2, y2) each, in its pixels; the edge 0 is the left edge of pixel 0.
        names: what is written beside each; earlier ones lie on top and are placed first.
        colours: of the lines.
        font: size of the names in points.

    Returns:
        The texts.
    """
    import numpy as np

    for box, shade in reversed(list(zip(boxes, colours, strict=True))):
        frame(axes, box, shade)
    ground = {"facecolor": INK, "edgecolor": "none", "pad": PAD}
    texts = [
        axes.text(0, 0, name, fontsize=font, color="white", ha="left", va="top", zorder=5 + 1 / (i + 2), bbox=ground)
        for i, name in enumerate(names)
    ]
    figure = axes.figure
    renderer, whole = figure.canvas.get_renderer(), axes.get_window_extent()
    pad = PAD * figure.dpi / 72
    extents = [text.get_window_extent(renderer) for text in texts]
    tall = max((extent.height for extent in extents), default=0.0)
    # In pixels of the figure, where y points up, from the upper left corner of the axes down.
    corners = [axes.transData.transform(np.reshape(box, (2, 2)) - 0.5) for box in boxes]
    placed = [(a - whole.x0, whole.y1 - b, c - whole.x0, whole.y1 - d) for (a, b), (c, d) in corners]
    sizes = [(extent.width + 2 * pad, tall + 2 * pad) for extent in extents]
    for text, (x, y) in zip(texts, places(placed, sizes, (whole.width, whole.height)), strict=True):
        text.set_position(axes.transData.inverted().transform((whole.x0 + x + pad, whole.y1 - y - pad)))
    return texts
