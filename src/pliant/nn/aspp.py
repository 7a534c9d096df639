"""Atrous spatial pyramid pooling with deformable convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pliant import _check
from pliant.ops.conv.modules import DeformConv2d


class DeformASPP(nn.Module):
    """Look at a map through parallel deformable convolutions of several sizes and a pooled branch, and merge them.

    ``y = merge(cat(branch_1(x), …, branch_B(x), pooled(x)))``. A branch is a :class:`DeformConv2d` of version 2 with
    ``mask_scale=2``, batch normalization and ReLU; the pooled branch is the mean over the map, a 1×1 convolution,
    normalization and ReLU, at every position. `merge` is a 1×1 convolution, normalization, ReLU and dropout.
    Convolutions have no bias.

    At the edges convolutions are padded with zeros, so that the map keeps its size. In training mode normalization
    needs more than one image in a batch, because the pooled branch has one value per image.

    Args:
        in_channels: C.
        out_channels: O; None: C.
        kernel_sizes: of the branches, odd. BiRefNet's block has (1, 1, 3, 7).
        channels: of each branch.
        dropout: share of values that training drops at the end.

    Shape:
        (N, C, H, W) → (N, O, H, W).

    Raises:
        ValueError: a kernel size is even, there is none, or another argument is out of range.

    Source: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017; the deformable form is
    that of Zheng et al., "BiRefNet", CAAI AIR 2024. ``pliant convert --from birefnet`` gives its weights our names.

    >>> block = DeformASPP(64, channels=16).eval()
    >>> block(torch.randn(1, 64, 8, 8)).shape
    torch.Size([1, 64, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_sizes: Sequence[int] = (1, 3, 7),
        channels: int = 256,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if not kernel_sizes or any(k < 1 or k % 2 == 0 for k in kernel_sizes):
            raise ValueError(f"DeformASPP: kernel_sizes must be odd, got {tuple(kernel_sizes)}")
        self.in_channels = in_channels
        out_channels = in_channels if out_channels is None else out_channels
        self.branches = nn.ModuleList(
            nn.Sequential(
                DeformConv2d(in_channels, channels, k, padding=k // 2, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            )
            for k in kernel_sizes
        )
        self.pooled = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(in_channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.merge = nn.Sequential(
            nn.Conv2d((len(kernel_sizes) + 1) * channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
        )

    def forward(self, input: Tensor) -> Tensor:
        _check.layer("DeformASPP", "input", input, "N C H W", self.in_channels, self)
        found = [branch(input) for branch in self.branches]
        found.append(self.pooled(input).expand(-1, -1, *input.shape[2:]))
        merged: Tensor = self.merge(torch.cat(found, 1))
        return merged
