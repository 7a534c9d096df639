"""Maps on their way through a network, and which of several a path takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pliant.show.paths import Step


@dataclass(frozen=True, eq=False)
class Map:
    """One map on its way through the network.

    Args:
        operator: that made it.
        module: name of the innermost module that called the operator.
        axes: which dimensions of the tensor are rows and columns.
        size: height and width.
        inputs: the maps that it was made of.
        step: where it samples its only input, or None where it stays in place.
        unknown: why it cannot be followed, or "".
    """

    operator: str
    module: str
    axes: tuple[int, int]
    size: tuple[int, int]
    inputs: tuple[Map, ...] = ()
    step: Step | None = None
    unknown: str = ""
    # Of the best way down from here: see `choice`.
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


def choice(node: Map, through: str | None = None) -> Map | None:
    """Return which of its inputs a path takes from a node; None at the picture.

    Of several maps that are added, joined or multiplied: one of the node's own size (not the gate of a channel), that
    can be followed, that goes through the module `through` if one is named, that was not enlarged on its way (of a
    pyramid the lateral input), whose way down has most convolutions of more than one tap (of a residual block the
    convolutions, not the shortcut), and of equals the first.
    """
    best: Map | None = None
    rank: tuple[Any, ...] = ()
    for one in node.inputs:
        # A gate of 1 × 1 keeps its own size, a step is the only input.
        own = node.step is not None or one.size == node.size
        here = (own, not one.blocked, through is not None and _passes(one, through), not one.enlarged, one.taps)
        if best is None or here > rank:
            best, rank = one, here
    return best


def _passes(node: Map, through: str) -> bool:
    """Return whether a way down from a node goes through a module."""
    seen: set[int] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if one.module == through or one.module.startswith(f"{through}."):
            return True
        waiting += one.inputs
    return False
