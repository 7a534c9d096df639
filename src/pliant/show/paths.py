"""Where the outputs of one layer sample the map below it, and paths of samples down through many layers.

This module knows neither modules nor images: :mod:`pliant.show.recording` makes the steps of a network,
:mod:`pliant.show.sampling` asks for paths.

Pixel (y, x) has its centre at (y, x) and covers ``[y − ½, y + ½) × [x − ½, x + ½)``, on every map and as in
``matplotlib.imshow``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

_MOST_POINTS = 1_000_000
_DENSE = 1 << 22  # up to this many numbers the reach of all paths is summed in one array


@dataclass(frozen=True)
class Step:
    """Where the outputs of one layer sample the map below: T taps for each of Ho·Wo outputs.

    Output (i, j) samples at ``regular[t] + stride·(i, j) + offset[t, :, i, j]`` with ``weight·mask[t, i, j]``.

    Args:
        regular: (T, 2), float64, (y, x) of the taps of output (0, 0) before any offset.
        stride: (2,), float64, distance between the samples of adjacent outputs.
        below: height and width of the map below.
        above: Ho and Wo.
        splits: True if every tap begins its own path (a convolution), False if all taps of an output are one sample
            (pooling).
        weight: of every sample.
        offset: (T, 2, Ho, Wo) in pixels of the map below, or None.
        mask: (T, Ho, Wo) or None.
        boundary: what a sample reads: "zeros" and "clamp" as in :func:`pliant.ops.deform_conv2d`; "edge": the nearest
            position on the map; "floor" and "round": the pixel that `F.interpolate` takes in its modes "nearest" and
            "nearest-exact"; "lattice": nothing between pixels (transposed convolution); "reflect" and "wrap": the
            position mirrored at the outermost pixels, or moved to the other side, as padding does.
        groups: G, of the T = G·Kh·Kw taps.
        kernel: Kh and Kw.
    """

    regular: Tensor
    stride: Tensor
    below: tuple[int, int]
    above: tuple[int, int]
    splits: bool = True
    weight: float = 1.0
    offset: Tensor | None = None
    mask: Tensor | None = None
    boundary: str = "zeros"
    groups: int = 1
    kernel: tuple[int, int] = (1, 1)

    @property
    def taps(self) -> int:
        """Return the number of paths that one path is split into."""
        return len(self.regular) if self.splits else 1

    @property
    def positions(self) -> Tensor:
        """Return (y, x) of the samples of all outputs, (T, Ho·Wo, 2), on the map below."""
        return self.samples(torch.arange(self.above[0] * self.above[1]))[0]

    @property
    def weights(self) -> Tensor:
        """Return the weights of the samples of all outputs, (T, Ho·Wo)."""
        return self.samples(torch.arange(self.above[0] * self.above[1]))[1]

    def samples(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return (y, x) of the samples of outputs `index` = row·Wo + column, (T, n, 2), and their weights, (T, n).

        A sample at a NaN or infinite position has weight 0 and stays on the regular grid.
        """
        T, n, Wo = len(self.regular), len(index), self.above[1]
        outputs = torch.stack((index // Wo, index % Wo), -1).double()
        positions = self.regular[:, None] + outputs * self.stride
        weights = torch.full((T, n), self.weight, dtype=torch.float64)
        if self.mask is not None:
            weights = weights * self.mask.flatten(1)[:, index].double()
        if self.offset is not None:
            moves = self.offset.flatten(2)[:, :, index].double().transpose(1, 2)
            finite = moves.isfinite().all(-1)
            positions = positions + torch.where(finite[..., None], moves, 0)
            weights = torch.where(finite, weights, 0)
        if self.boundary in ("edge", "floor", "round"):
            if self.boundary != "edge":
                # A millionth of a pixel: 3·(1/3) must not fall into pixel 0.
                shift = 0.5 * (1 - self.stride) if self.boundary == "floor" else 0.5
                positions = (positions + shift + 1e-6).floor()
            last = torch.tensor(self.below, dtype=torch.float64) - 1
            positions = torch.minimum(positions.clamp_min(0), last)
        elif self.boundary in ("reflect", "wrap"):
            size = torch.tensor(self.below, dtype=torch.float64)
            if self.boundary == "wrap":
                positions = positions.remainder(size)
            else:
                around = positions.remainder(2 * (size - 1).clamp_min(1))
                positions = (size - 1) - (around - (size - 1)).abs()
        elif self.boundary == "lattice":
            weights = torch.where((positions == positions.round()).all(-1), weights, 0)
        return positions, weights

    def corners(self, positions: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the four pixels that samples (…, 2) read: index (…) into the map below and bilinear share (…)."""
        H, W = self.below
        first = 0 if self.boundary == "clamp" else -1
        y, x = positions.unbind(-1)
        counts = (y >= first) & (y < H) & (x >= first) & (x < W)
        y, x = torch.where(counts, y, 0), torch.where(counts, x, 0)
        top, left = y.floor(), x.floor()
        for row, share_y in ((top, 1 - (y - top)), (top + 1, y - top)):
            for column, share_x in ((left, 1 - (x - left)), (left + 1, x - left)):
                inside = counts
                if self.boundary != "clamp":
                    inside = inside & (row >= 0) & (row < H) & (column >= 0) & (column < W)
                index = row.clamp(0, H - 1).long() * W + column.clamp(0, W - 1).long()
                yield index, torch.where(inside, share_y * share_x, 0)


class Reach(NamedTuple):
    """What paths depend on in one map: path `path[i]` reads output `place[i]` with the weight `share[i]`."""

    path: Tensor
    place: Tensor
    share: Tensor


@dataclass(frozen=True)
class Trace:
    """The sampling points of one output position.

    Args:
        points: (P, 2), float64, (y, x) in pixels of the image.
        weights: (P,), float64, weight of each path: the product of its masks and of its bilinear weights inside the
            maps (1 for an unmodulated path that stays inside).
        inside: (P,), bool, whether the path reads anything: False if a sample was out of bounds on the way.
        centre: (2,), (y, x) in the image of the output position itself, without offsets.
        taps: offset groups times taps of each chosen layer, the topmost first; P is their product, and
            ``points.reshape(*taps, 2)`` has one dimension per layer.
        layers: names of these layers, the topmost first.
    """

    points: np.ndarray
    weights: np.ndarray
    inside: np.ndarray
    centre: np.ndarray
    taps: tuple[int, ...] = ()
    layers: tuple[str, ...] = ()


def follow(chain: list[Step], position: tuple[int, int], depth: int | None, names: list[str]) -> Trace:
    """Follow the paths of one output position down a chain of steps; see :func:`pliant.show.sampling.trace`.

    Args:
        chain: steps from the image upwards.
        position: on the map above the last step.
        depth: how many of the topmost steps that split begin paths; None: all.
        names: of the steps.

    Raises:
        ValueError: a position outside the output map, a depth larger than the chain's, more than a million points.
    """
    reach, points = _start(chain, position)
    splits = [i for i, step in enumerate(chain) if step.taps > 1]
    if depth is not None and not 0 <= depth <= len(splits):
        raise ValueError(f"trace: depth must lie between 0 and the chain's {len(splits)} convolutions, got {depth}")
    chosen = splits[len(splits) - depth :] if depth is not None else splits
    total = 1
    for i in chosen:
        total *= chain[i].taps
    if total > _MOST_POINTS:
        raise ValueError(f"trace: {len(chosen)} convolutions have {total} points; ask for a smaller depth")
    lowest = min(chosen, default=len(chain))

    centre, inside = points, torch.ones(1, dtype=torch.float64)
    for i, step in reversed(list(enumerate(chain))):
        middle = step.regular.mean(0)
        centre = centre * step.stride + middle
        if i >= lowest:
            reach, points = _down(step, reach, points, splits=i in chosen)
            if i == lowest:
                inside = torch.zeros(len(points), dtype=torch.float64).index_add_(0, reach.path, reach.share)
        else:
            points = points * step.stride + middle
    return Trace(
        points.numpy(),
        inside.numpy(),
        (inside > 0).numpy(),
        centre[0].numpy(),
        tuple(chain[i].taps for i in reversed(chosen)),
        tuple(names[i] for i in reversed(chosen)),
    )


def spread(chain: list[Step], position: tuple[int, int]) -> np.ndarray:
    """Return (H, W), float64: the sum of all paths of an output position; see :func:`pliant.show.sampling.support`."""
    reach, points = _start(chain, position)
    for step in reversed(chain):
        reach, points = _down(step, reach, points, splits=False)
    H, W = chain[0].below
    total = torch.zeros(H * W, dtype=torch.float64).index_add_(0, reach.place, reach.share)
    return total.reshape(H, W).numpy()


def _start(chain: list[Step], position: tuple[int, int]) -> tuple[Reach, Tensor]:
    (row, column), (Ho, Wo) = position, chain[-1].above
    if not (0 <= row < Ho and 0 <= column < Wo):
        raise ValueError(f"trace: position {tuple(position)} is not on the output map of {Ho} × {Wo}")
    zero = torch.zeros(1, dtype=torch.long)
    reach = Reach(zero, zero + row * Wo + column, torch.ones(1, dtype=torch.float64))
    return reach, torch.tensor([[row, column]], dtype=torch.float64)


def _down(step: Step, reach: Reach, points: Tensor, splits: bool) -> tuple[Reach, Tensor]:
    """Follow paths down through one layer.

    `reach` holds what each path reads of every output of the layer, `points` (P, 2) the position of its sample among
    them. Returns both on the map below, for P·T paths if the layer `splits` them, else for P.
    """
    P, T = len(points), len(step.regular)
    positions, weights = step.samples(reach.place)
    taken = reach.share * weights
    # (T, P): the weight that each tap reads with, and the mean position where; a path of no weight stays on the grid.
    mass = torch.zeros(T, P, dtype=torch.float64).index_add_(1, reach.path, taken)
    place = torch.zeros(T, P, 2, dtype=torch.float64).index_add_(1, reach.path, taken[..., None] * positions)
    grid = step.regular[:, None] + points * step.stride
    if splits:
        path = reach.path * T + torch.arange(T)[:, None]
    else:
        path = reach.path.expand(T, -1)
        mass, place, grid = mass.sum(0, True), place.sum(0, True), grid.mean(0, True)
    where = torch.where(mass[..., None] > 0, place / mass[..., None].clamp_min(1e-300), grid)
    where = where.transpose(0, 1).flatten(0, 1)
    return _gathered(step, path, positions, taken, len(where)), where


def _gathered(step: Step, path: Tensor, positions: Tensor, taken: Tensor, P: int) -> Reach:
    """Return what `P` paths read of every pixel below, each pair of path and pixel once."""
    area = step.below[0] * step.below[1]
    if P * area <= _DENSE:
        total = torch.zeros(P * area, dtype=torch.float64)
        for index, share in step.corners(positions):
            total.index_add_(0, (path * area + index).flatten(), (taken * share).flatten())
        key = total.nonzero()[:, 0]
        return Reach(key // area, key % area, total[key])
    keys, shares = [], []
    for index, share in step.corners(positions):
        part = (taken * share).flatten()
        kept = part.nonzero()[:, 0]
        keys.append((path * area + index).flatten()[kept])
        shares.append(part[kept])
    key, place = torch.cat(keys).unique(return_inverse=True)
    total = torch.zeros(len(key), dtype=torch.float64).index_add_(0, place, torch.cat(shares))
    return Reach(key // area, key % area, total)
