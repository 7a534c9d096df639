"""Bins against the operators themselves: a map of coordinates pooled with the offsets gives the middles of the bins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pliant.models import RFCN, FasterRCNN, ResNet
from pliant.nn import DeformPSRoIPool, DeformRoIPool
from pliant.ops import deform_psroi_pool, deform_roi_pool
from pliant.show import canvas
from pliant.show.bins import bins, draw

BOXES = torch.tensor([[20.0, 16.0, 76.0, 60.0], [8.5, 10.0, 41.5, 49.0], [30.0, 20.0, 62.0, 70.0]])


class Net(nn.Module):
    """One map of the picture's size and a RoI layer on it."""

    def __init__(self, pool):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 8, 3, padding=1), pool

    def forward(self, picture, boxes):
        x = self.conv(picture[None])
        rois = torch.cat((boxes.new_zeros(len(boxes), 1), boxes), 1)
        return self.pool(x, rois) if isinstance(self.pool, DeformRoIPool) else self.pool(x[:, :4], x, rois)


def spread(layer):
    """Give a layer's branch weights, so that bins move by about a tenth of their box."""
    branch = layer.offset_fc if isinstance(layer, DeformRoIPool) else layer.conv_offset
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)


def coordinates():
    """A map of 90 × 90 whose two channels are y and x."""
    y, x = torch.meshgrid(torch.arange(90.0), torch.arange(90.0), indexing="ij")
    return torch.stack((y, x))[None].double()


def boxed(boxes):
    return torch.cat((torch.zeros(len(boxes), 1), boxes), 1).double()


@pytest.mark.parametrize("version", [1, 2])
def test_bins_are_where_the_operator_samples_coordinates(version):
    torch.manual_seed(2)
    net = Net(DeformRoIPool((5, 3), 8, sampling_ratio=2, version=version, hidden=(16,)))
    spread(net.pool)
    picture = torch.rand(3, 90, 90)
    found = bins(net, picture, BOXES, call=lambda net, picture, boxes: net(picture, boxes))
    with torch.no_grad():
        offset, mask = net.pool.predict(net.conv(picture[None]), boxed(BOXES).float())
    for points, moves in ((found.regular, None), (found.moved, offset.double())):
        pooled = deform_roi_pool(coordinates(), boxed(BOXES), moves, (5, 3), 1.0, 2)
        np.testing.assert_allclose(points, pooled.permute(0, 2, 3, 1).numpy(), atol=1e-9)
    assert np.abs(found.moved - found.regular).max() > 1
    if version == 1:
        assert found.mask is None
    else:
        np.testing.assert_allclose(found.mask, mask[:, 0].numpy(), rtol=1e-6)


@pytest.mark.parametrize("label", [0, 2])
def test_position_sensitive_bins_of_each_class(label):
    torch.manual_seed(3)
    net = Net(DeformPSRoIPool(4, 8, 3, group_size=1, part_size=2))
    spread(net.pool)
    picture = torch.rand(3, 90, 90)
    found = bins(net, picture, BOXES, label=label, call=lambda net, picture, boxes: net.pool(
        torch.zeros(1, 3, 90, 90), net.conv(picture[None]), boxed(boxes).float()))  # fmt: skip
    with torch.no_grad():
        offset = net.pool.predict(net.conv(picture[None]), boxed(BOXES).float())
    own = offset[:, 2 * label : 2 * label + 2].double()
    # Many samples: the operator's lie at the starts of the parts of a bin, not at their middles.
    S = 64
    for points, moves in ((found.regular, None), (found.moved, own)):
        pooled = deform_psroi_pool(coordinates(), boxed(BOXES), moves, 4, 1.0, part_size=2, sample_per_part=S)
        sizes = torch.from_numpy(found.boxes[:, 2:] - found.boxes[:, :2]).flip(1)
        middle = pooled.permute(0, 2, 3, 1) + (sizes / 4 / S / 2)[:, None, None]
        np.testing.assert_allclose(points, middle.numpy(), atol=1e-9)
    np.testing.assert_array_equal(found.boxes[1], (9, 10, 43, 50))  # halves away from zero, and the last pixel


def test_detectors_pool_from_the_level_that_suits_each_box():
    """A pyramid, whose RoIs come back sorted by size, and R-FCN; zero offsets leave bins on the grid."""
    torch.manual_seed(0)
    picture = torch.rand(3, 96, 96)
    net = FasterRCNN(
        ResNet(10, width=4, stem="small"), 2, roi_pool="modulated", channels=8, hidden=8, roi_hidden=(8,), pooled=3,
        roi_canonical=30.0, post_nms=(10, 10),
    )  # fmt: skip
    boxes = torch.tensor([[2.0, 2.0, 92.0, 92.0], [10.0, 12.0, 16.0, 20.0]])
    still = bins(net, picture, boxes)
    assert still.layer == "pool.deform"
    assert net.training
    np.testing.assert_array_equal(still.moved, still.regular)
    np.testing.assert_allclose(still.regular[1, 0, 2], (12 + 8 / 6 - 0.5, 10 + 5 * 6 / 6 - 0.5))
    np.testing.assert_array_equal(still.mask, 0.5)
    spread(net.pool.deform)
    both, turned = bins(net, picture, boxes), bins(net, picture, boxes.flip(0))
    assert np.abs(both.moved - both.regular).max() > 0.1
    np.testing.assert_allclose(both.moved, turned.moved[::-1], atol=1e-5)

    net = RFCN(ResNet(10, width=4, stem="small", stride=16), 2, width=8, bins=3, roi_pool="deform_ps")
    assert bins(net, picture, boxes).layer == "classifier.deform"
    assert bins(net, picture, boxes, "regressor.deform").moved.shape == (2, 3, 3, 2)


@pytest.mark.parametrize(
    ("kwargs", "error", "says"),
    [
        ({"boxes": torch.zeros(4)}, ValueError, r"\(R, 4\)"),
        ({"layer": "head"}, LookupError, "no deformable RoI layer 'head'; the model has pool"),
        ({"label": 1}, ValueError, "same for all classes"),
        ({"call": lambda net, picture, boxes: None}, LookupError, "was never called"),
        ({"call": lambda net, picture, boxes: net(picture, boxes[:1])}, ValueError, "pooled 1 boxes instead of 3"),
        ({"call": None}, ValueError, "not known how Net takes boxes"),
    ],
)
def test_errors(kwargs, error, says):
    net = Net(DeformRoIPool(2, 8))
    given = {"boxes": BOXES, "call": lambda net, picture, boxes: net(picture, boxes)} | kwargs
    with pytest.raises(error, match=says):
        bins(net, torch.zeros(3, 32, 32), **given)
    with pytest.raises(LookupError, match="its bins do not move"):
        bins(nn.Conv2d(3, 3, 3), torch.zeros(3, 32, 32), BOXES)


def test_drawing_shows_every_bin_twice():
    net = Net(DeformRoIPool(4, 8))
    found = bins(net, torch.zeros(3, 90, 90), BOXES, call=lambda net, picture, boxes: net(picture, boxes))
    axes = canvas.sheet(3, 3).subplots()
    draw(axes, np.zeros((90, 90, 3)), found, 1)
    rings, dots = (c.get_offsets() for c in axes.collections)
    np.testing.assert_array_equal(rings, found.regular[1].reshape(-1, 2)[:, ::-1])
    np.testing.assert_array_equal(dots, found.moved[1].reshape(-1, 2)[:, ::-1])
