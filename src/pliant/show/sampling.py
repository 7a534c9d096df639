"""Trace where a network samples: from one output position back to the pixels of the image.

:func:`trace` serves one position of one map. For many positions of the same image, for maps inside a network and for
networks that take more than an image use :func:`pliant.show.recording.record`, which runs the network once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from pliant.show.canvas import CENTRE, TAPS, scatter, show_picture
from pliant.show.paths import Step, Trace
from pliant.show.recording import record

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes


def trace(
    layers: nn.Module | Iterable[nn.Module], picture: Tensor, position: tuple[int, int], depth: int | None = None
) -> Trace:
    """Trace the sampling points of one output position of a network back to the image.

    A path chooses one tap (and one offset group) in each of the `depth` topmost convolutions: K·G paths in one layer,
    9, 81, 729 in one, two, three 3×3 layers. Below the topmost layer a sample falls between outputs of the next one,
    so it depends on four of them, each with its own offset. Nothing is rounded: a path carries the exact bilinear
    weights of every output it depends on, down to the last layer, and its point is the mean of the positions that it
    samples there, weighted by them. So in a chain whose kernels are 1 at one tap and 0 elsewhere, with offsets and
    masks held fixed, `weights` is the sum and `points` the centre of gravity of the gradient at the pixels.

    A path that leaves a map keeps its position in the arrays: it continues on the regular grid (there are no offsets
    outside) with ``inside`` False and weight 0. If only a part of a path's weight is out of bounds, ``points`` includes
    that part, ``weights`` does not. Padding is out of bounds. NaN and infinite offsets sample nothing; their points
    stay on the regular grid. Layers below the `depth` topmost convolutions, and all pooling layers, begin no paths:
    pooling samples the mean of its window (also maximum pooling, whose maximum differs from channel to channel), and
    the layers below are followed through the centres of their kernels, without offsets.

    Args:
        layers: a module that makes a map of a batch of one image, or modules in order. Where maps are added, paths
            follow one of them: the convolutions of a residual block; see
            :meth:`pliant.show.recording.Recording.trace`.
        picture: the image, (C, H, W) or (1, C, H, W), as the first layer takes it.
        position: (row, column) on the output map of the last layer.
        depth: how many convolutions of more than one tap begin paths, counted from the top; None: all.

    Returns:
        A :class:`Trace` with P = Π K·G points. The topmost layer varies slowest; within a layer groups vary slower
        than taps, which are row-major.

    Raises:
        TypeError: a layer that cannot be followed; :func:`pliant.show.recording.record` lists those that can.
        ValueError: a position outside the output map, more than a million points, a batch of images.

    Source: Dai et al., ICCV 2017, figures 5 and 6; the definition between outputs is this function's own.

    >>> import torch
    >>> found = trace([nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, dilation=2)], torch.zeros(1, 9, 9), (2, 2))
    >>> found.points.shape, found.points[0].tolist(), int(found.inside.sum())
    ((81, 2), [1.0, 1.0], 81)
    """
    return record(_model(layers), picture).trace(position, "", depth)


def support(layers: nn.Module | Iterable[nn.Module], picture: Tensor, position: tuple[int, int]) -> np.ndarray:
    """Compute how much one output position of a network samples every pixel: the exact sum over all paths.

    Paths follow the same maps as in :func:`trace`. The result is the gradient at the pixels of a chain whose kernels
    are all ones, with offsets and masks held fixed, offset groups averaged and maximum pooling replaced by average
    pooling. Args and errors as in :func:`trace`.

    Returns:
        (H, W), float64.

    >>> import torch
    >>> support([nn.Conv2d(1, 1, 3, padding=1)], torch.zeros(1, 3, 3), (0, 0)).tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    return record(_model(layers), picture).support(position, "")


def steps(layers: nn.Module | Iterable[nn.Module], picture: Tensor) -> list[Step]:
    """Return the steps that paths follow, from the image upwards, one for each layer that changes positions.

    Args and errors as in :func:`trace`.
    """
    return [step for _, step in record(_model(layers), picture).steps("")]


def draw(
    axes: Axes,
    picture: np.ndarray,
    found: Trace,
    *,
    title: str = "",
    margin: float = 0.0,
    color: str = TAPS,
    size: tuple[int, int] | None = None,
) -> None:
    """Draw sampling points over an image: opaque for large weights, grey and hollow for points out of bounds.

    Args:
        axes: matplotlib axes to draw on.
        picture: the image, (H, W) with 0 for the background, or (H, W, 3) in 0 … 1.
        found: from :func:`trace`.
        title: above the image.
        margin: white border around the image in pixels; points further out are cut off.
        color: of the points.
        size: (H, W) of the image as the network reads it, where `picture` has another resolution.
    """
    show_picture(axes, picture, title, margin=margin, size=size)
    few = len(found.points) <= 100
    dot = 30.0 if len(found.points) <= 9 else 14.0 if few else 7.0
    lost = found.points[~found.inside]
    if len(lost):
        scatter(axes, lost, "#8A8A8A", size=dot, hollow=True, alpha=0.8 if few else 0.35)
    kept, weights = found.points[found.inside], found.weights[found.inside]
    if len(kept):
        alpha = (0.35 + 0.65 * weights / weights.max()) * (1.0 if few else 0.8)
        scatter(axes, kept, color, size=dot, alpha=alpha, outlined=few)
    scatter(axes, found.centre[None], CENTRE, size=110, marker="P", layer=6)


def _model(layers: nn.Module | Iterable[nn.Module]) -> nn.Module:
    return layers if isinstance(layers, nn.Module) else nn.Sequential(*layers)
