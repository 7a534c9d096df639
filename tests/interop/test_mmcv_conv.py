"""mmcv's convolutions: known values of its tests, its names and its checkpoints."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant import ops
from pliant.interop import checkpoints, mmcv
from pliant.nn import DeformConv2d
from pliant.testing import DEFORM_CONV_CASES, DeformConvCase, error


@pytest.mark.parametrize("case", DEFORM_CONV_CASES, ids=lambda case: case.name)
def test_are_our_operator(case: DeformConvCase) -> None:
    t = case.tensors(torch.float64)
    geometry = (case.stride, case.padding, case.dilation)
    groups = (case.groups, case.offset_groups)
    plain = mmcv.deform_conv2d(t["input"], t["offset"], t["weight"], *geometry, *groups, False, 1)
    assert torch.equal(plain, ops.deform_conv2d(t["input"], t["offset"], t["weight"], None, *geometry))
    full = mmcv.modulated_deform_conv2d(t["input"], t["offset"], t["mask"], t["weight"], t["bias"], *geometry, *groups)
    assert torch.equal(full, ops.deform_conv2d(t["input"], t["offset"], t["weight"], t["bias"], *geometry, t["mask"]))


def test_known_values_of_version_1() -> None:
    # mmcv tests/test_ops/test_deform_conv.py
    x = torch.tensor([[[[1.0, 2, 3], [0, 1, 2], [3, 5, 2]]]], requires_grad=True)
    layer = mmcv.DeformConv2dPack(1, 1, 2, stride=1, padding=0)
    bias = torch.tensor([0.1, 0.2, 0.5, 0.2, 0.7, 0.3, 0.2, 0.9])
    layer.conv_offset.weight.data = torch.tensor(
        [[[0.4, 0.2], [0.1, 0.9]]] + [[[0.0, 0.0], [0.0, 0.0]]] * 7
    )[:, None]  # fmt: skip
    layer.conv_offset.bias.data = bias
    y = layer(x)
    # By hand: tap k samples at its grid position plus the offset that the branch predicts for it.
    offset = layer.conv_offset(x)
    assert torch.equal(y, ops.deform_conv2d(x, offset, layer.weight))
    y.sum().backward()
    assert layer.conv_offset.bias.grad.abs().sum() > 0


def test_known_values_of_version_2() -> None:
    # mmcv tests/test_ops/test_modulated_deform_conv.py: with zero offsets the masks are ½.
    x = torch.tensor([1.0, 2, 3]).expand(3, 3)[None, None].clone().requires_grad_()
    layer = mmcv.ModulatedDeformConv2dPack(1, 1, 2, stride=1, padding=1, bias=False)
    nn.init.ones_(layer.weight)
    y = layer(x)
    assert y[0, 0].tolist() == [[0.5, 1.5, 2.5, 1.5], [1, 3, 5, 3], [1, 3, 5, 3], [0.5, 1.5, 2.5, 1.5]]
    y.sum().backward()
    assert torch.equal(x.grad, torch.full((1, 1, 3, 3), 2.0))
    assert torch.equal(layer.weight.grad, torch.full((1, 1, 2, 2), 9.0))
    # Only the gradients of the masks: those of mmcv's offsets differ at exactly −1, the outer edge of the padding,
    # where they are 0.
    assert layer.conv_offset.bias.grad[8:].tolist() == [4.5] * 4


def test_who_has_a_bias() -> None:
    # mmcv's layers of version 1 have no such attribute.
    assert not hasattr(mmcv.DeformConv2d(4, 4, 3), "bias") and not hasattr(mmcv.DeformConv2dPack(4, 4, 3), "bias")
    assert mmcv.ModulatedDeformConv2d(4, 4, 3, bias=False).bias is None
    assert "bias=False" in repr(mmcv.DeformConv2dPack(4, 4, 3))


def test_a_pack_is_our_layer() -> None:
    torch.manual_seed(0)
    for version, kind in ((1, mmcv.DeformConv2dPack), (2, mmcv.ModulatedDeformConv2dPack)):
        pack = kind(8, 12, (3, 2), (2, 1), (1, 0), (2, 1), groups=2, deform_groups=4, bias=False)
        ours = DeformConv2d(
            8, 12, (3, 2), (2, 1), (1, 0), (2, 1), 2, False, version=version, offset_groups=4, mask_scale=1.0
        )
        for parameter in pack.parameters():
            nn.init.normal_(parameter, std=0.2)
        ours.load_state_dict(pack.state_dict())
        x = torch.randn(2, 8, 11, 9)
        assert torch.equal(pack(x), ours(x))
        pack.init_offset() if version == 1 else pack.init_weights()
        assert not any(parameter.any() for parameter in pack.conv_offset.parameters())


def _load(module: nn.Module, state: dict[str, Tensor], metadata: dict[str, Any], prefix: str = "") -> list[str]:
    """Load as torch did before 2.0, when every layer saw all names. Return the missing names."""
    missing: list[str] = []
    module._load_from_state_dict(state, prefix, metadata.get(prefix[:-1], {}), True, missing, [], [])
    for name, child in module.named_children():
        missing += _load(child, state, metadata, f"{prefix}{name}.")
    return missing


@pytest.mark.parametrize("kind", [mmcv.DeformConv2dPack, mmcv.ModulatedDeformConv2dPack])
@pytest.mark.parametrize("version", [None, 1])
def test_checkpoints_of_before_version_2(kind: Any, version: int | None) -> None:
    def make() -> nn.Module:
        return nn.ModuleDict({"conv2": kind(4, 4, 3, bias=False), "conv3": nn.Conv2d(4, 4, 1)})

    torch.manual_seed(0)
    net = make()
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    state = net.state_dict()
    assert state._metadata["conv2"]["version"] == 2
    old = {name.replace("conv2.conv_offset", "conv2_offset"): tensor for name, tensor in state.items()}
    assert "conv2_offset.weight" in old
    other = make()
    assert _load(other, dict(old), {} if version is None else {"conv2": {"version": version}}) == []
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())
    assert _load(make(), dict(old), {"conv2": {"version": 2}}) == ["conv2.conv_offset.weight", "conv2.conv_offset.bias"]
    # Since torch 2.0 a layer sees its own names alone, so the converter renames them.
    other = make()
    other.load_state_dict(checkpoints.convert(old, "mmcv").state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())


def test_small_maps_of_version_1() -> None:
    # mmcv pads small maps below and on the right, and crops the output.
    torch.manual_seed(0)
    layer = mmcv.DeformConv2d(3, 4, (5, 3), padding=(2, 1))
    x, offset = torch.randn(1, 3, 3, 6), torch.randn(1, 30, 3, 6)
    padded = ops.deform_conv2d(
        nn.functional.pad(x, (0, 0, 0, 2)), nn.functional.pad(offset, (0, 0, 0, 2)), layer.weight, padding=(2, 1)
    )
    assert torch.equal(layer(x, offset), padded[:, :, :3])
    wide = torch.randn(2, 3, 9, 9)
    assert layer(wide, torch.zeros(2, 30, 9, 9)).shape == (2, 4, 9, 9)


def test_what_layers_look_like() -> None:
    layer = mmcv.DeformConv2d(4, 8, 3, 2, 1, im2col_step=64)
    assert (layer.transposed, layer.output_padding, layer.im2col_step) == (False, (0,), 64)
    assert "kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1), groups=1, deform_groups=1" in repr(
        layer
    )
    assert list(mmcv.ModulatedDeformConv2dPack(4, 8, 3).state_dict()) == [
        "weight",
        "bias",
        "conv_offset.weight",
        "conv_offset.bias",
    ]
    assert mmcv.ModulatedDeformConv2d(4, 8, 3, bias="auto").bias is not None
    assert mmcv.ModulatedDeformConv2d(4, 8, 3, deform_groups=2).deform_groups == 2
    with pytest.warns(DeprecationWarning, match='"deformable_groups" is deprecated, please use "deform_groups"'):
        assert mmcv.DeformConv2dPack(4, 8, 3, deformable_groups=2).conv_offset.out_channels == 36
    with pytest.raises(TypeError, match=r"^ModulatedDeformConv2dPack: there is no argument 'colour'$"):
        mmcv.ModulatedDeformConv2dPack(4, 8, 3, colour=1)


def _call(**changes: Any) -> Tensor:
    arguments: dict[str, Any] = {
        "input": torch.zeros(2, 4, 5, 5),
        "offset": torch.zeros(2, 18, 5, 5),
        "weight": torch.zeros(6, 4, 3, 3),
        "padding": 1,
        **changes,
    }
    operator = mmcv.modulated_deform_conv2d if "mask" in arguments else mmcv.deform_conv2d
    return operator(**arguments)


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no batch": ({"input": torch.zeros(4, 5, 5)}, ValueError, "Expected 4D tensor as input, got 3D tensor instead."),
    "too small": (
        {"padding": 0, "input": torch.zeros(2, 4, 2, 5)},
        ValueError,
        "convolution input is too small (output would be 2x6x0x3)",
    ),
    "bias": ({"bias": True}, AssertionError, "Only support bias is False."),
    "planes": ({"groups": 2}, RuntimeError, "deform_conv2d: invalid number of input planes, expected: 8, but got: 4"),
    "deform groups": ({"deform_groups": 3}, RuntimeError, "deform_conv2d: input channels must divide deformable group"),
    "offsets": (
        {"deform_groups": 2},
        RuntimeError,
        "deform_conv2d: invalid number of channels of offset, expected: 36, got shape (2, 18, 5, 5)",
    ),
    "masks": (
        {"mask": torch.zeros(2, 8, 5, 5)},
        RuntimeError,
        "modulated_deform_conv2d: invalid number of channels of mask, expected: 9, got shape (2, 8, 5, 5)",
    ),
    "size": (
        {"stride": 2},
        RuntimeError,
        "deform_conv2d: invalid spatial size of offset, expected height: 3 width: 3, but got height: 5 width: 5",
    ),
    "batch": (
        {"offset": torch.zeros(1, 18, 5, 5)},
        RuntimeError,
        "deform_conv2d: invalid batch size of offset, expected: 2, but got: 1",
    ),
    "dtype": (
        {"offset": torch.zeros(2, 18, 5, 5, dtype=torch.int32)},
        RuntimeError,
        "deform_conv2d: input must be float32",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors(wrong: str) -> None:
    changes, kind, sentence = WRONG[wrong]
    with pytest.raises(kind, match=f"^{re.escape(sentence)}"):
        _call(**changes)


@pytest.mark.parametrize("channels", [(5, 4), (4, 6)])
def test_groups_that_do_not_divide(channels: tuple[int, int]) -> None:
    with pytest.raises(AssertionError, match="cannot be divisible by groups 4"):
        mmcv.ModulatedDeformConv2d(*channels, 3, groups=4)
    with pytest.raises(AssertionError, match="bias=True is not supported in DeformConv2d"):
        mmcv.DeformConv2d(4, 4, 3, bias=True)


def test_the_dtype_is_the_offsets() -> None:
    assert _call(offset=torch.zeros(2, 18, 5, 5, dtype=torch.float64)).dtype == torch.float64
    layer = mmcv.ModulatedDeformConv2dPack(4, 4, 3, padding=1)
    x = torch.randn(2, 4, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert error(y, layer(x)) < 1.6e-2
