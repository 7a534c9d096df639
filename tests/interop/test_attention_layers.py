"""The layers and functions of Deformable-DETR, mmcv, InternImage and DCNv4 under their own names."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant import ops
from pliant.interop import dcnv4, deformable_detr, internimage, mmcv
from pliant.interop.mmcv import registering

SHAPES = torch.tensor([[4, 5], [2, 3]])
STARTS = torch.tensor([0, 20])


def _drawn(layer: nn.Module) -> Any:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer.double().eval()


def _formula(layer: Any, query: Tensor, references: Tensor, value: Tensor, padding: Tensor | None) -> Tensor:
    """Return what Deformable-DETR's paper says, by grid_sample."""
    N, Q, M, P = *query.shape[:2], 4, 3
    v = F.linear(value, layer.value_proj.weight, layer.value_proj.bias)
    if padding is not None:
        v = v * (~padding)[..., None]
    v = v.unflatten(-1, (M, -1))
    offsets = layer.sampling_offsets(query).view(N, Q, M, 2, P, 2)
    weights = layer.attention_weights(query).view(N, Q, M, 2 * P).softmax(-1).view(N, Q, M, 2, P)
    total = torch.zeros(N, Q, M, v.shape[-1], dtype=v.dtype)
    for level, (start, (H, W)) in enumerate(zip(STARTS.tolist(), SHAPES.tolist(), strict=True)):
        r = references[:, :, level, None, None]
        if r.shape[-1] == 2:
            places = r + offsets[:, :, :, level] / torch.tensor([W, H])
        else:
            places = r[..., :2] + offsets[:, :, :, level] / P * r[..., 2:] / 2
        maps = v[:, start : start + H * W].permute(0, 2, 3, 1).reshape(N * M, -1, H, W)
        grid = 2 * places.transpose(1, 2).reshape(N * M, Q, P, 2) - 1
        sampled = F.grid_sample(maps, grid, align_corners=False).view(N, M, -1, Q, P)
        total += torch.einsum("nmdqp,nqmp->nqmd", sampled, weights[:, :, :, level])
    return F.linear(total.flatten(2), layer.output_proj.weight, layer.output_proj.bias)


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_deformable_detr(coordinates: int, masked: bool) -> None:
    layer = _drawn(deformable_detr.MSDeformAttn(32, n_levels=2, n_heads=4, n_points=3))
    query, value = torch.randn(2, 7, 32).double(), torch.randn(2, 26, 32).double()
    references = torch.rand(2, 7, 2, coordinates).double()
    padding = torch.rand(2, 26) < 0.4 if masked else None
    found = layer(query, references, value, SHAPES, STARTS, padding)
    torch.testing.assert_close(found, _formula(layer, query, references, value, padding), rtol=1e-12, atol=1e-12)
    assert [*layer.state_dict()] == [
        f"{name}.{part}"
        for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        for part in ("weight", "bias")
    ]


def test_deformable_detr_resets_parameters_and_says_what_is_wrong() -> None:
    layer = deformable_detr.MSDeformAttn(32, 2, 4, 3)
    start = {name: parameter.clone() for name, parameter in layer.named_parameters() if "proj" not in name}
    _drawn(layer.float())
    layer.float()._reset_parameters()
    assert all(torch.equal(layer.get_parameter(name), value) for name, value in start.items())
    query, value = torch.randn(1, 7, 32), torch.randn(1, 26, 32)
    with pytest.raises(ValueError, match=r"^Last dim of reference_points must be 2 or 4, but get 3 instead"):
        layer(query, torch.rand(1, 7, 2, 3), value, SHAPES, STARTS)
    with pytest.raises(AssertionError):
        layer(query, torch.rand(1, 7, 2, 2), value[:, 1:], SHAPES, STARTS)
    with pytest.raises(ValueError, match=r"^d_model must be divisible by n_heads, but got 30 and 4$"):
        deformable_detr.MSDeformAttn(30, n_heads=4)


def test_functions_of_deformable_detr() -> None:
    torch.manual_seed(0)
    value = torch.randn(2, 26, 4, 8, requires_grad=True)
    locations, weights = torch.rand(2, 7, 4, 2, 3, 2), torch.rand(2, 7, 4, 2, 3)
    expected = ops.ms_deform_attn(value, SHAPES, STARTS, locations, weights)
    found = deformable_detr.MSDeformAttnFunction.apply(value, SHAPES, STARTS, locations, weights, 64)
    assert torch.equal(found, expected)
    assert torch.equal(deformable_detr.ms_deform_attn_core_pytorch(value, SHAPES, locations, weights), expected)
    found.sum().backward()
    assert value.grad is not None and value.grad.abs().max() > 0
    # Starts are obeyed: the second level first.
    turned = torch.cat([value[:, 20:], value[:, :20]], 1)
    starts = torch.tensor([6, 0])
    found = deformable_detr.MSDeformAttnFunction.apply(turned, SHAPES, starts, locations, weights, 64)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_mmcv(batch_first: bool, ratio: float) -> None:
    layer = _drawn(
        mmcv.MultiScaleDeformableAttention(32, 4, 2, 3, batch_first=batch_first, value_proj_ratio=ratio)
    )  # fmt: skip

    def turn(t: Tensor) -> Tensor:
        return t if batch_first else t.transpose(0, 1)

    query, position, identity = torch.randn(3, 2, 7, 32).double()
    value, references, padding = (
        torch.randn(2, 26, 32).double(),
        torch.rand(2, 7, 2, 2).double(),
        torch.rand(2, 26) < 0.4,
    )
    shared: dict[str, Any] = {
        "value": turn(value), "query_pos": turn(position), "reference_points": references, "spatial_shapes": SHAPES,
        "level_start_index": STARTS, "key_padding_mask": padding, "attn_mask": None,
    }  # fmt: skip
    inside = _formula(layer, query + position, references, value, padding)
    found = turn(layer(turn(query), **shared))
    torch.testing.assert_close(found, inside + query, rtol=1e-12, atol=1e-12)
    found = turn(layer(turn(query), identity=turn(identity), **shared))
    torch.testing.assert_close(found, inside + identity, rtol=1e-12, atol=1e-12)
    with pytest.warns(DeprecationWarning, match='"residual" is deprecated'):
        found = turn(layer(turn(query), residual=turn(identity), **shared))
    torch.testing.assert_close(found, inside + identity, rtol=1e-12, atol=1e-12)
    # Dropout is inside: with everything dropped, the identity remains.
    layer.dropout.p = 1.0
    assert torch.equal(turn(layer.train()(turn(query), **shared)), query)


def test_mmcv_attends_to_the_query_itself() -> None:
    layer = _drawn(mmcv.MultiScaleDeformableAttention(32, 4, 2, 3))
    query, references = torch.randn(26, 2, 32).double(), torch.rand(2, 26, 2, 4).double()
    found = layer(query, reference_points=references, spatial_shapes=SHAPES)
    inside = _formula(layer, query.transpose(0, 1), references, query.transpose(0, 1), None)
    torch.testing.assert_close(found, inside.transpose(0, 1) + query, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("coordinates", [2, 4])
def test_mmcv_as_installed(coordinates: int) -> None:
    if importlib.util.find_spec("mmcv") is None:
        pytest.skip("mmcv is not installed")
    if importlib.util.find_spec("mmcv._ext") is None:
        sys.modules.setdefault("mmcv._ext", registering._Extension("mmcv._ext"))
    theirs = _drawn(importlib.import_module("mmcv.ops").MultiScaleDeformableAttention(32, 4, 2, 3))
    layer = mmcv.MultiScaleDeformableAttention(32, 4, 2, 3).double().eval()
    layer.load_state_dict(theirs.state_dict())
    query, value = torch.randn(7, 2, 32).double(), torch.randn(26, 2, 32).double()
    shared = {
        "value": value, "reference_points": torch.rand(2, 7, 2, coordinates).double(), "spatial_shapes": SHAPES,
        "level_start_index": STARTS, "key_padding_mask": torch.rand(2, 26) < 0.4,
    }  # fmt: skip
    torch.testing.assert_close(layer(query, **shared), theirs(query, **shared), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", ["LN", "BN"])
@pytest.mark.parametrize("act", ["GELU", "ReLU", "SiLU"])
@pytest.mark.parametrize("more", [{}, {"center_feature_scale": True, "dw_kernel_size": 5, "offset_scale": 2.0}])
def test_internimage(norm: str, act: str, more: dict[str, Any]) -> None:
    layer = _drawn(internimage.DCNv3(32, group=2, norm_layer=norm, act_layer=act, **more))
    x = torch.randn(2, 6, 7, 32).double()
    size = more.get("dw_kernel_size", 3)
    state = layer.state_dict()
    u = F.conv2d(x.permute(0, 3, 1, 2), state["dw_conv.0.weight"], state["dw_conv.0.bias"], 1, size // 2, 1, 32)
    if norm == "LN":
        u = F.layer_norm(u.permute(0, 2, 3, 1), (32,), state["dw_conv.1.1.weight"], state["dw_conv.1.1.bias"], 1e-6)
    else:
        names = ("running_mean", "running_var", "weight", "bias")
        u = F.batch_norm(u, *(state[f"dw_conv.1.0.{name}"] for name in names)).permute(0, 2, 3, 1)
    u = getattr(F, act.lower())(u)
    mask = layer.mask(u).unflatten(-1, (2, 9)).softmax(-1).flatten(-2)
    value = layer.input_proj(x)
    y = ops.dcnv3(value, layer.offset(u), mask, 3, 1, 1, 1, 2, more.get("offset_scale", 1.0))
    if more:
        names = ("center_feature_scale_proj_weight", "center_feature_scale_proj_bias")
        scale = F.linear(u, *(state[name] for name in names)).sigmoid().repeat_interleave(16, -1)
        y = y * (1 - scale) + value * scale
    torch.testing.assert_close(layer(x), layer.output_proj(y), rtol=1e-12, atol=1e-12)


def test_internimage_in_plain_pytorch_is_the_same_layer() -> None:
    layer, plain = internimage.DCNv3(32, group=2), internimage.DCNv3_pytorch(32, group=2)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 6, 7, 32)
    assert torch.equal(layer(x), plain(x))


def test_what_internimage_refuses() -> None:
    for message, error, arguments in (
        ("channels must be divisible by group, but got 32 and 3", ValueError, {"group": 3}),
        ("build_act_layer does not support Tanh", NotImplementedError, {"act_layer": "Tanh"}),
        ("build_norm_layer does not support GN", NotImplementedError, {"norm_layer": "GN"}),
        ("stride must be 1", ValueError, {"stride": 2}),
    ):
        with pytest.raises(error, match=message):
            internimage.DCNv3(32, **arguments)


def test_dcnv4() -> None:
    settings: dict[str, Any] = {"group": 2, "dw_kernel_size": 3, "center_feature_scale": True, "output_bias": False}
    layer = _drawn(dcnv4.DCNv4(32, **settings, unknown=1))
    x = torch.randn(2, 42, 32).double()
    map = x.unflatten(1, (6, 7))
    state = layer.state_dict()
    u = F.conv2d(map.permute(0, 3, 1, 2), state["offset_mask_dw.weight"], state["offset_mask_dw.bias"], 1, 1, 1, 32)
    packed, value = layer.offset_mask(u.permute(0, 2, 3, 1)), layer.value_proj(map)
    y = dcnv4.DCNv4Function.apply(value, packed, 3, 3, 1, 1, 1, 1, 1, 1, 2, 16, 1.0, 256, False)
    assert torch.equal(y, ops.dcnv4(value, packed, 3, 1, 1, 1, 2))
    names = ("center_feature_scale_proj_weight", "center_feature_scale_proj_bias")
    scale = F.linear(y, *(state[name] for name in names)).sigmoid().repeat_interleave(16, -1)
    y = F.linear((y * (1 - scale) + value * scale).flatten(1, 2), state["output_proj.weight"])
    torch.testing.assert_close(layer(x, shape=(6, 7)), y, rtol=1e-12, atol=1e-12)
    with pytest.raises(
        ValueError, match=r"^DCNv4Function: input must have group·group_channels = 2·8 channels, got 32"
    ):
        dcnv4.DCNv4Function.apply(value, packed, 3, 3, 1, 1, 1, 1, 1, 1, 2, 8, 1.0, 256, False)
    with pytest.raises(ValueError, match=r"^channels must be divisible by group, but got 32 and 3$"):
        dcnv4.DCNv4(32, group=3)


@pytest.mark.parametrize("remove_center", [False, True])
def test_packed_tensors_of_dcnv3(remove_center: bool) -> None:
    torch.manual_seed(0)
    K = 8 if remove_center else 9
    x, offset, mask = torch.randn(2, 6, 7, 30), torch.randn(2, 6, 7, 3 * K * 2), torch.rand(2, 6, 7, 3 * K)
    expected = ops.dcnv3(x, offset, mask, 3, 1, 1, 1, 3, 1.5, remove_center)
    packed = dcnv4.pack(offset, mask, 3)
    assert torch.equal(ops.dcnv4(x, packed, 3, 1, 1, 1, 3, 1.5, remove_center), expected)
    with pytest.raises(
        ValueError, match=r"^pack: offset and mask must have G·K·2 and G·K channels for 5 groups, got \d+ and \d+$"
    ):
        dcnv4.pack(offset, mask, 5)


def test_state_of_dcnv3_becomes_one_of_dcnv4() -> None:
    torch.manual_seed(0)
    old = nn.ModuleDict({"stem": nn.Linear(3, 32), "block": nn.ModuleDict({"dcn": internimage.DCNv3(32, group=3 - 1)})})
    for parameter in old.parameters():
        nn.init.normal_(parameter, std=0.3)
    new = nn.ModuleDict({"stem": nn.Linear(3, 32), "block": nn.ModuleDict({"dcn": dcnv4.DCNv4(32, group=2)})})
    new.load_state_dict(dcnv4.from_dcnv3(old.state_dict()))
    v3, v4 = old["block"]["dcn"], new["block"]["dcn"]
    u = torch.randn(2, 6, 7, 32)
    torch.testing.assert_close(v4.offset_mask(u), dcnv4.pack(v3.offset(u), v3.mask(u), 2))
    assert torch.equal(v4.value_proj.weight, v3.input_proj.weight) and torch.equal(new["stem"].bias, old["stem"].bias)
    with pytest.raises(ValueError, match=r"^from_dcnv3: the state has no layer with offset, mask and input_proj$"):
        dcnv4.from_dcnv3(new.state_dict())
    with pytest.raises(ValueError, match=r"^from_dcnv3: block.dcn.mask has 18 rows, which 25 taps do not divide$"):
        dcnv4.from_dcnv3(old.state_dict(), kernel_size=5)
