"""RoI pooling layers of mmcv and of the DCNv2 forks: known values and names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pliant import ops
from pliant.interop import dcnv2, mmcv
from pliant.testing import error

ROIS = torch.tensor([[0, 0, 0, 9, 9], [1, 2, 1, 5.5, 8], [0, 3, 3, 6, 5]], dtype=torch.float64)


def test_known_values_of_mmcv() -> None:
    # mmcv tests/test_ops/test_deform_roi_pool.py, where the fully connected layers start at zero.
    pool = mmcv.DeformRoIPoolPack(2, 1, sampling_ratio=2)
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], requires_grad=True)
    y = pool(x, torch.tensor([[0.0, 0, 0, 1, 1]]))
    assert y[0, 0].tolist() == [[1, 1.25], [1.5, 1.75]]
    y.sum().backward()
    assert x.grad[0, 0].tolist() == [[3.0625, 0.4375], [0.4375, 0.0625]]


def _drawn(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.2)
    return layer.double()


def test_mmcv_packs() -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 3, 10, 11, dtype=torch.float64)
    settings = {"spatial_scale": 0.5, "sampling_ratio": 2, "gamma": 0.2}
    first = _drawn(mmcv.DeformRoIPoolPack((3, 2), 3, 8, **settings))
    still = ops.deform_roi_pool(x, ROIS, None, (3, 2), 0.5, 2, 0.2)
    offset = first.offset_fc(still.flatten(1)).view(3, 2, 3, 2)
    moved = ops.deform_roi_pool(x, ROIS, offset, (3, 2), 0.5, 2, 0.2)
    assert torch.equal(first(x, ROIS), moved)
    assert error(moved, still) > 1e-3
    second = _drawn(mmcv.ModulatedDeformRoIPoolPack((3, 2), 3, 8, **settings))
    second.offset_fc.load_state_dict(first.offset_fc.state_dict())
    mask = second.mask_fc(still.flatten(1)).view(3, 1, 3, 2)
    assert torch.equal(second(x, ROIS), moved * mask)
    plain = mmcv.DeformRoIPool((3, 2), **settings)
    assert torch.equal(plain(x, ROIS), still)
    assert torch.equal(plain(x, ROIS, offset), moved)
    assert torch.equal(mmcv.deform_roi_pool(x, ROIS, x.new_zeros(0), (3, 2), 0.5, 2, 0.2), still)
    assert first(x, ROIS[:0]).shape == (0, 3, 3, 2)


def test_mmcv_names_and_start() -> None:
    pack = mmcv.ModulatedDeformRoIPoolPack(7, 4, deform_fc_channels=16)
    names = [f"offset_fc.{i}.{p}" for i in (0, 2, 4) for p in ("weight", "bias")]
    assert list(pack.state_dict()) == names + [f"mask_fc.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")]
    assert not pack.offset_fc[4].weight.any() and not pack.mask_fc[2].weight.any()
    x, rois = torch.randn(2, 4, 10, 10), ROIS.float()
    assert error(2 * pack(x, rois), ops.deform_roi_pool(x, rois, None, 7)) < 1e-6
    with pytest.raises(AssertionError, match="expected 4 channels, got 3"):
        pack(x[:, :3], rois)
    with pytest.raises(AssertionError, match="RoI must be"):
        mmcv.deform_roi_pool(x, rois[:, 1:], None, 7)


def test_dcnv2_pooling() -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 8, 10, 11, dtype=torch.float64)
    offset = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    y = dcnv2.dcn_v2_pooling(x, ROIS, offset, 0.5, 4, 2, False, 2, 3, 2, 0.1)
    expected = ops.deform_psroi_pool(
        x, ROIS, offset, 4, 0.5, group_size=2, part_size=3, sample_per_part=2, trans_std=0.1
    )
    assert torch.equal(y, expected)
    layer = dcnv2.DCNv2Pooling(0.5, 4, 2, False, 2, 3, 2, 0.1)
    assert torch.equal(layer(x, ROIS, offset), y)
    still = dcnv2.DCNv2Pooling(0.5, 4, 2, True, 2, 3, 2, 0.1)(x, ROIS, offset)
    assert torch.equal(still, ops.deform_psroi_pool(x, ROIS, None, 4, 0.5, group_size=2, sample_per_part=2))
    with pytest.raises(
        RuntimeError, match=r"^dcn_v2_pooling: input must have output_dim·group_size² = 12 channels, got 8"
    ):
        dcnv2.dcn_v2_pooling(x, ROIS, offset, 0.5, 4, 3, False, 2)
    with pytest.raises(RuntimeError, match=r"^dcn_v2_pooling: offset must have shape"):
        dcnv2.dcn_v2_pooling(x, ROIS, offset[:, :1], 0.5, 4, 2, False, 2, 3)


def test_dcnv2_layer_that_predicts() -> None:
    x = torch.randn(2, 4, 10, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    layer = dcnv2.DCNPooling(0.5, 3, 4, False, sample_per_part=2, trans_std=0.1, deform_fc_dim=8)
    assert list(layer.state_dict()) == [f"offset_mask_fc.{i}.{p}" for i in (0, 2, 4) for p in ("weight", "bias")]
    assert not layer.offset_mask_fc[4].weight.any()
    _drawn(layer)
    still = ops.deform_psroi_pool(x, ROIS, None, 3, 0.5, sample_per_part=2)
    predicted = layer.offset_mask_fc(still.flatten(1)).view(3, 3, 3, 3)
    moved = ops.deform_psroi_pool(x, ROIS, predicted[:, :2].contiguous(), 3, 0.5, sample_per_part=2, trans_std=0.1)
    assert error(layer(x, ROIS), moved * predicted[:, 2:].sigmoid()) < 1e-12
    without = dcnv2.DCNPooling(0.5, 3, 4, True, sample_per_part=2)
    assert list(without.parameters()) == []
    assert torch.equal(without(x, ROIS), still)
