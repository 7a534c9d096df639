"""The deformable layer: it starts as the convolution it replaces, and learns to look elsewhere."""

from __future__ import annotations

import copy
import functools
import pickle
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.nn import DeformConv2d, OffsetStatistics
from pliant.ops import deform_conv2d
from pliant.testing import TOLERANCE, error


@functools.cache
def _trained(**options: Any) -> nn.Conv2d:
    """Train a small network for a few steps; return its middle convolution, in float64."""
    torch.manual_seed(0)
    middle = nn.Conv2d(8, 12, dtype=torch.float64, **options)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, dtype=torch.float64), nn.ReLU(), middle, nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    )
    x, target = torch.randn(8, 3, 13, 11, dtype=torch.float64), torch.randn(8, 12, 1, 1, dtype=torch.float64)
    before = middle.weight.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        F.mse_loss(net(x), target).backward()
        optimizer.step()
    assert not torch.equal(before, middle.weight)
    return middle.requires_grad_(False)


GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "padding": 1, "stride": 2},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "crooked": {"kernel_size": (3, 2), "padding": (0, 1), "stride": (1, 2), "dilation": (2, 1)},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 4},
    "without bias": {"kernel_size": 3, "bias": False},
    "pointwise": {"kernel_size": 1},
    "same": {"kernel_size": 3, "padding": "same"},
    "same even": {"kernel_size": (4, 2), "padding": "same"},
    "same dilated": {"kernel_size": (2, 3), "padding": "same", "dilation": (3, 2)},
}


def _deformable(conv: nn.Conv2d, options: dict[str, Any], **more: Any) -> DeformConv2d:
    layer = DeformConv2d(8, 12, **options, **more, dtype=conv.weight.dtype)
    layer.load_state_dict(conv.state_dict(), strict=False)
    return layer


# nn.Conv2d warns about its own copy where "same" pads unevenly.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("offset_groups", [1, 2])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_starts_as_the_trained_convolution(geometry: str, offset_groups: int, version: int) -> None:
    options = GEOMETRIES[geometry]
    conv = _trained(**options)
    layer = _deformable(conv, options, version=version, offset_groups=offset_groups)
    torch.manual_seed(1)
    x = torch.randn(2, 8, 13, 11, dtype=torch.float64)
    expected = conv(x)
    assert error(layer(x), expected) < 1e-12
    assert error(layer.float()(x.float()), expected) < 1e-5


def test_mask_scale_one_starts_at_exactly_half() -> None:
    options = {"kernel_size": 3, "padding": 1, "bias": False}
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    conv = _trained(**options)
    whole, half = (_deformable(conv, options, mask_scale=scale) for scale in (2.0, 1.0))
    assert torch.equal(2 * half(x), whole(x))


@pytest.mark.parametrize("version", [1, 2])
def test_equals_its_parts(version: int) -> None:
    torch.manual_seed(0)
    layer = DeformConv2d(
        4, 6, (3, 2), 2, 1, groups=2, offset_groups=2, version=version, mask_scale=1.5, boundary="clamp"
    )
    nn.init.normal_(layer.conv_offset.weight, std=0.1)
    x = torch.randn(2, 4, 9, 8)
    offset, mask = layer.predict(x)
    raw = F.conv2d(x, layer.conv_offset.weight, layer.conv_offset.bias, 2, 1)
    assert offset.shape[1] == 2 * 2 * 6
    assert torch.equal(offset, raw[:, :24])
    if version == 1:
        assert mask is None
    else:
        assert torch.equal(mask, 1.5 * raw[:, 24:].sigmoid())
    y = deform_conv2d(x, offset, layer.weight, layer.bias, 2, 1, 1, mask, boundary="clamp")
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize("version", [1, 2])
def test_a_guide_predicts_instead_of_the_input(version: int) -> None:
    torch.manual_seed(0)
    layer = DeformConv2d(4, 6, (3, 2), 2, 1, 2, offset_groups=2, version=version, guide_channels=5)
    assert "guide_channels=5" in repr(layer)
    branch = layer.conv_offset
    assert (branch.in_channels, branch.stride, branch.padding, branch.dilation) == (5, (1, 1), (2, 1), (2, 2))
    x, guide = torch.randn(2, 4, 9, 8), torch.randn(2, 5, 4, 4)
    assert error(layer(x, guide), F.conv2d(x, layer.weight, layer.bias, 2, 1, 2)) < 1e-5
    nn.init.normal_(branch.weight, std=0.1)
    offset, mask = layer.predict(x, guide)
    assert offset.shape == (2, 24, 4, 4)
    assert torch.equal(layer(x, guide), deform_conv2d(x, offset, layer.weight, layer.bias, 2, 1, 2, mask))
    assert not torch.equal(layer(x, guide), layer(x, guide.flip(3)))
    gradient = torch.autograd.grad(layer(x, guide.requires_grad_()).sum(), guide)[0]
    assert gradient.abs().max() > 0


def test_guides_are_checked() -> None:
    x, guide = torch.zeros(1, 4, 8, 8), torch.zeros(1, 5, 8, 8)
    layer = DeformConv2d(4, 4, 3, padding=1, guide_channels=5)
    with pytest.raises(TypeError, match=r"^DeformConv2d: guide must be a tensor, this layer predicts"):
        layer(x)
    with pytest.raises(ValueError, match=r"^DeformConv2d: guide must have 5 channels, got shape \(1, 4, 8, 8\)$"):
        layer(x, x)
    with pytest.raises(ValueError, match=r"^deform_conv2d: offset must have shape .* = \(1, 18, 8, 8\), got"):
        layer(x, guide[..., :7])
    with pytest.raises(TypeError, match=r"^DeformConv2d: guide must be None, this layer was made without"):
        DeformConv2d(4, 4, 3, padding=1)(x, guide)
    with pytest.raises(ValueError, match="guide_channels must be at least 1 or None, got 0"):
        DeformConv2d(4, 4, 3, guide_channels=0)


def test_a_layer_with_a_guide_knows_the_map_where_it_keeps_sizes() -> None:
    guide = torch.zeros(1, 5, 8, 7)
    same = DeformConv2d(4, 4, (4, 3), padding="same", guide_channels=5)
    assert same(torch.zeros(1, 4, 8, 7), guide).shape == (1, 4, 8, 7)
    assert same.map_size(F.pad(guide, (0, 0, 0, 1))) == (8, 7)
    strided = DeformConv2d(4, 4, 3, 2, 1, guide_channels=5)
    assert strided.map_size(guide) == ()
    with OffsetStatistics(nn.ModuleList([same, strided])) as statistics:
        same(torch.zeros(1, 4, 8, 7), guide)
        strided(torch.zeros(1, 4, 16, 14), guide)
    report = statistics.report()
    # Of 8·4 rows of samples, one lies above the map and three below; of 7·3 columns, one on each side.
    assert report["0"]["outside"] == pytest.approx(1 - 28 / 32 * 19 / 21)
    assert "outside" not in report["1"]


def test_the_branch_follows_the_geometry() -> None:
    layer = DeformConv2d(4, 6, (3, 2), (2, 1), (2, 1), (2, 3), groups=2, offset_groups=2)
    branch = layer.conv_offset
    assert (branch.kernel_size, branch.stride, branch.padding, branch.dilation) == ((3, 2), (2, 1), (2, 1), (2, 3))
    assert (branch.in_channels, branch.out_channels, branch.groups) == (4, 3 * 2 * 6, 1)
    assert not branch.weight.any()
    assert not branch.bias.any()
    assert DeformConv2d(4, 6, 3, version=1).conv_offset.out_channels == 18
    assert DeformConv2d(4, 6, 3, version=1).offset_lr_mult == 1.0
    assert DeformConv2d(4, 6, 3, version=2).offset_lr_mult == 0.1


def test_initialises_as_a_convolution_does() -> None:
    conv, layer = nn.Conv2d(16, 32, 3), DeformConv2d(16, 32, 3)
    for module in (conv, layer):
        torch.manual_seed(0)
        module.reset_parameters()
    assert torch.equal(layer.weight, conv.weight)
    assert torch.equal(layer.bias, conv.bias)


def test_names_in_the_state() -> None:
    layer = DeformConv2d(3, 4, 3)
    assert list(layer.state_dict()) == ["weight", "bias", "conv_offset.weight", "conv_offset.bias"]
    assert list(DeformConv2d(3, 4, 3, bias=False).state_dict()) == ["weight", "conv_offset.weight", "conv_offset.bias"]
    other = DeformConv2d(3, 4, 3)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_dtype_and_device_are_the_parameters(dtype: torch.dtype) -> None:
    layer = DeformConv2d(4, 4, 3, device="meta", dtype=dtype)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", dtype)}
    assert layer(torch.empty(2, 4, 9, 9, device="meta", dtype=dtype)).shape == (2, 4, 7, 7)
    real = layer.to_empty(device="cpu")
    real.reset_parameters()
    y = real(torch.randn(1, 4, 9, 9, dtype=dtype))
    assert y.dtype == dtype
    assert y.isfinite().all()


def test_bfloat16_model() -> None:
    options = GEOMETRIES["plain"]
    conv = _trained(**options)
    layer = _deformable(conv, options).bfloat16()
    x = torch.randn(2, 8, 9, 9, dtype=torch.bfloat16)
    y = layer(x)
    assert y.dtype == torch.bfloat16
    exact = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
    assert error(y, exact) < TOLERANCE[torch.bfloat16]
    y.square().mean().backward()
    assert all(p.grad.dtype == torch.bfloat16 and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("version", [1, 2])
def test_autocast_keeps_offsets_in_float32(version: int) -> None:
    layer = DeformConv2d(8, 8, 3, padding=1, version=version)
    x = torch.randn(2, 8, 9, 9, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        offset, mask = layer.predict(x)
        y = layer(x)
    assert offset.dtype == torch.float32
    assert mask is None or mask.dtype == torch.float32
    assert y.dtype == torch.bfloat16
    assert error(y, F.conv2d(x, layer.weight, layer.bias, padding=1)) < TOLERANCE[torch.bfloat16]
    y.float().square().mean().backward()
    assert x.grad.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().max() > 0 for p in layer.parameters())


def test_channels_last_stays() -> None:
    torch.manual_seed(0)
    layer = DeformConv2d(8, 6, 3, padding=1)
    nn.init.normal_(layer.conv_offset.weight, std=0.1)
    x = torch.randn(2, 8, 9, 7)
    expected = layer(x)
    layer = layer.to(memory_format=torch.channels_last)
    y = layer(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert error(y, expected) < 1e-5


def test_copies_and_pickles() -> None:
    layer = DeformConv2d(4, 4, 3, padding="same", version=1, offset_groups=2)
    nn.init.normal_(layer.conv_offset.weight, std=0.1)
    x = torch.randn(1, 4, 6, 6)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
        assert repr(other) == repr(layer)
    assert "version=1, offset_groups=2" in repr(layer)


def _learns(layer: DeformConv2d, x: Tensor, target: Tensor) -> list[float]:
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.mse_loss(layer(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("version", [1, 2])
def test_learns_to_look_elsewhere(version: int) -> None:
    # The target is the input two pixels to the right, which no 1×1 convolution can see.
    torch.manual_seed(0)
    smooth = F.avg_pool2d(torch.randn(4, 2, 20, 20), 5, stride=1)
    x, target = smooth[..., :14], smooth[..., 2:]
    layer = DeformConv2d(2, 2, 1, version=version)
    start = F.mse_loss(layer(x), target).item()
    losses = _learns(layer, x, target)
    assert losses[-1] < 0.5 * start
    assert layer.predict(x)[0].abs().mean() > 0.1


def test_compiles_whole() -> None:
    torch._dynamo.reset()
    layer = DeformConv2d(4, 4, (2, 3), padding="same")
    x = torch.randn(2, 4, 7, 6)
    assert error(torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")(x), layer(x)) < 1e-6


@pytest.mark.parametrize("call", ["forward", "predict"])
def test_input_errors(call: str) -> None:
    layer = DeformConv2d(6, 4, 3, padding=1)
    for shape, sentence in (
        ((6, 9, 9), "input must have shape (N, C, H, W), got (6, 9, 9)"),
        ((2, 5, 9, 9), "input must have 6 channels, got shape (2, 5, 9, 9)"),
    ):
        with pytest.raises(ValueError, match=f"^DeformConv2d: {re.escape(sentence)}$"):
            getattr(layer, call)(torch.zeros(shape))
    with pytest.raises(TypeError, match=r"^DeformConv2d: input must be a tensor, got list$"):
        getattr(layer, call)([1.0])


ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no channels": ({"in_channels": 0}, ValueError, "in_channels must be at least 1, got 0"),
    "negative outputs": ({"out_channels": -4}, ValueError, "out_channels must be at least 1, got -4"),
    "no groups": ({"groups": 0}, ValueError, "groups must be at least 1, got 0"),
    "groups": ({"groups": 3}, ValueError, "groups=3 must divide 4 input and 6 output channels"),
    "offset groups": ({"offset_groups": 3}, ValueError, "offset_groups=3 must divide 4 input channels"),
    "no offset groups": ({"offset_groups": 0}, ValueError, "offset_groups=0 must divide 4 input channels"),
    "version": ({"version": 3}, ValueError, "version must be 1 (offsets) or 2 (offsets and mask), got 3"),
    "mask scale": ({"mask_scale": 0}, ValueError, "mask_scale must be positive and finite, got 0"),
    "no mask scale": ({"mask_scale": float("nan")}, ValueError, "mask_scale must be positive and finite, got nan"),
    "boundary": ({"boundary": "wrap"}, ValueError, "boundary must be 'zeros' or 'clamp', got 'wrap'"),
    "kernel": ({"kernel_size": 0}, ValueError, "kernel_size must be at least 1, got 0"),
    "kernel of three": (
        {"kernel_size": (3, 3, 3)},
        TypeError,
        "kernel_size must be an int or a pair of ints, got (3, 3, 3)",
    ),
    "stride": ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
    "dilation": ({"dilation": -1}, ValueError, "dilation must be at least 1, got -1"),
    "padding": ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
    "padding's name": ({"padding": "valid"}, ValueError, "padding must be a number, a pair or 'same', got 'valid'"),
    "same with stride": (
        {"padding": "same", "stride": 2},
        ValueError,
        "padding='same' needs stride 1, got (2, 2)",
    ),
    "same, even, clamped": (
        {"padding": "same", "kernel_size": 2, "boundary": "clamp"},
        ValueError,
        "padding='same' pads unevenly here, which boundary='clamp' cannot follow",
    ),
}


@pytest.mark.parametrize("wrong", ERRORS)
def test_constructor_errors(wrong: str) -> None:
    change, kind, sentence = ERRORS[wrong]
    with pytest.raises(kind) as raised:
        DeformConv2d(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, **change})
    assert str(raised.value) == f"DeformConv2d: {sentence}"
