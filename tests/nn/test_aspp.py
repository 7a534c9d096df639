"""The block of deformable convolutions of several sizes, and BiRefNet's weights in it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.interop import checkpoints
from pliant.nn import DeformASPP, OffsetStatistics
from pliant.ops import deform_conv2d
from pliant.testing import error


class Moved(nn.Module):
    """BiRefNet's deformable convolution: offsets, masks and the weight have a convolution each."""

    def __init__(self, channels: int, out: int, k: int) -> None:
        super().__init__()
        self.padding = k // 2
        self.offset_conv = nn.Conv2d(channels, 2 * k * k, k, padding=k // 2)
        self.modulator_conv = nn.Conv2d(channels, k * k, k, padding=k // 2)
        self.regular_conv = nn.Conv2d(channels, out, k, padding=k // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mask = 2 * self.modulator_conv(x).sigmoid()
        return deform_conv2d(x, self.offset_conv(x), self.regular_conv.weight, padding=self.padding, mask=mask)


class Branch(nn.Module):
    def __init__(self, channels: int, out: int, k: int) -> None:
        super().__init__()
        self.atrous_conv, self.bn = Moved(channels, out, k), nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.bn(self.atrous_conv(x)).relu()
        return found


class BiRefNetBlock(nn.Module):
    """The block of BiRefNet's decoder, by the names of its checkpoints."""

    def __init__(self, channels: int, each: int) -> None:
        super().__init__()
        self.aspp1 = Branch(channels, each, 1)
        self.aspp_deforms = nn.ModuleList(Branch(channels, each, k) for k in (1, 3, 7))
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d((1, 1)), nn.Conv2d(channels, each, 1, bias=False), nn.BatchNorm2d(each), nn.ReLU()
        )
        self.conv1 = nn.Conv2d(5 * each, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.interpolate(self.global_avg_pool(x), size=x.shape[2:], mode="bilinear", align_corners=True)
        branches = [self.aspp1(x), *(branch(x) for branch in self.aspp_deforms), pooled]
        found: Tensor = self.bn1(self.conv1(torch.cat(branches, 1))).relu()
        return found


@pytest.fixture
def block() -> BiRefNetBlock:
    torch.manual_seed(0)
    block = BiRefNetBlock(16, 16).double()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return block.eval()


@pytest.mark.parametrize("prefix", ["", "decoder.decoder_block4.dec_att."])
def test_birefnet_converts(block: BiRefNetBlock, prefix: str) -> None:
    state = {f"{prefix}{name}": t for name, t in block.state_dict().items()}
    state |= {f"{prefix.replace('dec_att.', '')}conv_in.weight": torch.zeros(1)} if prefix else {}
    done = checkpoints.convert(state, "birefnet")
    ours = DeformASPP(16, kernel_sizes=(1, 1, 3, 7), channels=16).double().eval()
    own = {name.removeprefix(prefix): t for name, t in done.state.items() if name.startswith(prefix)}
    ours.load_state_dict(own)
    x = torch.randn(2, 16, 9, 8, dtype=torch.float64)
    assert error(ours(x), block(x)) < 1e-12
    settings = {"version": 2, "offset_groups": 1, "mask_scale": 2.0, "boundary": "zeros"}
    assert done.layers == {f"{prefix}branches.{i}.0": settings for i in range(4)}
    # Other names stay, and both parts of a joined branch are said to have become it.
    assert not prefix or "decoder.decoder_block4.conv_in.weight" in done.state
    joined = done.names[f"{prefix}aspp_deforms.1.atrous_conv.modulator_conv.bias"]
    assert joined == done.names[f"{prefix}aspp_deforms.1.atrous_conv.offset_conv.bias"]
    assert joined == f"{prefix}branches.2.0.conv_offset.bias"


def test_birefnet_that_does_not_fit_is_refused(block: BiRefNetBlock) -> None:
    state = dict(block.state_dict())
    name = "aspp1.atrous_conv.modulator_conv.weight"
    with pytest.raises(
        ValueError, match=r"^convert: offsets and masks of branches\.0\.0\.conv_offset\.weight must be two"
    ):
        checkpoints.convert(state | {name: state[name].repeat(2, 1, 1, 1)}, "birefnet")
    del state["aspp1.atrous_conv.offset_conv.weight"]
    with pytest.raises(
        ValueError, match=r"^convert: there is a branch of masks, branches\.0\.0\.conv_mask\.weight, with"
    ):
        checkpoints.convert(state, "birefnet")


def test_starts_as_plain_convolutions_and_trains() -> None:
    torch.manual_seed(0)
    block = DeformASPP(16, 24, channels=16)
    x = torch.randn(2, 16, 9, 8)
    with OffsetStatistics(block) as statistics:
        y = block(x)
        y.square().mean().backward()
    assert y.shape == (2, 24, 9, 8)
    assert set(statistics.report()) == {f"branches.{i}.0" for i in range(3)}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
    branch = block.branches[2][0]
    plain = F.conv2d(x, branch.weight, padding=3)
    assert error(branch(x), plain) < 1e-5
    block.eval()
    assert block(x[:1]).shape == (1, 24, 9, 8)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"^DeformASPP: kernel_sizes must be odd, got \(1, 4\)$"):
        DeformASPP(16, kernel_sizes=(1, 4))
    with pytest.raises(ValueError, match=r"^DeformASPP: input must have 16 channels, got shape \(1, 8, 4, 4\)$"):
        DeformASPP(16)(torch.zeros(1, 8, 4, 4))
