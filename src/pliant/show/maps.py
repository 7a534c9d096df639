"""Maps in a network, which of several maps a path follows, and what an operator did with rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pliant.show.paths import Step


@dataclass(frozen=True, eq=False)
class Map:
    """One map in the network.

    Args:
        operator: name of the operator that made it.
        module: name of the innermost module that called the operator.
        axes: which dimensions of the tensor are rows and columns; twice the same one if they are laid out in one
            dimension, row after row.
        size: height and width.
        inputs: the maps that it was made from.
        step: where it samples its only input; None if positions do not change.
        unknown: why it cannot be followed, or "".
    """

    operator: str
    module: str
    axes: tuple[int, int]
    size: tuple[int, int]
    inputs: tuple[Map, ...] = ()
    step: Step | None = None
    unknown: str = ""
    # About the input that `choice` takes, and everything below it.
    blocked: bool = field(init=False)
    enlarged: bool = field(init=False)
    taps: int = field(init=False)

    def __post_init__(self) -> None:
        down = choice(self)
        larger = self.step is not None and bool((self.step.stride < 1).any())
        object.__setattr__(self, "blocked", bool(self.unknown) or (down is not None and down.blocked))
        object.__setattr__(self, "enlarged", larger or (down is not None and down.enlarged))
        own = self.step is not None and self.step.taps > 1
        object.__setattr__(self, "taps", own + (down.taps if down is not None else 0))

    @property
    def flat(self) -> bool:
        """Return whether rows and columns are laid out in one dimension."""
        return self.axes[0] == self.axes[1]

    def held_by(self, shape: Sequence[int], axes: tuple[int, int] | None = None) -> bool:
        """Return whether a tensor of `shape` has as many rows and columns, along `axes` or those of the map."""
        row, column = axes or self.axes
        if max(row, column) >= len(shape):
            return False
        return shape[row] == self.size[0] * self.size[1] if row == column else (shape[row], shape[column]) == self.size

    def unfolded(self, tensor: Tensor) -> Tensor:
        """Return a tensor that holds the map with rows and columns as its last dimensions."""
        row, column = self.axes
        if self.flat:
            tensor, column = tensor.unflatten(row, self.size), row + 1
        return tensor.movedim((row, column), (-2, -1))


def choice(map_: Map, through: str | None = None) -> Map | None:
    """Return the input that a path follows from a map down; None at the image.

    Where several maps are added, concatenated or multiplied, these criteria decide, in this order: the input has the
    map's own size (so it is not the gate of a channel); it can be followed; it leads through the module `through`, if
    one is named; it was not enlarged (the lateral input of a pyramid); below it lie the most convolutions of more than
    one tap (the convolutions of a residual block, not its shortcut). Of equal inputs the first is taken.
    """
    best: Map | None = None
    rank: tuple[Any, ...] = ()
    for one in map_.inputs:
        # A map with a step has one input, which may have any size.
        own = map_.step is not None or one.size == map_.size
        here = (own, not one.blocked, through is not None and _passes(one, through), not one.enlarged, one.taps)
        if best is None or here > rank:
            best, rank = one, here
    return best


def lowest(map_: Map) -> Map:
    """Return the first map that cannot be followed, counted from the image, on the path down from a blocked map."""
    while not map_.unknown:
        down = choice(map_)
        assert down is not None
        map_ = down
    return map_


def _passes(map_: Map, through: str) -> bool:
    """Return whether some path down from a map leads through a module."""
    seen: set[int] = set()
    waiting = [map_]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if one.module == through or one.module.startswith(f"{through}."):
            return True
        waiting += one.inputs
    return False


class Geometry(NamedTuple):
    """What one operator did with rows and columns.

    Args:
        axes: in which dimensions of the result they are; None: the result is no map.
        step: where the input was sampled; None if positions did not change.
        unknown: why that is not known, or "".
        used: the maps that the result was made from; (): all maps among the arguments.
    """

    axes: tuple[int, int] | None
    step: Step | None = None
    unknown: str = ""
    used: tuple[Map, ...] = ()


def lost(out: Tensor, why: str) -> Geometry:
    """Return the geometry of a result that cannot be followed, and `why`."""
    return Geometry((out.dim() - 2, out.dim() - 1), None, why)


def pair(value: Any) -> tuple[Any, Any]:
    """Return a number twice, or the first and the last of several."""
    value = [value] if isinstance(value, int | float) else list(value)
    return (value[0], value[-1])


def unfit(node: Map, source: Tensor, out: Tensor) -> str:
    """Return why an operator on (1, C, H, W) cannot be followed, or ""."""
    if node.axes != (source.dim() - 2, source.dim() - 1) or out.dim() != source.dim():
        return "rows and columns of its input are not the last two dimensions"
    return "" if out.dim() == 3 or out.shape[0] == 1 else f"it works on {out.shape[0]} maps at once"


def extent(out: Tensor) -> tuple[int, int]:
    """Return the last two sizes of a tensor."""
    return int(out.shape[-2]), int(out.shape[-1])


def two(values: Any) -> Tensor:
    """Return :func:`pair` as a tensor (2,)."""
    return torch.tensor(pair(values), dtype=torch.float64)


def grid_of_taps(kernel: Any, padding: Any, dilation: Any) -> Tensor:
    """Return (row, column) of the taps of output (0, 0), (Kh·Kw, 2), rows first."""
    (Kh, Kw), (ph, pw), (dh, dw) = pair(kernel), pair(padding), pair(dilation)
    return torch.cartesian_prod(torch.arange(Kh) * dh - ph, torch.arange(Kw) * dw - pw).double().reshape(-1, 2)
