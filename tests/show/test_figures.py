"""Figures of models that are not ours: what is drawn, what is left out, and what is an error."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from pliant.nn import DeformConv2d, LocalResponseNorm
from pliant.show import boxes, canvas
from pliant.show.figures import figures
from pliant.show.view import view


class Own(nn.Module):
    """A network of somebody else: functions, a shortcut, a second argument, a dictionary as its output."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), LocalResponseNorm(3)
        self.second, self.third = DeformConv2d(6, 6, 3, padding=1, version=1), nn.Conv2d(6, 6, 3, padding=1)
        nn.init.normal_(self.second.conv_offset.bias, std=1.0)

    def forward(self, picture, factor):
        x = F.max_pool2d(self.norm(self.first(picture)), 2)
        return {"map": self.third(F.relu(self.second(x))) + factor * x}


def test_somebodys_model_is_drawn_and_what_it_lacks_is_said():
    torch.manual_seed(0)
    picture = torch.rand(3, 24, 32)
    seen = view(Own(), picture, layer="third", point=(20.4, 11.2), call=lambda model, x: model(x, 2))
    assert (seen.layer, seen.position, seen.centre) == ("third", (5, 10), (10.5, 20.5))
    told = []
    found, notes = figures(seen, evaluations=8, tell=told.append)
    names = [figure.name for figure in found]
    assert names == told == ["picture", "taps", "sampling", "support", "offsets-1", "dilation", "lrn"]
    assert any("not a detector" in note for note in notes)
    assert any("modulated" in note for note in notes)
    for figure in found:
        with Image.open(io.BytesIO(figure.data)) as image:
            assert image.format == "PNG"
        assert figure.caption.endswith(".")
    assert "(5, 10)" in found[0].caption
    assert "third, second, first" in found[2].caption


def test_plain_networks_have_points_and_support_alone():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, 2, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1))
    found, notes = figures(view(net, torch.rand(1, 16, 16)), evaluations=8)
    assert [figure.name for figure in found] == ["picture", "sampling", "support"]
    assert "not deformable" in found[1].caption
    assert sum("no deformable convolution" in note for note in notes) == 1


def test_texts_of_boxes_lie_on_the_image_and_cover_no_other():
    figure = canvas.sheet(5, 4)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    canvas.show_picture(axes, np.zeros((80, 100, 3)))
    edges = [(30, 1, 60, 40), (32, 2, 61, 41), (31, 1, 60, 39), (90, 60, 100, 80), (0, 70, 20, 80), (2, 69, 22, 79)]
    names = [f"pullover 0.{i}1" for i in range(len(edges))]
    texts = boxes.frames(axes, edges, names, [boxes.colour(0)] * len(edges))
    assert [text.get_text() for text in texts] == names
    figure.canvas.draw()
    # With the dark ground around it.
    places = [text.get_bbox_patch().get_window_extent() for text in texts]
    for i, one in enumerate(places):
        assert one.x0 >= -0.5 and one.y0 >= -0.5 and one.x1 <= 500.5 and one.y1 <= 400.5
        assert not any(one.padded(-1).overlaps(other) for other in places[:i])


def test_a_name_without_room_lies_where_it_covers_least():
    full = [(0, 0, 100, 20)] * 5
    found = boxes.places(full, [(60, 10)] * 5, (100, 20))
    assert all(0 <= x <= 40 and 0 <= y <= 10 for x, y in found)
    assert len({(x, y) for x, y in found[:4]}) == 4  # of four corners, each is taken once
    assert boxes.places([(5, 5, 9, 9)], [(300, 40)], (100, 20)) == [(0, 0)]


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"point": (32.0, 3.0)}, "point 32,3 is not on the image of 32 × 24"),
        ({"box": (3.0, 3.0, 3.0, 9.0)}, "box 3,3,3,9"),
        ({"box": (3.0, 3.0, 33.0, 9.0)}, "box 3,3,33,9"),
    ],
)
def test_points_and_boxes_off_the_image_are_errors(kwargs, says):
    with pytest.raises(ValueError, match=says):
        view(nn.Conv2d(3, 3, 3), torch.rand(3, 24, 32), **kwargs)
