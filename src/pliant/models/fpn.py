"""Feature pyramid: maps of several strides, each with information from the deepest one."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FPN(nn.Module):
    """Add the coarser map to every map of a backbone: ``P_i = conv3×3(L_i)``, ``L_i = conv1×1(C_i) + up(L_{i+1})``.

    `up` repeats pixels. `extra` levels follow, each of which takes every second pixel of the one before.

    Args:
        in_channels: of the backbone's maps, finest first.
        channels: of all levels.
        extra: number of additional coarser levels, for proposals of large objects.

    Shape:
        maps (N, in_channels[i], H_i, W_i) → as many, and `extra`, of (N, channels, H_i, W_i).

    Source: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256, extra: int = 1) -> None:
        super().__init__()
        self.extra = extra
        self.lateral = nn.ModuleList(nn.Conv2d(C, channels, 1) for C in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        for layer in (*self.lateral, *self.output):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        x, levels = None, []
        for input, lateral, output in reversed(list(zip(maps, self.lateral, self.output, strict=True))):
            here = lateral(input)
            x = here if x is None else here + F.interpolate(x, here.shape[-2:], mode="nearest")
            levels.append(output(x))
        levels.reverse()
        for _ in range(self.extra):
            levels.append(levels[-1][:, :, ::2, ::2])
        return levels
