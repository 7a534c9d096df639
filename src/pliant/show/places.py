"""Where the deformable layers of a network move their taps most, over the whole image."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pliant.show.canvas import CENTRE, INK, REGULAR, TAPS, scatter, show_picture
from pliant.show.paths import Step

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

    from pliant.show.recording import Recording

PLACES = 4  # per layer
APART = 0.3  # distance of two places, as a share of the diagonal of the map


def lengths(step: Step) -> torch.Tensor:
    """Return the lengths of the offsets of a deformable convolution, (T, Ho, Wo), in pixels of the map it samples."""
    assert step.offset is not None
    found: torch.Tensor = step.offset.double().nan_to_num(0.0, 0.0, 0.0).norm(dim=1)
    return found


def farthest(step: Step, count: int = PLACES) -> list[tuple[int, int]]:
    """Return up to `count` positions (row, column) whose offsets are longest on average, apart from each other.

    Positions whose regular taps leave the map are left out, unless there are no others.
    """
    strength = lengths(step).mean(0)
    Ho, Wo = step.above
    H, W = step.below
    regular = replace(step, offset=None, mask=None).positions
    inside = ((regular >= 0) & (regular <= torch.tensor([H - 1, W - 1]))).all(-1).all(0).view(Ho, Wo)
    strength = strength.masked_fill(~inside, -1.0) if inside.any() else strength
    return [(row, column) for row, column in peaks(strength, count)]


def peaks(strength: torch.Tensor, count: int) -> list[tuple[int, ...]]:
    """Return up to `count` positions of a map of any rank where it is largest and not negative, apart from each other.

    >>> peaks(torch.tensor([0.5, 0.1, 0.2, 0.9, 0.8]), 3)
    [(3,), (0,)]
    """
    size = torch.tensor(strength.shape)
    places = torch.stack(torch.meshgrid(*map(torch.arange, strength.shape), indexing="ij"), -1)
    found: list[tuple[int, ...]] = []
    while len(found) < count and float(strength.max()) >= 0:
        best = torch.stack(torch.unravel_index(strength.argmax(), strength.shape))
        found.append(tuple(best.tolist()))
        near = (places - best).square().sum(-1) < APART**2 * size.square().sum()
        strength = strength.masked_fill(near, -1.0)
    return found


def draw(axes: Axes, image: np.ndarray, recording: Recording, layer: str, title: str) -> None:
    """Draw the regular taps (rings) and the moved ones (dots, joined to their rings) of a layer at several places."""
    step = recording.deformable()[layer]
    moved = recording.samples(layer)
    still = moved - _in_image(recording, layer, step)
    show_picture(axes, image, title)
    centres = recording.centres(layer)
    for row, column in farthest(step):
        here, there = still[:, row, column], moved[:, row, column]
        for (y, x), (v, u) in zip(here, there, strict=True):
            axes.plot([x, u], [y, v], color=INK, linewidth=0.9, alpha=0.7, zorder=3)
        scatter(axes, here, REGULAR, size=26, hollow=True)
        scatter(axes, there, TAPS, size=34, layer=5)
        scatter(axes, centres[row, column][None], CENTRE, size=90, marker="P", layer=6)


def _in_image(recording: Recording, layer: str, step: Step) -> np.ndarray:
    """Return the offsets (T, Ho, Wo, 2) of a layer in pixels of the image."""
    assert step.offset is not None
    below = torch.ones(2, dtype=torch.float64)
    for _, one in recording.steps(layer)[:-1]:
        below = below * one.stride
    moves = step.offset.double().nan_to_num(0.0, 0.0, 0.0).permute(0, 2, 3, 1) * below
    found: np.ndarray = moves.numpy()
    return found


def histogram(axes: Axes, step: Step, title: str) -> None:
    """Draw how many offsets of a layer have which length, with their median."""
    values = lengths(step).flatten().numpy()
    median = float(torch.from_numpy(values).median())
    axes.hist(values, bins=60, color=TAPS)
    axes.axvline(median, color=INK, linewidth=1)
    axes.set_xlabel(f"offset in pixels of the map; median {median:.2f}, longest {values.max():.1f}", fontsize=9)
    axes.set_yticks([])
    axes.set_title(title, fontsize=10, color=INK)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
