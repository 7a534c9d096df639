"""Gradients against finite differences, regions against every subset of cells."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from pliant.models import RFCN, FasterRCNN, ResNet
from pliant.nn import DeformConv2d, DeformPSRoIPool, DeformRoIPool
from pliant.show.influence import At, OfBox, locations, receptive_field, saliency_region

STEP = 1e-6


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(5)


def network(generator):
    """Two deformable layers, the second with two offset groups and masks, all offsets between pixels."""
    net = nn.Sequential(
        DeformConv2d(2, 4, 3, padding=1, version=1), nn.Tanh(), DeformConv2d(4, 3, 3, 2, padding=1, offset_groups=2)
    ).double()
    for parameter in net.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
    return net


def pushed(branch, index, by, node, net, picture):
    """Return the length of a node's answer when one number of a branch's output is moved."""

    def move(module, inputs, output):
        output = output.clone()
        output[index] += by
        return output

    handle = branch.register_forward_hook(move)
    with torch.no_grad():
        length = float(node(net, picture).norm())
    handle.remove()
    return length


def test_receptive_field_is_a_finite_difference(generator):
    net = network(generator)
    picture = torch.rand(1, 2, 9, 8, generator=generator, dtype=torch.float64)
    node = At("2", (2, 1))
    field = receptive_field(net, picture, node)
    assert field.shape == (9, 8)
    with torch.no_grad():
        for y, x in itertools.product((0, 2, 3, 5, 8), (0, 1, 3, 7)):
            slopes = []
            for c in range(2):
                ends = []
                for by in (STEP, -STEP):
                    moved = picture.clone()
                    moved[0, c, y, x] += by
                    ends.append(float(node(net, moved).norm()))
                slopes.append((ends[0] - ends[1]) / (2 * STEP))
            np.testing.assert_allclose(field[y, x], np.hypot(*slopes), rtol=1e-5, atol=1e-8)
    assert 0 < (field > 0).sum() < field.size


def test_sampling_locations_are_finite_differences(generator):
    net = network(generator)
    picture = torch.rand(1, 2, 9, 8, generator=generator, dtype=torch.float64)
    node = At("", (2, 1))
    found = locations(net, picture[0], node)
    assert list(found) == ["0", "2"]
    assert found["0"].gradient.shape == (9, 9, 8, 2)
    assert found["2"].gradient.shape == (18, 5, 4, 2)
    checked = 0
    for name, places in (("0", [(4, 2), (5, 1), (3, 3), (0, 7)]), ("2", [(2, 1), (0, 0)])):
        for tap, (row, column), axis in itertools.product(range(0, 9, 2), places, range(2)):
            index = (0, 2 * tap + axis, row, column)
            ends = [pushed(net[int(name)].conv_offset, index, by, node, net, picture) for by in (STEP, -STEP)]
            slope = (ends[0] - ends[1]) / (2 * STEP)
            np.testing.assert_allclose(found[name].gradient[tap, row, column, axis], slope, rtol=1e-4, atol=1e-8)
            checked += slope != 0
    assert checked > 30
    # Of the last layer only the samples of the node itself count.
    strength = found["2"].strength
    assert (strength[:, 2, 1] > 0).all()
    assert strength.sum() == pytest.approx(strength[:, 2, 1].sum())


@pytest.mark.parametrize("kind", ["plain", "modulated", "position-sensitive"])
def test_bin_locations_are_finite_differences_per_pixel(kind):
    torch.manual_seed(1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 8, 3, padding=1)
            if kind == "position-sensitive":
                self.pool = DeformPSRoIPool(2, 8, 2, 0.5, sample_per_part=3)
            else:
                version = 1 if kind == "plain" else 2
                self.pool = DeformRoIPool((3, 2), 8, 0.5, 2, version=version, hidden=(6,))

        def forward(self, picture):
            x = self.conv(picture)
            rois = x.new_tensor([[0, 3.3, 4.2, 21.7, 17.4], [0, 9.1, 2.3, 19.2, 24.9]])
            return self.pool(x, x, rois) if kind == "position-sensitive" else self.pool(x, rois)

    net = Net().double()
    for name, parameter in net.pool.named_parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn_like(parameter) * (0.5 if "bias" in name else 0.1))
    picture = torch.rand(1, 2, 16, 16, dtype=torch.float64)

    def node(model, picture):
        return model(picture)[1]

    found = locations(net, picture, node)["pool"]
    predict = net.pool.predict
    x1, y1, x2, y2 = (9, 2, 20, 26) if kind == "position-sensitive" else (9.1, 2.3, 19.2, 24.9)
    factor = (net.pool.trans_std if kind == "position-sensitive" else net.pool.gamma) * np.array([y2 - y1, x2 - x1])

    def length(index, by):
        def moved(*args):
            result = predict(*args)
            offset, *mask = result if isinstance(result, tuple) else (result,)
            offset = offset.clone()
            offset[index] += by
            return (offset, *mask) if isinstance(result, tuple) else offset

        net.pool.predict = moved
        with torch.no_grad():
            value = float(node(net, picture).norm())
        del net.pool.predict
        return value

    assert not found.strength[0].any()  # the node is the other RoI
    moves = 0
    for bin_, axis in itertools.product(itertools.product(range(2), range(2)), range(2)):
        classes = range(2) if kind == "position-sensitive" else (0,)
        for label in classes:
            index = (1, 2 * label + 1 - axis, *bin_)  # the operators' offsets have x first
            slope = (length(index, STEP) - length(index, -STEP)) / (2 * STEP) / factor[axis]
            own = found.gradient[1, label] if kind == "position-sensitive" else found.gradient[1]
            np.testing.assert_allclose(own[(*bin_, axis)], slope, rtol=1e-4, atol=1e-8)
            moves += slope != 0
    assert moves >= 6


def test_regions_are_the_smallest_of_all_subsets_where_contributions_add_up():
    """A positive linear node over 3 × 4 cells: all 4096 regions are tried."""
    weights = torch.tensor([[5.0, 0.2, 0.1, 3.0], [0.3, 7.0, 0.4, 0.15], [0.25, 0.05, 2.0, 0.35]], dtype=torch.float64)
    layer = nn.Conv2d(1, 1, (3, 4), bias=False).double()
    layer.weight.data.copy_(weights)
    picture = torch.ones(1, 3, 4, dtype=torch.float64)
    for bound in (0.02, 0.1, 0.3, 0.6):
        found = saliency_region(layer, picture, At("", (0, 0)), error=bound, cell=1, fill=0.0)
        best = min(
            sum(keep)
            for keep in itertools.product((0, 1), repeat=12)
            if float((weights.flatten() * (1 - torch.tensor(keep))).sum() / weights.sum()) <= bound
        )
        assert found.mask.sum() == best
        assert found.error <= bound
        assert found.share == best / 12


@pytest.mark.parametrize("bound", [0.01, 0.05])
def test_the_bound_holds_and_the_region_lies_in_the_receptive_field(generator, bound):
    net = network(generator)
    for layer in (net[0], net[2]):
        layer.conv_offset.weight.data.zero_()  # or painting moves the samples
    picture = torch.rand(1, 2, 30, 34, generator=generator, dtype=torch.float64)
    node = At("2", (4, 5))
    found = saliency_region(net, picture, node, error=bound, cell=2)
    colour = picture.mean((2, 3), keepdim=True)
    with torch.no_grad():
        full, part = node(net, picture), node(net, torch.where(torch.from_numpy(found.mask), picture, colour))
    error = float((part - full).norm() / full.norm())
    assert found.error == pytest.approx(error)
    assert error <= bound
    field = receptive_field(net, picture, node) > 0
    cells = np.add.reduceat(np.add.reduceat(field, range(0, 30, 2), 0), range(0, 34, 2), 1) > 0
    assert not (found.mask & ~cells.repeat(2, 0).repeat(2, 1)).any()
    assert 0 < found.share < 0.3


def test_detectors_answer_for_a_box():
    torch.manual_seed(0)
    picture, box = torch.rand(3, 64, 64), (12.0, 10.0, 40.0, 44.0)
    body = ResNet(10, deform=(None, None, None, "v2"), width=4, stem="small", stride=16)
    net = FasterRCNN(body, 2, neck="c4", roi_pool="deform", channels=8, hidden=8, rpn_channels=8, pooled=3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    field = receptive_field(net, picture, OfBox(box))
    assert field.shape == (64, 64)
    assert field.any()
    found = locations(net, picture, OfBox(box, label=1))
    assert list(found) == ["backbone.layer4.0.conv1", "backbone.layer4.0.conv2", "pool.deform"]
    assert found["pool.deform"].strength.shape == (1, 3, 3)
    assert found["pool.deform"].strength.any()
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert "predict" not in vars(net.pool.deform)

    part = RFCN(ResNet(10, width=4, stem="small", stride=16), 2, width=8, bins=3, roi_pool="deform_ps")
    assert locations(part, picture, OfBox(box))["classifier.deform"].strength.shape == (1, 3, 3, 3)
    with pytest.raises(TypeError, match="must be a detector"):
        receptive_field(body, picture, OfBox(box))


@pytest.mark.parametrize(
    ("run", "error", "says"),
    [
        (lambda net, x: receptive_field(net, x, At("9", (0, 0))), LookupError, "no module '9'"),
        (lambda net, x: receptive_field(net, x, At("0", (9, 0))), ValueError, "not on the output"),
        (lambda net, x: receptive_field(net, x, At("0", (0, 0), call=1)), LookupError, "called 1 times"),
        (lambda net, x: receptive_field(net, x[None].repeat(2, 1, 1, 1), At("0", (0, 0))), ValueError, "picture must"),
        (lambda net, x: receptive_field(net, x, lambda m, p: torch.ones(2)), ValueError, "does not depend"),
        (lambda net, x: saliency_region(net, x, At("0", (0, 0)), error=0), ValueError, "error=0"),
        (lambda net, x: saliency_region(net, x, lambda m, p: 0 * p), ValueError, "is 0, so no part"),
    ],
)
def test_errors(run, error, says):
    net = nn.Sequential(nn.Conv2d(1, 2, 3))
    with pytest.raises(error, match=says):
        run(net, torch.rand(1, 8, 8))
    assert not net[0]._forward_hooks


class Shifted(nn.Module):
    """A made-up layer that reads the map at one moved place per position, x first, in tenths of a pixel."""

    branches, axes, unit, offset_scale, offset_lr_mult, modulated = ("where",), "xy", "pixels", 0.1, 1.0, False

    def __init__(self):
        super().__init__()
        self.where = nn.Conv2d(1, 2, 1)

    def predict(self, input):
        return self.where(input)

    def forward(self, input):
        H, W = input.shape[2:]
        moves = self.offset_scale * self.offsets(self.predict(input))
        grid = torch.stack(torch.meshgrid(torch.arange(W), torch.arange(H), indexing="xy"), -1).to(input)
        at = 2 * (grid + moves) / (input.new_tensor([W, H]) - 1) - 1
        return nn.functional.grid_sample(input, at, align_corners=True)

    def offsets(self, predicted):
        return predicted.movedim(1, -1)

    def map_size(self, input):
        return tuple(input.shape[2:])

    def inside(self, moves, size):
        return None


def test_a_made_up_layer_is_asked_as_ours_are():
    """The gradient is per pixel, (y, x), whatever order and scale the layer's offsets have."""
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
    slope = (3 * y + 7 * x)[None].double()  # one pixel down adds 3, one to the right 7
    net = Shifted().double()
    nn.init.zeros_(net.where.weight)
    net.where.bias.data.copy_(torch.tensor([2.0, 4.0]))
    found = locations(net, slope, At("", (2, 3)))
    assert list(found) == [""]
    assert found[""].gradient.shape == (5, 6, 2)
    np.testing.assert_allclose(found[""].gradient[2, 3], (3, 7), rtol=1e-9)
    assert np.count_nonzero(found[""].strength) == 1
