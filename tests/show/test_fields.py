"""Offset fields, masks and effective dilation against the layers' own predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pliant.nn import DeformConv2d
from pliant.show import canvas, fields
from pliant.show.grids import affine_offsets
from pliant.show.recording import record


def layer(version=2, **kwargs):
    torch.manual_seed(4)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, 2, padding=1), DeformConv2d(4, 4, 3, padding=1, version=version, **kwargs))
    for parameter in net[1].conv_offset.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


def test_fields_are_what_the_layer_predicts():
    net, picture = layer(offset_groups=2), torch.rand(1, 20, 24)
    recording = record(net, picture)
    (step,) = recording.deformable().values()
    with torch.no_grad():
        offset, mask = net[1].predict(net[0](picture[None]))
    found, masks = fields.offsets(step), fields.masks(step)
    assert found.shape == (2, 3, 3, 10, 12, 2)
    for g, i, j in np.ndindex(2, 3, 3):
        channel = g * 9 + 3 * i + j
        np.testing.assert_array_equal(found[g, i, j, ..., 0], offset[0, 2 * channel].numpy())
        np.testing.assert_array_equal(found[g, i, j, ..., 1], offset[0, 2 * channel + 1].numpy())
        np.testing.assert_array_equal(masks[g, i, j], mask[0, channel].numpy())
    assert fields.masks(record(layer(1), picture).deformable()["1"]) is None
    np.testing.assert_array_equal(recording.centres("1")[3, 5], (6, 10))


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 2.0), (2.5, 5.0), ((1.0, 2.0), 3.0)])
def test_effective_dilation_of_scaled_grids(scale, expected):
    net = DeformConv2d(1, 1, 3, padding=2, dilation=2, version=1)
    with torch.no_grad():
        net.conv_offset.bias.copy_(affine_offsets(3, 2, scale=scale, angle=33.0))
    recording = record(net, torch.zeros(1, 12, 14))
    np.testing.assert_allclose(fields.effective_dilation(recording.deformable()[""]), expected, rtol=1e-6)
    rows = fields.dilation_in_boxes(recording, [(2.0, 2.0, 10.0, 10.0), (0.0, 0.0, 0.2, 0.2), (0, 0, 2, 8)])
    assert [(row.size, row.positions) for row in rows] == [(8.0, 64), (4.0, 16)]
    assert rows[0].dilation == pytest.approx(expected)


def test_colours_tell_directions_and_lengths():
    angles = np.radians(np.arange(0, 360, 30))
    field = np.stack((np.sin(angles), np.cos(angles)), -1)
    colours = fields.flow_colours(field)
    assert len(np.unique(colours.round(6), axis=0)) == 12
    np.testing.assert_allclose(colours[:6] + colours[6:], 1)  # opposite directions are complementary
    np.testing.assert_allclose(fields.flow_colours(field / 4, 1.0), 0.75 + colours / 4)
    np.testing.assert_array_equal(fields.flow_colours(np.zeros((2, 3, 2))), 1.0)
    np.testing.assert_array_equal(fields.flow_colours(np.array([[np.nan, 1.0]])), 0.6)
    np.testing.assert_allclose(fields.flow_colours(5 * field, 1.0), colours, atol=1e-12)


def test_drawings_have_a_panel_a_tap():
    recording = record(layer(), torch.rand(1, 20, 24))
    step = recording.deformable()["1"]
    figure = canvas.sheet(4, 3)
    fields.draw_offsets(figure, step)
    assert len(figure.axes) == 10
    np.testing.assert_array_equal(
        figure.axes[4].images[0].get_array(),
        fields.flow_colours(
            fields.offsets(step)[0, 1, 1], float(np.linalg.norm(fields.offsets(step), axis=-1).max())
        ),
    )  # fmt: skip
    figure = canvas.sheet(4, 3)
    fields.draw_masks(figure, step)
    assert len(figure.axes) == 10  # nine taps and the scale
    axes = canvas.sheet(4, 3).subplots()
    fields.draw_map(axes, np.zeros((20, 24)), fields.effective_dilation(step), recording.centres("1"))
    # Map pixels are 2 × 2 pixels about (2i, 2j).
    assert axes.images[1].get_extent() == [-1.0, 23.0, 19.0, -1.0]
    axes = canvas.sheet(4, 3).subplots()
    fields.draw_dilation(axes, fields.dilation_in_boxes(recording, [(0, 0, 8, 8), (0, 0, 20, 20)]))
    assert axes.collections[0].get_offsets()[:, 0].tolist() == [8.0, 20.0]


def test_what_is_not_there_is_an_error():
    (step,) = record(layer(1), torch.rand(1, 8, 8)).deformable().values()
    with pytest.raises(ValueError, match="has no mask"):
        fields.draw_masks(canvas.sheet(1, 1), step)
    with pytest.raises(ValueError, match="one tap"):
        fields.effective_dilation(record(DeformConv2d(1, 1, 1), torch.zeros(1, 4, 4)).deformable()[""])
    with pytest.raises(ValueError, match="no box"):
        fields.draw_dilation(canvas.sheet(1, 1).subplots(), [])
