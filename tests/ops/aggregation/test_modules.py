"""The layers of aggregation: names and start of their parameters, their formulas, masks, what they refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pliant.nn import DCNv3, DCNv4, MSDeformAttn, OffsetStatistics, parameter_groups
from pliant.ops import dcnv3, dcnv4, ms_deform_attn
from pliant.ops.aggregation.modules.attention import sampling_locations
from pliant.testing import error

VECTORS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "vectors.json").read_text())
SHAPES = [(4, 6), (2, 3)]


def _shaken(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return layer


def test_attention_starts_as_a_ring() -> None:
    layer = MSDeformAttn(32, levels=1, heads=8, points=2)
    expected = torch.tensor(VECTORS["msda_ring"]["bias"])
    assert error(layer.sampling_offsets.bias, expected) < 1e-6
    assert not layer.sampling_offsets.weight.any()
    assert not any(t.any() for t in layer.attention_weights.parameters())
    names = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    assert list(layer.state_dict()) == [f"{name}.{part}" for name in names for part in ("weight", "bias")]


@pytest.mark.parametrize("kind", ["2d", "4d"])
def test_attention_locations_are_those_known(kind: str) -> None:
    case = VECTORS["msda_locations"]
    layer = MSDeformAttn(8, levels=2, heads=4, points=2)
    offsets = layer.offsets(layer.predict(torch.zeros(1, 1, 8))[0])
    shapes = case["spatial_shapes"]
    for given in (shapes, torch.tensor(shapes)):
        found = sampling_locations(torch.tensor(case[f"reference_{kind}"]), offsets, given, layer.points)
        expected = torch.tensor(case[f"locations_{kind}"], dtype=torch.float64)
        assert error(found.view(expected.shape), expected) < 1e-6


@pytest.mark.parametrize("points", [2, (3, 1)])
@pytest.mark.parametrize("extent", [2, 4])
def test_attention_is_its_formula(points: int | tuple[int, int], extent: int) -> None:
    layer = _shaken(MSDeformAttn(16, levels=2, heads=4, points=points)).double()
    random = torch.Generator().manual_seed(0)
    query, value = (torch.randn(2, n, 16, generator=random, dtype=torch.float64) for n in (5, 30))
    reference = torch.rand(2, 5, 2, extent, generator=random, dtype=torch.float64)
    padding = torch.rand(2, 30, generator=random) < 0.3
    found = layer(query, reference, value, SHAPES, None, padding)
    each = (points, points) if isinstance(points, int) else points
    offsets = layer.sampling_offsets(query).view(2, 5, 4, sum(each), 2)
    weights = layer.attention_weights(query).view(2, 5, 4, sum(each)).softmax(-1)
    places = []
    for level, (P, (H, W)) in enumerate(zip(each, SHAPES, strict=True)):
        ref, moved = reference[:, :, None, None, level], offsets[:, :, :, sum(each[:level]) : sum(each[: level + 1])]
        size = torch.tensor([W, H], dtype=torch.float64)
        places.append(ref + moved / size if extent == 2 else ref[..., :2] + moved / P * ref[..., 2:] * 0.5)
    masked = torch.where(padding[..., None], 0, layer.value_proj(value)).view(2, 30, 4, 4)
    y = ms_deform_attn(masked, SHAPES, None, torch.cat(places, 3), weights, points=each)
    assert error(found, layer.output_proj(y)) < 1e-12


def test_attention_under_autocast_keeps_locations_wide() -> None:
    layer = _shaken(MSDeformAttn(16, levels=2, heads=4, points=2))
    torch.manual_seed(1)
    query, value, reference = torch.randn(1, 5, 16), torch.randn(1, 30, 16), torch.rand(1, 5, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        offsets, weights = layer.predict(query)
        output = layer(query, reference, value, SHAPES)
    assert offsets.dtype == weights.dtype == torch.float32
    assert output.dtype == torch.bfloat16
    assert error(output, layer(query, reference, value, SHAPES)) < 0.05


def test_dcnv3_is_its_formula_and_starts_as_an_average() -> None:
    torch.manual_seed(0)
    layer, x = DCNv3(8, groups=2), torch.randn(2, 5, 6, 8)
    value = layer.input_proj(x).permute(0, 3, 1, 2)
    average = F.avg_pool2d(value, 3, 1, 1).permute(0, 2, 3, 1)
    assert error(layer(x), layer.output_proj(average)) < 1e-5
    layer = _shaken(DCNv3(8, groups=2, dw_kernel_size=5, center_feature_scale=True, offset_scale=1.5))
    u = F.gelu(F.layer_norm(layer.dw_conv[0](x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), (8,), *_norm(layer), 1e-6))
    v = layer.input_proj(x)
    mask = layer.mask(u).view(2, 5, 6, 2, 9).softmax(-1).flatten(3)
    y = dcnv3(v, layer.offset(u), mask, 3, padding=1, groups=2, offset_scale=1.5)
    scale = F.linear(u, layer.center_feature_scale_proj_weight, layer.center_feature_scale_proj_bias).sigmoid()
    scale = scale[..., None].expand(2, 5, 6, 2, 4).flatten(3)
    assert error(layer(x), layer.output_proj(y * (1 - scale) + v * scale)) < 1e-5


def _norm(layer: DCNv3) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.dw_conv[1][1].weight, layer.dw_conv[1][1].bias


@pytest.mark.parametrize(("norm", "key"), [("layer", "dw_conv.1.1.weight"), ("batch", "dw_conv.1.0.weight")])
def test_dcnv3_has_the_names_of_internimage(norm: str, key: str) -> None:
    names = set(DCNv3(8, groups=2, norm=norm, center_feature_scale=True).state_dict())
    expected = {f"{name}.{part}" for name in ("dw_conv.0", "offset", "mask", "input_proj", "output_proj") for part in
                ("weight", "bias")}  # fmt: skip
    assert {key, "center_feature_scale_proj_weight", "center_feature_scale_proj_bias"} | expected <= names


def test_dcnv4_is_its_formula_and_starts_at_zero() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 30, 8)
    layer = DCNv4(8, groups=2)
    assert torch.equal(layer(x, (5, 6)), torch.zeros(2, 30, 8))
    assert torch.equal(layer(x[:, :25]), torch.zeros(2, 25, 8))
    layer = _shaken(DCNv4(8, groups=2, dw_kernel_size=3, center_feature_scale=True, output_bias=False))
    names = {"offset_mask_dw.weight", "offset_mask_dw.bias", "offset_mask.weight", "offset_mask.bias"}
    names |= {"value_proj.weight", "value_proj.bias", "output_proj.weight"}
    assert names | {"center_feature_scale_proj_weight", "center_feature_scale_proj_bias"} == set(layer.state_dict())
    assert layer.offset_mask.out_features == 56
    map = x.view(2, 5, 6, 8)
    packed = layer.offset_mask(layer.offset_mask_dw(map.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    v = layer.value_proj(map)
    y = dcnv4(v, packed, 3, padding=1, groups=2)
    scale = F.linear(y, layer.center_feature_scale_proj_weight, layer.center_feature_scale_proj_bias).sigmoid()
    scale = scale[..., None].expand(2, 5, 6, 2, 4).flatten(3)
    expected = layer.output_proj((y * (1 - scale) + v * scale).flatten(1, 2))
    assert error(layer(x, (5, 6)), expected) < 1e-5
    bare = DCNv4(8, groups=2, without_pointwise=True)
    assert set(bare.state_dict()) == {"offset_mask.weight", "offset_mask.bias"}
    assert bare(x, (5, 6)).shape == x.shape


@pytest.mark.parametrize("kind", [DCNv3, DCNv4])
def test_dcn_layers_measure_their_offsets(kind: type[DCNv3 | DCNv4]) -> None:
    layer = kind(8, groups=2)
    branch = getattr(layer, layer.branches[0])
    with torch.no_grad():
        # Every tap moves 10 pixels to the right, so out of a map 6 wide.
        layer.offsets(branch.bias.view(1, 1, 1, -1))[..., 0] = 10.0
    with OffsetStatistics(layer, every=1) as statistics:
        layer(torch.randn(1, 5, 6, 8)) if kind is DCNv3 else layer(torch.randn(1, 30, 8), (5, 6))
    report = statistics.report()[""]
    assert report["mean"] == 5.0
    assert report["outside"] == 1.0


def test_attention_is_measured_and_learns_slowly() -> None:
    layer = MSDeformAttn(16, levels=2, heads=4, points=2)
    with OffsetStatistics(layer, every=1) as statistics:
        layer(torch.randn(1, 5, 16), torch.rand(1, 5, 2, 2), torch.randn(1, 30, 16), SHAPES)
    assert statistics.report()[""]["mean"] == pytest.approx(layer.sampling_offsets.bias.abs().mean().item())
    rates = {group["lr"]: group["params"] for group in parameter_groups(layer, 1.0)}
    assert {id(p) for p in rates[0.1]} == {id(p) for p in layer.sampling_offsets.parameters()}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: MSDeformAttn(10, heads=4), "MSDeformAttn: heads=4 must divide 10 channels"),
        (
            lambda: MSDeformAttn(8, levels=2, heads=2, points=(1,)),
            "MSDeformAttn: points must name one number for each of the 2 levels, got (1,)",
        ),
        (
            lambda: MSDeformAttn(8, levels=0, heads=2),
            "MSDeformAttn: channels, levels, heads and points must be at least 1",
        ),
        (
            lambda: MSDeformAttn(8, heads=2, method="cubic"),
            "MSDeformAttn: method must be one of ('bilinear', 'discrete'), got 'cubic'",
        ),
        (lambda: DCNv3(10, groups=4), "DCNv3: groups=4 must divide 10 channels"),
        (
            lambda: DCNv3(8, stride=2),
            "DCNv3: stride must be 1, its branch predicts offsets for every pixel, got 2",
        ),
        (lambda: DCNv3(8, norm="group"), "DCNv3: norm must be 'layer' or 'batch', got 'group'"),
        (
            lambda: DCNv4(8, stride=(1, 2)),
            "DCNv4: stride must be 1, its branch predicts offsets for every pixel, got (1, 2)",
        ),
        (
            lambda: DCNv4(8, kernel_size=1, padding=0, remove_center=True),
            "DCNv4: a kernel of one tap has no other tap, so remove_center must be False",
        ),
        (lambda: DCNv4(8)(torch.zeros(1, 30, 8)), "DCNv4: input must have H·W = 5·5 pixels, got 30"),
        (lambda: DCNv4(8)(torch.zeros(1, 30, 9)), "DCNv4: input must have 8 channels, got shape (1, 30, 9)"),
        (lambda: DCNv3(8)(torch.zeros(5, 6, 8)), "DCNv3: input must have shape (N, H, W, C), got (5, 6, 8)"),
    ],
)
def test_what_layers_refuse(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        make()
