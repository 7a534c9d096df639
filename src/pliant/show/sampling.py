"""Trace where a stack of layers looks: from one output position back to the pixels of the picture.

Every layer is turned into a :class:`Step`: the positions each of its outputs samples on the map below, and with what
weight. Steps know nothing of modules, and following them knows nothing of pictures: a network that is no plain chain
needs only another way to make its steps.

Pixel (y, x) has its centre at (y, x) and covers ``[y − ½, y + ½) × [x − ½, x + ½)``, on every map and as in
``matplotlib.imshow``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pliant.models.resnet import BasicBlock, Bottleneck, FrozenBatchNorm2d
from pliant.nn import DeformConv2d, LocalResponseNorm
from pliant.show.canvas import CENTRE, TAPS, scatter, show_picture

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

# Layers that change values and move nothing.
_POINTWISE = (
    FrozenBatchNorm2d,
    nn.BatchNorm2d,
    nn.Dropout,
    nn.Dropout2d,
    nn.GELU,
    nn.Identity,
    nn.LeakyReLU,
    nn.LocalResponseNorm,
    nn.ReLU,
    LocalResponseNorm,
)
_MOVING = (DeformConv2d, nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
_BLOCKS = (BasicBlock, Bottleneck)
_MOST_POINTS = 1_000_000


@dataclass(frozen=True)
class Step:
    """Where the outputs of one layer sample the map below; T taps, Q = Ho·Wo output positions.

    Args:
        positions: (T, Q, 2), float64, (y, x) on the map below.
        weights: (T, Q), float64, how much each sample counts.
        regular: (T, 2), positions of the taps of output (0, 0) before any offset.
        stride: (2,), how far `regular` moves from one output to the next.
        below: height and width of the map below.
        above: Ho and Wo.
        splits: True where every tap begins a path of its own (a convolution), False where all taps of an output are
            one sample (pooling).
        boundary: "zeros" or "clamp", what a sample near the border reads.
    """

    positions: Tensor
    weights: Tensor
    regular: Tensor
    stride: Tensor
    below: tuple[int, int]
    above: tuple[int, int]
    splits: bool
    boundary: str = "zeros"

    def corners(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the four pixels that each sample reads: index (T, Q) into the map below and bilinear share (T, Q)."""
        H, W = self.below
        first = -1 if self.boundary == "zeros" else 0
        y, x = self.positions.unbind(-1)
        counts = (y >= first) & (y < H) & (x >= first) & (x < W)
        y, x = torch.where(counts, y, 0), torch.where(counts, x, 0)
        top, left = y.floor(), x.floor()
        for row, share_y in ((top, 1 - (y - top)), (top + 1, y - top)):
            for column, share_x in ((left, 1 - (x - left)), (left + 1, x - left)):
                inside = counts
                if self.boundary == "zeros":
                    inside = inside & (row >= 0) & (row < H) & (column >= 0) & (column < W)
                index = row.clamp(0, H - 1).long() * W + column.clamp(0, W - 1).long()
                yield index, torch.where(inside, share_y * share_x, 0)


@dataclass(frozen=True)
class Trace:
    """The sampling points of one output position.

    Args:
        points: (P, 2), float64, (y, x) in pixels of the picture.
        weights: (P,), float64, what the point's path reads: the product of its masks and of its bilinear shares
            inside the maps (1 for an unmodulated path that stays inside).
        inside: (P,), bool, whether the path reads anything: False where a sample fell off a map on the way.
        centre: (2,), (y, x) in the picture of the output position itself, offsets left aside.
    """

    points: np.ndarray
    weights: np.ndarray
    inside: np.ndarray
    centre: np.ndarray


def trace(
    layers: nn.Module | Iterable[nn.Module], picture: Tensor, position: tuple[int, int], depth: int | None = None
) -> Trace:
    """Trace the sampling points of one output position of a chain of layers back to the picture.

    A path chooses one tap (and one offset group) in each of the `depth` topmost convolutions: K·G paths in one layer,
    9, 81, 729 in one, two, three 3×3 layers. Below the topmost layer a sample falls between outputs of the next one,
    so it depends on four of them, each with an offset of its own. Nothing is rounded: a path carries the exact
    bilinear weights of every output it depends on, down to the last layer, and its point is the mean position it
    samples there, weighted by them. In a chain whose kernels are 1 at one tap and 0 elsewhere, offsets and masks held
    fixed, `weights` is therefore the sum and `points` the centre of gravity of the gradient at the pixels.

    A path that leaves a map keeps its place in the arrays: it goes on over the regular grid (there are no offsets
    outside) with ``inside`` False and weight 0. Where part of a path's weight falls off, ``points`` still counts it,
    ``weights`` does not. Padding is outside. NaN and infinite offsets sample nothing; their points stay on the
    regular grid. Layers below the `depth` topmost convolutions, and pooling everywhere, begin no paths: pooling
    samples the mean of its window (also maximum pooling, whose winner differs from channel to channel), the layers
    below are passed from centre to centre of their kernels, offsets left aside.

    Args:
        layers: a chain: `nn.Sequential`, possibly nested, or modules in order. Of a residual block paths follow the
            convolutions; the shortcut, which adds a sample where the output is, is left out.
        picture: (C, H, W) or (1, C, H, W), what the first layer takes.
        position: (row, column) on the output map of the last layer.
        depth: how many convolutions of more than one tap begin paths, counted from the top; None: all.

    Returns:
        A :class:`Trace` with P = Π K·G points, the path's topmost tap varying slowest, within a layer group by group
        and taps row-major.

    Raises:
        TypeError: a layer whose sampling is not known.
        ValueError: a position outside the output map, more than a million points, a batch of pictures.

    Source: Dai et al., ICCV 2017, figures 5 and 6; the definition between outputs is this function's own.

    >>> found = trace([nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, dilation=2)], torch.zeros(1, 9, 9), (2, 2))
    >>> found.points.shape, found.points[0].tolist(), int(found.inside.sum())
    ((81, 2), [1.0, 1.0], 81)
    """
    chain = steps(layers, picture)
    reach, points = _start(chain, position)
    splits = [i for i, step in enumerate(chain) if step.splits and len(step.positions) > 1]
    if depth is not None and not 0 <= depth <= len(splits):
        raise ValueError(f"trace: depth must lie between 0 and the chain's {len(splits)} convolutions, got {depth}")
    chosen = splits[len(splits) - depth :] if depth is not None else splits
    total = 1
    for i in chosen:
        total *= len(chain[i].positions)
    if total > _MOST_POINTS:
        raise ValueError(f"trace: {len(chosen)} convolutions have {total} points; ask for a smaller depth")
    lowest = min(chosen, default=len(chain))

    centre = points
    for i, step in reversed(list(enumerate(chain))):
        middle = step.regular.mean(0)
        centre = centre * step.stride + middle
        if i >= lowest:
            reach, points = _follow(step, reach, points, splits=i in chosen)
        else:
            points = points * step.stride + middle
    weights = reach.sum(1)
    return Trace(points.numpy(), weights.numpy(), (weights > 0).numpy(), centre[0].numpy())


def support(layers: nn.Module | Iterable[nn.Module], picture: Tensor, position: tuple[int, int]) -> np.ndarray:
    """Compute how much one output position of a chain of layers samples every pixel: all paths added, exactly.

    The gradient at the pixels of a chain whose kernels are all ones, offsets and masks held fixed, offset groups
    averaged and maximum pooling replaced by average pooling. Args and errors as in :func:`trace`.

    Returns:
        (H, W), float64.

    >>> support([nn.Conv2d(1, 1, 3, padding=1)], torch.zeros(1, 3, 3), (0, 0)).tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    chain = steps(layers, picture)
    reach, points = _start(chain, position)
    for step in reversed(chain):
        reach, points = _follow(step, reach, points, splits=False)
    return reach.reshape(picture.shape[-2:]).numpy()


def draw(
    axes: Axes, picture: np.ndarray, found: Trace, *, title: str = "", margin: float = 0.0, color: str = TAPS
) -> None:
    """Draw sampling points over a picture: the heavier a point, the less transparent; those outside grey and hollow.

    Args:
        axes: matplotlib axes to draw on.
        picture: (H, W) with 0 the background, or (H, W, 3) in 0 … 1.
        found: from :func:`trace`.
        title: above the picture.
        margin: paper around the picture in pixels; points further out are cut off.
        color: of the points.
    """
    show_picture(axes, picture, title, margin=margin)
    few = len(found.points) <= 100
    size = 30.0 if len(found.points) <= 9 else 14.0 if few else 7.0
    lost = found.points[~found.inside]
    if len(lost):
        scatter(axes, lost, "#8A8A8A", size=size, hollow=True, alpha=0.8 if few else 0.35)
    kept, weights = found.points[found.inside], found.weights[found.inside]
    if len(kept):
        alpha = (0.35 + 0.65 * weights / weights.max()) * (1.0 if few else 0.8)
        scatter(axes, kept, color, size=size, alpha=alpha, outlined=few)
    scatter(axes, found.centre[None], CENTRE, size=110, marker="P", layer=6)


def steps(layers: nn.Module | Iterable[nn.Module], picture: Tensor) -> list[Step]:
    """Run a chain of layers over a picture, in evaluation mode, and record where each layer sampled its input.

    Args:
        layers: a chain, as for :func:`trace`.
        picture: (C, H, W) or (1, C, H, W).

    Returns:
        One :class:`Step` for each layer that moves anything, from the picture upwards.
    """
    x = picture[None] if picture.dim() == 3 else picture
    if x.dim() != 4 or x.shape[0] != 1:
        raise ValueError(f"trace: picture must have shape (C, H, W) or (1, C, H, W), got {tuple(picture.shape)}")
    chain = list(_flatten([layers] if isinstance(layers, nn.Module) else layers))
    found: list[Step] = []
    with torch.no_grad(), _evaluation(chain):
        for layer in chain:
            if isinstance(layer, _BLOCKS):
                x, inner = _block(layer, x)
                found += inner
                continue
            if not isinstance(layer, _POINTWISE + _MOVING):
                raise TypeError(f"trace: where {type(layer).__name__} samples its input is not known")
            above = layer(x)
            step = _step(layer, x, above.shape[-2:])
            x = above
            if step is not None:
                found.append(step)
    if not found:
        raise ValueError("trace: the chain holds no convolution and no pooling")
    return found


def _block(block: nn.Module, x: Tensor) -> tuple[Tensor, list[Step]]:
    """Return the output of a residual block, and the steps of its convolutions, the shortcut's left out."""
    found: list[Step] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        step = _step(layer, inputs[0], (output.shape[-2], output.shape[-1]))
        if step is not None:
            found.append(step)

    # A projection of the shortcut is not among the children: it stands in an nn.Sequential.
    hooks = [layer.register_forward_hook(look) for layer in block.children() if isinstance(layer, _MOVING)]
    try:
        return block(x), found
    finally:
        for hook in hooks:
            hook.remove()


def _start(chain: list[Step], position: tuple[int, int]) -> tuple[Tensor, Tensor]:
    (row, column), (Ho, Wo) = position, chain[-1].above
    if not (0 <= row < Ho and 0 <= column < Wo):
        raise ValueError(f"trace: position {tuple(position)} is not on the output map of {Ho} × {Wo}")
    reach = torch.zeros(1, Ho * Wo, dtype=torch.float64)
    reach[0, row * Wo + column] = 1
    return reach, torch.tensor([[row, column]], dtype=torch.float64)


def _follow(step: Step, reach: Tensor, points: Tensor, splits: bool) -> tuple[Tensor, Tensor]:
    """Follow paths through one layer downwards.

    `reach` (P, Q) is what each path takes of every output of the layer, `points` (P, 2) where its sample lies among
    them. Returned: the same on the map below, for P·T paths where the layer `splits` them, else for P.
    """
    P, T = len(reach), len(step.positions)
    H, W = step.below
    # (P, T): what each tap takes, and the mean position where it does; a path without weight stays on the grid.
    mass = torch.einsum("pq,tq->pt", reach, step.weights)
    place = torch.einsum("pq,tq,tqc->ptc", reach, step.weights, step.positions)
    grid = (points * step.stride)[:, None] + step.regular
    below = torch.zeros(P, T if splits else 1, H * W, dtype=torch.float64)
    corners = list(step.corners())
    for t in range(T):
        taken = reach * step.weights[t]
        for index, share in corners:
            below[:, t if splits else 0].index_add_(1, index[t], taken * share[t])
    if not splits:
        mass, place, grid = mass.sum(1, True), place.sum(1, True), grid.mean(1, True)
    where = torch.where(mass[..., None] > 0, place / mass[..., None].clamp_min(1e-300), grid)
    return below.flatten(0, 1), where.flatten(0, 1)


def _step(layer: Any, x: Tensor, above: tuple[int, int]) -> Step | None:
    """Return where `layer` samples `x` (1, C, H, W) for an output map of `above`, or None where it moves nothing."""
    if isinstance(layer, _POINTWISE):
        return None
    if isinstance(layer, DeformConv2d):
        offset, mask = layer.predict(x)
        Ho, Wo = above
        taps = layer.offset_groups * layer.kernel_size[0] * layer.kernel_size[1]
        moves = offset.double().cpu().reshape(taps, 2, Ho * Wo).transpose(1, 2)
        weights = torch.ones(taps, Ho * Wo, dtype=torch.float64)
        if mask is not None:
            weights = mask.double().cpu().reshape(taps, Ho * Wo)
        finite = moves.isfinite().all(-1)
        moves, weights = torch.where(finite[..., None], moves, 0), torch.where(finite, weights, 0)
        return _geometry(layer, layer.padding, x, above, moves, weights / layer.offset_groups, layer.boundary)
    if isinstance(layer, nn.Conv2d):
        if layer.padding_mode != "zeros":
            raise TypeError(f"trace: padding_mode={layer.padding_mode!r} of a convolution is not known, only 'zeros'")
        padding = layer.padding
        if isinstance(padding, str):
            # "same" pads one row or column more at the end of an even kernel: the start is what positions need.
            span = [d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
            padding = (span[0], span[1]) if padding == "same" else (0, 0)
        return _geometry(layer, padding, x, above)
    return _geometry(layer, layer.padding, x, above, splits=False)


def _geometry(
    layer: Any,
    padding: int | tuple[int, ...],
    x: Tensor,
    above: tuple[int, int],
    moves: Tensor | None = None,
    weights: Tensor | None = None,
    boundary: str = "zeros",
    *,
    splits: bool = True,
) -> Step:
    """Make the step of a layer with a kernel: the regular grid, and `moves` (T, Q, 2) on top of it."""
    pairs = ((v, v) if isinstance(v, int) else v for v in (layer.kernel_size, layer.stride, padding))
    (Kh, Kw), stride, (ph, pw) = pairs
    dilation = getattr(layer, "dilation", 1)  # average pooling has none
    dh, dw = (dilation, dilation) if isinstance(dilation, int) else dilation
    (Ho, Wo), (H, W) = above, x.shape[-2:]
    regular = torch.cartesian_prod(torch.arange(Kh) * dh - ph, torch.arange(Kw) * dw - pw).double().reshape(-1, 2)
    if moves is not None:
        regular = regular.repeat(len(moves) // len(regular), 1)
    step = torch.tensor(stride, dtype=torch.float64)
    outputs = torch.cartesian_prod(torch.arange(Ho), torch.arange(Wo)).double().reshape(-1, 2)
    positions = regular[:, None] + outputs * step
    if moves is not None:
        positions = positions + moves
    if weights is None:
        weights = torch.full(positions.shape[:2], 1.0 if splits else 1 / len(regular), dtype=torch.float64)
    return Step(positions, weights, regular, step, (H, W), (Ho, Wo), splits, boundary)


def _flatten(layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for layer in layers:
        if isinstance(layer, nn.Sequential):
            yield from _flatten(layer)
        else:
            yield layer


@contextmanager
def _evaluation(chain: list[nn.Module]) -> Iterator[None]:
    """Keep batch normalization and dropout from seeing this pass."""
    training = [layer.training for layer in chain]
    for layer in chain:
        layer.eval()
    try:
        yield
    finally:
        for layer, was in zip(chain, training, strict=True):
            layer.train(was)
