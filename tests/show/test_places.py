"""The places of the longest offsets, and the taps that are drawn there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from pliant.nn import DeformConv2d
from pliant.show import canvas, places
from pliant.show.recording import record


def _network() -> nn.Module:
    torch.manual_seed(0)
    layer = DeformConv2d(2, 2, 3, padding=1)
    nn.init.normal_(layer.conv_offset.weight, std=0.5)
    return nn.Sequential(nn.Conv2d(1, 2, 3, 2, padding=1), layer, nn.ReLU())


def test_places_have_the_longest_offsets_and_lie_apart() -> None:
    step = record(_network(), torch.rand(1, 40, 48)).deformable()["1"]
    found = places.farthest(step)
    assert len(found) == places.PLACES
    length = places.lengths(step).mean(0)
    assert length.shape == (20, 24) and length[found[0]] == length[1:-1, 1:-1].max()  # taps at the border leave the map
    assert [float(length[place]) for place in found] == sorted((float(length[place]) for place in found), reverse=True)
    far = places.APART * (20**2 + 24**2) ** 0.5
    assert all(np.hypot(a - c, b - d) >= far for i, (a, b) in enumerate(found) for c, d in found[:i])
    assert all(0 < row < 19 and 0 < column < 23 for row, column in found)
    nowhere = replace(step, offset=torch.full_like(step.offset, torch.nan))
    assert len(places.farthest(nowhere, 2)) == 2 and not places.lengths(nowhere).any()


def test_rings_are_the_regular_grid_in_pixels_of_the_image() -> None:
    net = _network()
    recording = record(net, torch.rand(1, 40, 48))
    step = recording.deformable()["1"]
    figure = canvas.sheet(4, 4)
    axes, under = figure.subplots(2, 1)
    places.draw(axes, np.zeros((40, 48)), recording, "1", "a layer")
    places.histogram(under, step, "lengths")
    nn.init.zeros_(net[1].conv_offset.weight)
    regular = record(net, torch.rand(1, 40, 48)).samples("1")
    row, column = places.farthest(step)[0]
    rings, dots, _ = (np.asarray(drawn.get_offsets())[:, ::-1] for drawn in axes.collections[:3])
    np.testing.assert_allclose(rings, regular[:, row, column], atol=1e-9)
    np.testing.assert_allclose(dots, recording.samples("1")[:, row, column], atol=1e-9)
    assert sum(patch.get_height() for patch in under.patches) == 9 * 20 * 24
