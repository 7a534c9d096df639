"""Maps in a network, and which of several maps a path follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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
