"""Recordings of networks that are no chains, against loops in plain Python over every path and every pixel."""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant import _native
from pliant.models import RFCN, FasterRCNN, ResNet
from pliant.nn import DeformConv2d
from pliant.show.recording import record


def scattered(generator, *args, **kwargs):
    """A deformable layer in float64 whose offsets depend on what it sees."""
    layer = DeformConv2d(*args, **kwargs).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
    return layer


class Pyramid(nn.Module):
    """A stem pooled by a function, a residual block, a coarser level, and both joined as pyramids do."""

    def __init__(self, generator):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, 2, padding=1).double()
        self.first = scattered(generator, 4, 4, 3, padding=1, offset_groups=2)
        self.second = scattered(generator, 4, 4, 3, padding=1, version=1)
        self.coarse = nn.Conv2d(4, 4, 3, 2, padding=1).double()
        self.lateral = nn.Conv2d(4, 4, 1).double()
        self.gate = nn.Conv2d(4, 4, 1).double()
        self.out = scattered(generator, 4, 4, (1, 3), padding=(0, 1))

    def forward(self, x):
        x = F.max_pool2d(F.relu_(self.stem(x)), 2)
        x = F.relu(self.second(self.first(x)) + x)
        x = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        top = F.interpolate(self.coarse(x), x.shape[-2:], mode="nearest")
        return {"fine": self.out(self.lateral(x) + top), "coarse": top}


def read(y, x, H, W):
    """Yield the pixels that a bilinear sample reads, in plain Python."""
    for row, column in product(range(math.floor(y), math.floor(y) + 2), range(math.floor(x), math.floor(x) + 2)):
        share = max(0.0, 1 - abs(row - y)) * max(0.0, 1 - abs(column - x))
        if 0 <= row < H and 0 <= column < W and share:
            yield (row, column), share


def taps_of(layer):
    """Return (dy, dx) of every tap relative to the first, groups after each other."""
    (Kh, Kw), (ph, pw), (dh, dw) = layer.kernel_size, layer.padding, layer.dilation
    return [(i * dh - ph, j * dw - pw) for i in range(Kh) for j in range(Kw)] * getattr(layer, "offset_groups", 1)


def brute(chain, position):
    """Return weight and place of every path: ``chain`` holds (layer, offset, mask, size below), the topmost first."""
    found = []
    for choice in product(*(range(len(taps_of(layer))) for layer, *_ in chain)):
        reach = {position: 1.0}
        for (layer, offset, mask, (H, W)), tap in zip(chain, choice, strict=True):
            below, weight, place = defaultdict(float), 0.0, [0.0, 0.0]
            for (row, column), share in reach.items():
                dy, dx = taps_of(layer)[tap]
                y, x = row * layer.stride[0] + dy, column * layer.stride[1] + dx
                if offset is not None:
                    y, x = y + float(offset[0, 2 * tap, row, column]), x + float(offset[0, 2 * tap + 1, row, column])
                    share = share / layer.offset_groups * (1 if mask is None else float(mask[0, tap, row, column]))
                weight, place = weight + share, [place[0] + share * y, place[1] + share * x]
                for pixel, part in read(y, x, H, W):
                    below[pixel] += share * part
            reach = below
        found.append((sum(reach.values()), [c / weight for c in place]))
    return [w for w, _ in found], [p for _, p in found]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


def test_a_network_of_branches_equals_loops_over_every_path(generator):
    """3 · 9 · 18 paths: a lateral 1×1, a gate, a shortcut and a pooled stem below, none of which begins a path."""
    torch.manual_seed(0)  # of the ordinary layers; a path that leaves the map has no weight to divide by in brute()
    net = Pyramid(generator).eval()
    picture = torch.rand(1, 44, 52, generator=generator, dtype=torch.float64)
    inputs = {}
    hooks = [
        m.register_forward_pre_hook(lambda _, x, n=n: inputs.update({n: x[0].clone()})) for n, m in net.named_children()
    ]
    with torch.no_grad():
        net(picture[None])
        for hook in hooks:
            hook.remove()
        chain = []
        for name in ("out", "second", "first"):
            layer = getattr(net, name)
            chain.append((layer, *layer.predict(inputs[name]), inputs[name].shape[-2:]))
    recording = record(net, picture)
    found = recording.trace((5, 6), "out", 3)
    assert found.taps == (3, 9, 18)
    assert found.layers == ("out", "second", "first")
    weights, places = brute(chain, (5, 6))
    np.testing.assert_allclose(found.weights, weights, rtol=1e-10, atol=1e-15)
    # Stem (stride 2, centred) and pooling (stride 2, half a pixel on): centre to centre.
    np.testing.assert_allclose(found.points, 4 * np.array(places) + 1, rtol=1e-10)
    np.testing.assert_array_equal(found.centre, (4 * 5 + 1, 4 * 6 + 1))
    assert recording.map_size("out") == (11, 13)


def test_zero_offsets_give_the_regular_grid():
    net = ResNet(18, deform=(None, None, "v1", "v2"), width=4, stem="small").eval()
    recording = record(net, torch.rand(3, 224, 224))
    for depth in (1, 2, 3):
        found = recording.trace((7, 6), "layer4.1.conv2", depth)
        # Two layers on conv5 (16 pixels apart), and the strided one, which samples conv4 (8 pixels apart).
        steps = (16, 16, 16)[:depth]
        expected = [np.add((112, 96), sum(np.array(t) * s for t, s in zip(path, steps, strict=True)))
                    for path in product(product((-1, 0, 1), repeat=2), repeat=depth)]  # fmt: skip
        np.testing.assert_array_equal(found.points, expected)
        np.testing.assert_array_equal(found.weights, 1.0)
    assert len(recording.trace((7, 6), depth=3).points) == 729


def test_without_offsets_and_masks_the_grid_is_regular(generator):
    net, picture = Pyramid(generator).eval(), torch.rand(1, 44, 52, generator=generator, dtype=torch.float64)
    recording = record(net, picture)
    found = recording.trace((5, 6), "first", 1, regular=True)
    grid = [(4 * (5 + i) + 1, 4 * (6 + j) + 1) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    np.testing.assert_array_equal(found.points, grid * 2)  # two offset groups
    np.testing.assert_array_equal(found.weights, 0.5)
    moved = recording.trace((5, 6), "first", 1)
    assert np.abs(moved.points - found.points).max() > 1
    np.testing.assert_allclose(recording.samples("first")[:, 5, 6], moved.points)
    assert recording.samples("first").shape == (18, 11, 13, 2)


def test_positions_of_a_map_and_points_of_the_picture():
    net = ResNet(10, width=4).eval()
    recording = record(net, torch.rand(3, 100, 130))
    for layer, stride in (("layer1", 4), ("layer3", 16), (None, 32)):
        H, W = recording.map_size(layer)
        assert (-(-100 // stride), -(-130 // stride)) == (H, W)
        for position in product((0, 1, H - 1), (0, 2, W - 1)):
            centre = recording.trace(position, layer, 0).centre
            np.testing.assert_array_equal(centre, np.multiply(position, stride))
            assert recording.nearest(tuple(centre), layer) == position
    assert recording.nearest((-50, 1e4), "layer3") == (0, 8)
    assert recording.nearest((1e4, -50), "layer3") == (6, 0)


@pytest.mark.parametrize("detector", ["fpn", "c4", "rfcn"])
def test_detectors_are_followed_through_padding_and_pyramid(detector):
    torch.manual_seed(0)
    body = ResNet(10, deform=(None, None, None, "v1"), width=4, stem="small", stride=32 if detector == "fpn" else 16)
    if detector == "rfcn":
        net, layer = RFCN(body, 2, width=8, bins=3, roi_pool="deform_ps", post_nms=(20, 20)), "classifier.conv"
    else:
        net = FasterRCNN(body, 2, neck=detector, channels=8, hidden=8, rpn_channels=8, post_nms=(20, 20))
        layer = {"fpn": "neck.output.0", "c4": "neck"}[detector]
    picture = torch.rand(3, 70, 90)
    recording = record(net, picture)
    assert net.training
    found = recording.trace((3, 4), layer, 1)
    stride = {"fpn": 2, "c4": 8, "rfcn": 8}[detector]
    np.testing.assert_array_equal(found.centre, (3 * stride, 4 * stride))
    if detector == "fpn":
        assert found.layers == ("neck.output.0",)
        top = recording.trace((3, 4), layer, 2, through="neck.lateral.3")
        assert top.layers == ("neck.output.0", "backbone.layer4.0.conv2")
    # The detector's own output is no map: the last deformable layer stands for it.
    assert recording.trace((1, 1), None, 1).layers == ("backbone.layer4.0.conv2",)
    # What stands in the way is RoI pooling, also for the layers after it.
    head, way = ("classifier", "classifier.deform") if detector == "rfcn" else ("fc1", "pool")
    with pytest.raises(TypeError, match=f"module '{way}' .* cannot be followed"):
        recording.trace((0, 0), head)


class Channels(nn.Module):
    """Channels last, a fully connected layer on them, a slice, a concatenation and a padded batch."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm, self.fc = nn.LayerNorm(4), nn.Linear(4, 4)
        self.up = nn.ConvTranspose2d(8, 2, 2, 2)

    def forward(self, x):
        batch = x.new_zeros(1, 1, 20, 24)
        batch[0, :, 2 : 2 + x.shape[2], 3 : 3 + x.shape[3]].copy_(x[0])
        x = self.conv(batch).permute(0, 2, 3, 1)
        x = self.fc(self.norm(x)).permute(0, 3, 1, 2)[:, :, 1::2, 4:]
        return self.up(torch.cat((x, x), 1))


def test_layouts_slices_joins_and_batches_keep_their_places():
    recording = record(Channels(), torch.rand(1, 16, 20))
    # Output (2i, ·) of the transposed convolution is (i, ·) below, that row 2i + 1 of the batch, and it row 2i − 1.
    support = recording.support((8, 6))
    assert np.argwhere(support).tolist() == [[r, c] for r in (6, 7, 8) for c in (3, 4, 5)]
    np.testing.assert_array_equal(support[support > 0], 1.0)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear"])
@pytest.mark.parametrize("size", [(20, 27), (5, 4)])
def test_interpolation_is_its_gradient(mode, size):
    class Resized(nn.Module):
        def forward(self, x):
            return F.interpolate(x, size, mode=mode)

    picture = torch.rand(1, 9, 11, dtype=torch.float64)
    recording = record(Resized(), picture)
    for position in ((0, 0), (2, 3), (size[0] - 1, size[1] - 1)):
        x = picture[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.interpolate(x, size, mode=mode)[0, 0][position], x)
        np.testing.assert_allclose(recording.support(position), gradient[0, 0].numpy(), atol=1e-12)


def test_attention_is_an_error_that_names_its_module_unless_it_is_said_to_keep_places():
    class Mixing(nn.Module):
        def forward(self, x):
            flat = x.flatten(2)
            return (flat @ (flat.transpose(1, 2) @ flat).softmax(-1)).view_as(x)

    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), Mixing(), nn.Conv2d(2, 1, 3, padding=1))
    picture = torch.rand(1, 8, 8)
    with pytest.raises(TypeError, match=r"module '1' \(Mixing\) cannot be followed"):
        record(net, picture).trace((4, 4), "2")
    for still in ("1", Mixing):
        assert record(net, picture, still=[still]).trace((4, 4)).layers == ("2", "0")
    assert record(net, picture).trace((4, 4), "0").points.shape == (9, 2)


def test_layers_that_run_on_the_reference_are_followed_too(generator, monkeypatch):
    net, picture = Pyramid(generator).eval(), torch.rand(1, 44, 52, generator=generator, dtype=torch.float64)
    kernel = record(net, picture)
    monkeypatch.setattr(_native, "chosen", lambda *_: False)
    reference = record(net, picture)
    assert list(reference.deformable()) == list(kernel.deformable()) == ["first", "second", "out"]
    found, expected = reference.trace((5, 6), "out", 3), kernel.trace((5, 6), "out", 3)
    assert found.layers == expected.layers
    np.testing.assert_allclose(found.points, expected.points, rtol=1e-10)
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-10, atol=1e-15)
    assert reference.layers() == kernel.layers()


def test_calls_and_outputs_are_told_apart_and_what_is_not_there_is_an_error():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x):
            return self.conv(x), self.conv(F.avg_pool2d(x, 2))

    recording = record(Shared(), torch.rand(1, 8, 12))
    assert recording.map_size("conv", call=0) == recording.map_size(output=0) == (8, 12)
    assert recording.map_size("conv") == recording.map_size() == (4, 6)
    with pytest.raises(ValueError, match="called 2 times"):
        recording.trace((0, 0), "conv", call=2)
    with pytest.raises(ValueError, match="returned 2 maps"):
        recording.trace((0, 0), output=5)
    with pytest.raises(KeyError, match="'other' made no map"):
        recording.trace((0, 0), "other")
    with pytest.raises(ValueError, match=r"\(2, 1, 8, 8\)"):
        record(Shared(), torch.rand(2, 1, 8, 8))


def test_the_model_is_left_as_it_was():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    record(net, torch.rand(1, 8, 8))
    assert [m.training for m in net] == [True, False, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_many_positions_of_a_large_picture_are_cheap():
    """729 points at a position take no forward of their own."""
    net = ResNet(18, deform=(None, None, None, "v1"), width=8).eval()
    recording = record(net, torch.rand(3, 480, 640))
    calls = []
    net.conv1.register_forward_hook(lambda *_: calls.append(1))
    for position in product(range(4, 11, 3), range(4, 16, 3)):
        assert len(recording.trace(position, None, 3).points) == 729
    assert not calls


class _Calls(nn.Module):
    """A convolution of one tap per output, then a function; gradients of the output show where it reads."""

    def __init__(self, channels: int, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 1, bias=False)
        self.function = function
        nn.init.ones_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


def _grid(x: Tensor, padding: str, align: bool) -> Tensor:
    torch.manual_seed(1)
    at = 2.6 * torch.rand(1, 5, 6, 2, dtype=x.dtype) - 1.3
    return F.grid_sample(x, at, padding_mode=padding, align_corners=align)


MOVES: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "reflect": (1, lambda x: F.pad(x, (2, 3, 1, 4), mode="reflect")),
    "replicate": (1, lambda x: F.pad(x, (2, 0, 1, 4), mode="replicate")),
    "reflect, negative": (1, lambda x: F.pad(x, (-2, 3, 1, -1), mode="reflect")),
    "shuffle": (4, lambda x: F.pixel_shuffle(x, 2)),
    "unshuffle": (1, lambda x: F.pixel_unshuffle(x[..., :6, :8], 2)),
    "roll": (1, lambda x: x.roll((2, -3), (2, 3))),
    "roll one": (1, lambda x: x.roll(1, -1)),
    "flip": (1, lambda x: x.flip(3)),
    "flip both": (1, lambda x: x.flip((2, 3))),
    "stack": (4, lambda x: torch.stack((x, 2 * x), 2).flatten(1, 2)),
    "where": (1, lambda x: torch.where(x > -9, x, 0.0)),
    "hardswish": (1, lambda x: F.hardswish(x + 9, inplace=True)),
    **{
        f"grid {padding} {align}": (1, lambda x, padding=padding, align=align: _grid(x, padding, align))
        for padding, align in (("zeros", True), ("zeros", False), ("border", False), ("reflection", True))
    },
}


@pytest.mark.parametrize("name", MOVES)
def test_operators_of_other_networks_read_where_their_gradients_say(name: str) -> None:
    channels, function = MOVES[name]
    net = _Calls(channels, function).double()
    picture = torch.randn(1, 1, 7, 9, dtype=torch.double).requires_grad_()
    found = record(net, picture)
    output = net(picture)
    Ho, Wo = output.shape[2:]
    assert found.map_size() == (Ho, Wo) and found.stop() == ""
    for i in range(Ho):
        for j in range(Wo):
            (gradient,) = torch.autograd.grad(output[0, :, i, j].sum(), picture, retain_graph=True)
            # Means over the channels that one position mixes, and nothing of how strongly they respond.
            wanted = gradient[0, 0] / max(1.0, float(gradient.sum()))
            if name.startswith("grid"):
                wanted = gradient[0, 0]
            support = torch.from_numpy(found.support((i, j)))
            torch.testing.assert_close(support, wanted, rtol=0, atol=1e-9)


def test_what_stops_a_path_is_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, padding=1)
            self.windows = nn.Unfold(2, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.windows(self.conv(x)).mean(1)

    found = record(Net(), torch.zeros(1, 8, 8))
    assert found.stop() == (
        "module 'windows' (Unfold) cannot be followed: it calls aten::im2col, which lays windows or positions out in "
        "one dimension"
    )
    assert found.default_layer() == "conv" and found.stop("conv") == ""
    with pytest.raises(ValueError, match=r"^trace: no map of this model can be traced; module 'windows' \(Unfold\)"):
        record(nn.Sequential(OrderedDict(windows=nn.Unfold(2))), torch.zeros(1, 8, 8)).default_layer()


def test_a_map_of_one_position_is_not_taken_by_default() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    assert record(net, torch.zeros(1, 8, 8)).default_layer() == "0"


@pytest.mark.parametrize("implementation", ["native", "reference"])
def test_a_layer_with_a_guide_is_followed(implementation, monkeypatch):
    class Aligned(nn.Module):
        def __init__(self):
            super().__init__()
            self.feature = nn.Conv2d(3, 4, 3, padding=1)
            self.align = DeformConv2d(3, 4, 3, padding=1, guide_channels=4)

        def forward(self, image):
            return self.align(image, guide=self.feature(image))

    torch.manual_seed(0)
    net = Aligned().eval()
    nn.init.normal_(net.align.conv_offset.weight, std=0.1)
    if implementation == "reference":
        monkeypatch.setattr(_native, "chosen", lambda *_: False)
    image = torch.rand(1, 3, 9, 8)
    offset, _ = net.align.predict(image, net.feature(image))
    found = record(net, image).deformable()["align"].offset
    np.testing.assert_allclose(found, offset[0].detach().unflatten(0, (9, 2)), rtol=1e-6)
