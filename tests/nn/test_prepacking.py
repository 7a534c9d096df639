"""Prepacked weights: the same bits, never stale, never in a state dict."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from pliant import _native
from pliant.nn import DeformConv2d, prepack, unprepack
from pliant.ops.conv import modules

pytestmark = pytest.mark.skipif(_native.path is None, reason="there are no kernels")
packs = pytest.mark.skipif(_native.instruction_level() == "baseline", reason="products read the weight itself")


def _layer(**options: object) -> DeformConv2d:
    torch.manual_seed(0)
    layer = DeformConv2d(18, 36, 3, padding=1, **options).eval()  # type: ignore[arg-type]
    for parameter in layer.conv_offset.parameters():
        nn.init.normal_(parameter, 0, 0.2)
    return layer


@packs
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_results_are_the_same_bit_for_bit(dtype: torch.dtype, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = _layer(groups=groups, dtype=dtype), torch.randn(2, 18, 9, 11).to(dtype)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        unprepack(layer)
        before = layer(given)
        assert prepack(nn.Sequential(layer, nn.ReLU())) == 1
        with monkeypatch.context() as patch:
            patch.setattr(modules, "deform_conv2d", None)  # the long way is closed
            assert torch.equal(layer(given), before)


@packs
@torch.no_grad()
def test_a_changed_weight_is_noticed() -> None:
    layer, x = _layer(), torch.randn(1, 18, 6, 6)
    prepack(layer)
    first = layer(x)
    layer.load_state_dict({name: 2 * t for name, t in layer.state_dict().items() if "offset" not in name}, strict=False)
    torch.testing.assert_close(layer(x), 2 * first)
    layer.weight = nn.Parameter(torch.zeros_like(layer.weight))
    layer.bias = None
    assert not layer(x).any()
    layer.double()
    assert layer(x.double()).dtype == torch.float64


@packs
def test_training_and_gradients_do_without() -> None:
    layer, x = _layer(), torch.randn(1, 18, 6, 6)
    prepack(layer)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    with pytest.raises(ValueError, match="evaluation mode"):
        prepack(nn.Sequential(layer.train()))
    with torch.no_grad():
        layer(x)


@packs
def test_state_dicts_copies_and_files_hold_nothing() -> None:
    layer = _layer()
    names = set(layer.state_dict())
    prepack(layer)
    assert set(layer.state_dict()) == names
    assert copy.deepcopy(layer)._packed is None
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.load(file, weights_only=False)._packed is None
    unprepack(layer)
    assert layer._packed is None


@packs
@torch.no_grad()
def test_what_is_not_plain_inference_goes_the_long_way() -> None:
    layer, x = _layer(), torch.randn(1, 18, 6, 6)
    prepack(layer)
    layer.to("meta")
    assert layer(x.to("meta")).shape == (1, 36, 6, 6)
    layer = _layer()
    prepack(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_where_nothing_is_packed() -> None:
    assert prepack(_layer(dtype=torch.float64)) == 0
    assert prepack(DeformConv2d(8, 8, 3, groups=8).eval()) == 0
    with torch.inference_mode():
        layer = _layer()
    with pytest.raises(ValueError, match="inference_mode"):
        prepack(layer)
