"""detectron2 and the DCNv2 forks: the values of their own tests, and their error sentences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pliant import ops
from pliant.interop import dcnv2, detectron2
from pliant.nn import DeformConv2d
from pliant.testing import DEFORM_CONV_CASES, DeformConvCase, error

# detectron2 tests/layers/test_deformable.py: 5×5 consecutive numbers, taps moved by half a pixel.
HALF = torch.tensor(
    [
        [30, 41.25, 48.75, 45, 28.75],
        [62.25, 81, 90, 80.25, 50.25],
        [99.75, 126, 135, 117.75, 72.75],
        [105, 131.25, 138.75, 120, 73.75],
        [71.75, 89.25, 93.75, 80.75, 49.5],
    ]
)


def test_detectron2_values() -> None:
    x = torch.arange(25.0).view(1, 1, 5, 5)
    offset, mask = torch.full((1, 18, 5, 5), 0.5), torch.full((1, 9, 5, 5), 0.5)
    one, two = detectron2.DeformConv(1, 1, 3, padding=1), detectron2.ModulatedDeformConv(1, 1, 3, padding=1, bias=False)
    for layer in (one, two):
        nn.init.ones_(layer.weight)
    assert torch.equal(one(x, offset)[0, 0], HALF)
    assert torch.equal(two(x, offset, mask)[0, 0], HALF / 2)


@pytest.mark.parametrize("case", DEFORM_CONV_CASES, ids=lambda case: case.name)
def test_are_our_operator(case: DeformConvCase) -> None:
    t = case.tensors(torch.float64)
    geometry = (case.stride, case.padding, case.dilation)
    full = ops.deform_conv2d(t["input"], t["offset"], t["weight"], t["bias"], *geometry, t["mask"])
    plain = ops.deform_conv2d(t["input"], t["offset"], t["weight"], None, *geometry)
    groups = (case.groups, case.offset_groups)
    arguments = (t["input"], t["offset"], t["mask"], t["weight"], t["bias"], *geometry)
    assert torch.equal(detectron2.modulated_deform_conv(*arguments, *groups), full)
    assert torch.equal(detectron2.deform_conv(t["input"], t["offset"], t["weight"], *geometry, *groups, 3), plain)
    if case.groups == 1:
        assert torch.equal(dcnv2.dcn_v2_conv(*arguments, case.offset_groups), full)


def test_norm_and_activation_follow() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    layer = detectron2.DeformConv(4, 6, 3, padding=1, norm=norm, activation=torch.relu)
    x, offset = torch.randn(2, 4, 6, 6), torch.randn(2, 18, 6, 6)
    expected = norm(ops.deform_conv2d(x, offset, layer.weight, padding=1)).relu()
    assert error(layer(x, offset), expected) < 1e-6
    assert list(layer.state_dict())[:2] == ["weight", "norm.weight"]
    empty = layer.eval()(x[:0], offset[:0])
    assert empty.shape == (0, 6, 6, 6)


def test_detectron2_maps_smaller_than_the_kernel_and_errors() -> None:
    for k in (3, 5):
        layer = detectron2.DeformConv(1, 1, k, padding=k // 2)
        x = torch.rand(1, 1, k - 1, k - 1)
        offset = torch.full((1, 2 * k * k, k - 1, k - 1), 0.5)
        assert layer(x, offset).shape == x.shape
    layer = detectron2.DeformConv(1, 1, 3, stride=1, padding=1)
    with pytest.raises(RuntimeError, match="invalid number of channels of offset"):
        layer(torch.rand(1, 1, 3, 3), torch.rand(1, 8, 3, 3))
    two = detectron2.ModulatedDeformConv(1, 1, 3, stride=1, padding=1)
    with pytest.raises(RuntimeError, match="invalid number of channels of mask"):
        two(torch.rand(1, 1, 3, 3), torch.rand(1, 18, 3, 3), torch.rand(1, 18, 3, 3))
    with pytest.raises(AssertionError, match="there is no bias"):
        detectron2.DeformConv(1, 1, 3, bias=True)


def test_detectron2_names() -> None:
    one = detectron2.DeformConv(3, 10, kernel_size=3, padding=1, deformable_groups=2)
    assert repr(one) == (
        "DeformConv(in_channels=3, out_channels=10, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), "
        "dilation=(1, 1), groups=1, deformable_groups=2, bias=False)"
    )
    two = detectron2.ModulatedDeformConv(3, 10, kernel_size=3, padding=1, deformable_groups=2)
    assert repr(two) == (
        "ModulatedDeformConv(in_channels=3, out_channels=10, kernel_size=(3, 3), stride=1, padding=1, "
        "dilation=1, groups=1, deformable_groups=2, bias=True)"
    )


def test_dcnv2_of_nothing_moved_is_half_a_convolution() -> None:
    # CharlesShang/DCNv2 test.py: with an identity kernel the output is half of the input.
    layer = dcnv2.DCN(2, 2, kernel_size=3, stride=1, padding=1, deformable_groups=2).double()
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.weight[0, 0, 1, 1] = layer.weight[1, 1, 1, 1] = 1.0
    x = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    assert error(2 * layer(x), x) < 1e-10


def test_dcnv2_layers() -> None:
    torch.manual_seed(0)
    layer = dcnv2.DCN(4, 6, (3, 2), (2, 1), (2, 1), dilation=2, deformable_groups=2)
    assert list(layer.state_dict()) == ["weight", "bias", "conv_offset_mask.weight", "conv_offset_mask.bias"]
    assert layer.conv_offset_mask.out_channels == 2 * 3 * 6
    nn.init.normal_(layer.conv_offset_mask.weight)
    x = torch.randn(2, 4, 9, 8)
    offset, mask = layer.conv_offset_mask(x).split((24, 12), 1)
    expected = ops.deform_conv2d(x, offset, layer.weight, layer.bias, (2, 1), (2, 1), 2, mask.sigmoid())
    assert torch.equal(layer(x), expected)
    free = dcnv2.DCNv2(4, 6, 3, 1, 1)
    assert free.weight.abs().max() <= 1 / 6 and not free.bias.any()
    with pytest.raises(AssertionError, match="DCNv2: mask must have 9 channels, got 8"):
        free(x, torch.zeros(2, 18, 9, 8), torch.zeros(2, 8, 9, 8))
    with pytest.raises(AssertionError, match="DCNv2: offset must have 18 channels, got 9"):
        free(x, torch.zeros(2, 9, 9, 8), torch.zeros(2, 9, 9, 8))


def test_pooling_reads_as_many_offsets_as_there_are_rois() -> None:
    torch.manual_seed(0)
    x, offset = torch.randn(1, 8, 9, 9), torch.randn(5, 2, 3, 3)
    rois = torch.tensor([[0.0, 0, 0, 20, 30], [0, 8, 4, 30, 30]])
    settings = (0.25, 3, 8, False, 1, 3, 4, 0.1)
    assert torch.equal(
        dcnv2.dcn_v2_pooling(x, rois, offset, *settings), dcnv2.dcn_v2_pooling(x, rois, offset[:2], *settings)
    )
    with pytest.raises(RuntimeError, match=r"^dcn_v2_pooling: offset must"):
        dcnv2.dcn_v2_pooling(x, rois, offset[:1], *settings)


def test_layers_that_predict_from_a_second_map() -> None:
    # EDVR's and basicsr's layers: names of their state dicts, and what they read.
    torch.manual_seed(0)
    sep = dcnv2.DCN_sep(16, 6, (3, 2), (2, 1), (2, 1), deformable_groups=2)
    pack = dcnv2.DCNv2Pack(16, 6, (3, 2), (2, 1), (2, 1), groups=2, deformable_groups=2)
    assert list(sep.state_dict()) == ["weight", "bias", "conv_offset_mask.weight", "conv_offset_mask.bias"]
    assert list(pack.state_dict()) == ["weight", "bias", "conv_offset.weight", "conv_offset.bias"]
    x, other = torch.randn(2, 2, 16, 9, 8)
    for layer, branch in ((sep, sep.conv_offset_mask), (pack, pack.conv_offset)):
        assert layer.bias is not None
        plain = F.conv2d(x, layer.weight, None, (2, 1), (2, 1), 1, layer.groups)
        assert error(2 * (layer(x, other) - layer.bias.view(6, 1, 1)), plain) < 1e-5
        nn.init.normal_(branch.weight)
        offset, mask = branch(other).split((24, 12), 1)
        expected = ops.deform_conv2d(x, offset, layer.weight, layer.bias, (2, 1), (2, 1), 1, mask.sigmoid())
        assert torch.equal(layer(x, other), expected)


def test_our_layer_with_a_guide_loads_basicsr() -> None:
    torch.manual_seed(0)
    pack = dcnv2.DCNv2Pack(16, 8, 3, padding=1, deformable_groups=4)
    nn.init.normal_(pack.conv_offset.weight)
    ours = DeformConv2d(16, 8, 3, padding=1, offset_groups=4, mask_scale=1.0, guide_channels=16)
    ours.load_state_dict(pack.state_dict())
    x, feat = torch.randn(2, 2, 16, 9, 8)
    assert torch.equal(ours(x, feat), pack(x, feat))
