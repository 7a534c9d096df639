"""Histograms of offsets against NumPy's of what the layers predict."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from pliant.nn import DeformConv2d, DeformPSRoIPool, DeformRoIPool, OffsetHistory
from pliant.nn.histograms import summed

ROIS = torch.tensor([[0.0, 1, 1, 7, 7], [0.0, 2, 2, 9, 9]])
EDGES, ROI_EDGES = (0.0, 0.5, 1.0, 2.0), (0.0, 0.05, 0.1)
OPEN, ROI_OPEN = (0.0, 0.5, 1.0, np.inf), (0.0, 0.05, np.inf)


class Net(nn.Module):
    """A layer of each kind, whose offsets depend on the picture."""

    def __init__(self):
        super().__init__()
        self.conv = DeformConv2d(1, 8, 3, padding=1, offset_groups=1)
        self.pool = DeformRoIPool(2, 8, version=2, hidden=())
        self.parts = DeformPSRoIPool(2, 8, 2)

    def forward(self, x):
        x = self.conv(x)
        return self.pool(x, ROIS).sum() + self.parts(x, x, ROIS).sum()


@pytest.fixture
def net():
    torch.manual_seed(0)
    made = Net()
    for branch in (made.conv.conv_offset, made.pool.offset_fc, made.parts.conv_offset):
        for parameter in branch.parameters():
            nn.init.normal_(parameter, std=1.0)
    return made


def lengths(net, picture):
    """Return how long the offsets of every layer are: name → float64 array."""
    with torch.no_grad():
        offset = net.conv.predict(picture)[0].double().reshape(9, 2, -1)
        x = net.conv(picture)
        moved = 0.1 * net.pool.predict(x, ROIS)[0].double()
        maps = 0.1 * net.parts.conv_offset(x).double().reshape(2, 2, 4, -1)
    return {name: o.norm(dim=1).flatten().numpy() for name, o in (("conv", offset), ("pool", moved), ("parts", maps))}


def test_every_length_is_counted(net):
    picture = torch.rand(1, 1, 10, 10)
    with OffsetHistory(net, every=2, edges=EDGES, roi_edges=ROI_EDGES) as seen:
        for _ in range(3):
            net(picture)
        net.eval()
        net(picture)
    names = ("conv", "pool", "parts")
    assert [(r["layer"], r["step"]) for r in seen.records] == [(n, s) for s in (0, 2) for n in names]
    assert json.loads(json.dumps(seen.records)) == seen.records
    for record, (name, values) in zip(seen.records, lengths(net, picture).items(), strict=False):
        assert record["layer"] == name
        np.testing.assert_array_equal(record["counts"], np.histogram(values, OPEN if name == "conv" else ROI_OPEN)[0])
        assert record["mean"] == pytest.approx(values.mean())
        assert record["nonfinite"] == 0
        assert record["unit"] == ("map pixels" if name == "conv" else "extents of the RoI")
    assert not net.conv.conv_offset._forward_hooks


def test_evaluations_add_up(net):
    pictures = [torch.rand(1, 1, 10, side) for side in (10, 12, 14)]
    net.eval()
    with OffsetHistory(net, every=1, edges=EDGES, roi_edges=ROI_EDGES, training=False, most=2) as seen:
        net.train()
        net(pictures[2])
        net.eval()
        for picture in pictures:
            net(picture)
    found = summed(seen.records)
    first, second = (lengths(net, picture) for picture in pictures[:2])
    assert list(found) == ["conv", "pool", "parts"]
    for name, histogram in found.items():
        both = np.concatenate((first[name], second[name]))
        np.testing.assert_array_equal(histogram["counts"], np.histogram(both, OPEN if name == "conv" else ROI_OPEN)[0])
        assert histogram["mean"] == pytest.approx(both.mean())


def test_what_is_not_finite_is_counted_apart():
    layer = DeformConv2d(1, 1, 3, padding=1, version=1)
    with torch.no_grad():
        layer.conv_offset.bias[2] = float("nan")
        layer.conv_offset.bias[4] = float("inf")
    with OffsetHistory(layer, every=1) as seen:
        layer(torch.zeros(1, 1, 4, 5))
        with torch.no_grad():
            layer.conv_offset.bias.fill_(float("nan"))
        layer(torch.zeros(1, 1, 4, 5))
    assert [(sum(r["counts"]), r["nonfinite"], r["mean"]) for r in seen.records] == [(140, 40, 0.0), (0, 180, None)]
    both = summed(seen.records)[""]
    assert (sum(both["counts"]), both["nonfinite"], both["mean"]) == (140, 220, 0.0)
    assert summed(seen.records[1:])[""]["mean"] is None


@pytest.mark.parametrize("wrong", [{"every": 0}, {"most": 0}, {"edges": (0.0,)}, {"roi_edges": (1.0, 0.0)}])
def test_errors(wrong):
    with pytest.raises(ValueError, match="OffsetHistory"):
        OffsetHistory(DeformConv2d(1, 1, 3), **wrong)
