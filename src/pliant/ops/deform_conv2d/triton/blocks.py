"""How the kernels cut their work, by shape class: chosen from sizes alone, never by trying."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pliant.ops._launch import power
from pliant.ops.deform_conv2d.triton.shape import Shape


class Blocks(NamedTuple):
    """What one program computes at a time: positions, outputs, channels, taps; its warps, stages and registers."""

    P: int
    O: int
    C: int
    taps: int
    warps: int
    stages: int = 1
    registers: int | None = None


def _lanes(shape: Shape, most: int) -> tuple[int, int]:
    """Return channels and taps of a tile `most` columns wide: few channels share it with several taps."""
    C = power(shape.segment, 1, most)
    return C, min(most // C, max(power(shape.K, 1, most), 16 // C))


def forward(shape: Shape) -> Blocks:
    """Return the blocks of the forward kernel."""
    if shape.dtype == torch.float32:
        # Without TF32 the products, too, are computed in registers.
        C, taps = _lanes(shape, 32 if shape.arguments["PRECISION"] == "tf32" else 16)
        return Blocks(64, power(shape.Og, 16, 64), C, taps, 4)
    C, taps = _lanes(shape, 32)
    O = power(shape.Og, 16, 256)
    return Blocks(64, O, C, taps, 8 if O == 256 else 4, registers=168 if taps > 1 and O < 256 else None)


def depthwise(shape: Shape) -> Blocks:
    """Return the blocks of the depthwise kernels: outputs that are channels."""
    return Blocks(32, power(shape.Cj * shape.multiplier, 16, 64), 0, 1, 4, registers=168)


def samples(shape: Shape) -> Blocks:
    """Return the blocks of the kernel for the gradients of input, offset and mask."""
    if shape.multiplier:
        return Blocks(32, 16, power(shape.Cj, 16, 64), 1, 4)
    C, taps = _lanes(shape, 32)
    # Just so many that no register is spilled.
    return Blocks(64, power(shape.Og, 16, 64 if shape.dtype == torch.float32 else 32), C, taps, 4)


def weight(shape: Shape) -> Blocks:
    """Return the blocks of the kernel for the gradient of the weight."""
    C, taps = _lanes(shape, 32)
    return Blocks(32, power(shape.Og, 16, 64), C, taps, 4)
