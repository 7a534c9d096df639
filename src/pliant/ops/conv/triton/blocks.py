"""How the kernels divide their work, by class of shape: sizes from a table or from `pliant tune`, never from trials."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from pliant.ops.conv.triton.shape import Shape
from pliant.ops.gpu import tuned
from pliant.ops.gpu.launch import Launch, power


class Blocks(NamedTuple):
    """What one program computes at a time: positions, outputs, channels, taps; its warps, stages and registers."""

    P: int
    O: int
    C: int
    taps: int
    warps: int
    stages: int = 1
    registers: int | None = None

    def launch(self, kernel: Any, grid: tuple[int, int, int], shape: Shape, **more: Any) -> Launch:
        """Return the launch of a kernel on a shape, in blocks of these sizes."""
        blocks = {"BLOCK_P": self.P, "BLOCK_O": self.O, "BLOCK_C": self.C, "TAPS": self.taps}
        known = shape.arguments | blocks | more
        return Launch.of(kernel, grid, self.warps, self.stages, self.registers, **known)


def _lanes(shape: Shape, most: int) -> tuple[int, int]:
    """Return channels and taps of a tile `most` columns wide: where channels are few, it holds several taps."""
    C = power(shape.segment, 1, most)
    return C, min(most // C, max(power(shape.K, 1, most), 16 // C))


def forward(shape: Shape) -> Blocks:
    """Return the blocks of the forward kernel."""
    return _chosen(shape, "forward")


def samples(shape: Shape) -> Blocks:
    """Return the blocks of the kernel for the gradients of input, offset and mask."""
    return _chosen(shape, "samples")


def weight(shape: Shape) -> Blocks:
    """Return the blocks of the kernel for the gradient of the weight."""
    return _chosen(shape, "weight")


def _chosen(shape: Shape, kernel: str) -> Blocks:
    sizes = tuned.known(shape.device)
    found = sizes.get(name(shape, kernel)) if sizes else None
    return TABLE[kernel](shape) if found is None else Blocks(*found)


def name(shape: Shape, kernel: str) -> str:
    """Return the class of shapes for which sizes are tuned: a kernel, and what its speed depends on most."""
    dtype, positions = str(shape.dtype).removeprefix("torch."), power(shape.N * shape.P, 1, 1 << 62)
    dtype = "tf32" if shape.arguments["PRECISION"] == "tf32" else dtype
    depthwise = f", {shape.multiplier} outputs each" if shape.multiplier else f", {shape.Og} outputs"
    return f"{kernel} {dtype}: {shape.segment} channels{depthwise}, {shape.K} taps, up to {positions} positions"


def _forward(shape: Shape) -> Blocks:
    if shape.multiplier:
        return _depthwise(shape)
    if shape.dtype == torch.float32:
        # Without TF32 there are no matrix instructions: products are computed in registers, too.
        C, taps = _lanes(shape, 32 if shape.arguments["PRECISION"] == "tf32" else 16)
        return Blocks(64, power(shape.Og, 16, 64), C, taps, 4, registers=168 if taps > 1 else None)
    C, taps = _lanes(shape, 32)
    O = power(shape.Og, 16, 256)
    return Blocks(64, O, C, taps, 8 if O == 256 else 4, registers=168 if taps > 1 and O < 256 else None)


def _depthwise(shape: Shape) -> Blocks:
    # There are no input channels: every output reads its own.
    return Blocks(32, power(shape.Cj * shape.multiplier, 16, 64), 0, 1, 4, registers=168)


def _samples(shape: Shape) -> Blocks:
    if shape.multiplier:
        return Blocks(32, 16, power(shape.Cj, 16, 64), 1, 4)
    C, taps = _lanes(shape, 32)
    # The largest for which no register is spilled.
    return Blocks(64, power(shape.Og, 16, 64 if shape.dtype == torch.float32 else 32), C, taps, 4)


def _weight(shape: Shape) -> Blocks:
    if shape.multiplier:
        return _depthwise(shape)
    C, taps = _lanes(shape, 32)
    return Blocks(32, power(shape.Og, 16, 64), C, taps, 4)


TABLE = {"forward": _forward, "samples": _samples, "weight": _weight}


def neighbours(shape: Shape, kernel: str, size: Blocks) -> list[Blocks]:
    """Return sizes close to `size`: one of them doubled or halved, or one stage more or less.

    Matrix instructions need at least 16 in every dimension; the largest program here already holds one register per
    lane of 512 by 32.
    """
    found = []
    depthwise = shape.multiplier > 0
    for P in (size.P // 2, size.P * 2):
        if 16 <= P <= 256:
            found.append(size._replace(P=P))
    outputs = shape.Cj * shape.multiplier if depthwise else shape.Og
    for O in (size.O // 2, size.O * 2):
        if 16 <= O <= power(outputs, 16, 256) and not (depthwise and kernel == "samples"):
            found.append(size._replace(O=O))
    for columns in (size.C * size.taps // 2, size.C * size.taps * 2):
        if depthwise and kernel == "samples" and 16 <= columns <= power(shape.Cj, 16, 256):
            found.append(size._replace(C=columns))
        elif not depthwise and 16 <= columns <= 128:
            C, taps = _lanes(shape, columns)
            found.append(size._replace(C=C, taps=taps))
    for warps in (size.warps // 2, size.warps * 2):
        if 1 <= warps <= 16:
            found.append(size._replace(warps=warps))
    for stages in (size.stages - 1, size.stages + 1):
        if 1 <= stages <= 4:
            found.append(size._replace(stages=stages))
    # The limit of registers was found for `size`, and does not hold for others.
    return [f for f in dict.fromkeys(n._replace(registers=None) for n in found) if f != size]
