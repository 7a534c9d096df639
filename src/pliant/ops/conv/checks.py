"""What the convolutions check of their arguments, and how they name it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from pliant import _check
from pliant.ops.sampling.reference import BOUNDARIES

# Per number of axes: the letters of a map, of a kernel, of the grid of outputs, and of the number of taps.
MAP = {1: "W", 2: "H W", 3: "D H W"}
KERNEL = {1: "Kw", 2: "Kh Kw", 3: "Kd Kh Kw"}
GRID = {1: "Wo", 2: "Ho Wo", 3: "Do Ho Wo"}
TAPS = {1: "Kw", 2: "Kh·Kw", 3: "Kd·Kh·Kw"}


def clamps(op: str, boundary: str) -> bool:
    """Return whether a boundary is "clamp"."""
    if boundary not in BOUNDARIES:
        raise ValueError(f"{op}: boundary must be one of {BOUNDARIES}, got {boundary!r}")
    return boundary == "clamp"


def tensors(op: str, input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None) -> None:
    """Raise unless the tensors have devices and dtypes that go together."""
    _check.device(op, "input", input, offset=offset, weight=weight, bias=bias, mask=mask)
    _check.dtype(op, "input", input)
    beside = (input.dtype, torch.float32) if input.dtype in _check.LOW else (input.dtype,)
    for name, tensor, allowed in (
        ("offset", offset, beside),
        ("weight", weight, (input.dtype,)),
        ("bias", bias, (input.dtype,)),
        ("mask", mask, beside),
    ):
        if tensor is not None:
            _check.dtype(op, name, tensor, allowed)


def offsets(
    op: str, axes: int, offset: Tensor, mask: Tensor | None, N: int, C: int, K: int, grid: Sequence[int], moved: str
) -> None:
    """Raise unless offsets and masks have one value per tap on the grid, in groups that divide `C` channels."""
    letters = GRID[axes].replace(" ", ", ") if moved == "input" else MAP[axes].replace(" ", ", ")
    coordinates = f"{axes}·G·{TAPS[axes]}" if axes > 1 else f"G·{TAPS[axes]}"
    _check.rank(op, "offset", offset, f"N {coordinates} {letters.replace(',', '')}")
    G = max(offset.shape[1] // (axes * K), 1)
    hint = "Did you pass only one coordinate per tap?" if axes > 1 and offset.shape[1] == K else ""
    _check.shape(op, "offset", offset, f"(N, {coordinates}, {letters})", (N, axes * G * K, *grid), hint)
    if C % G != 0:
        raise ValueError(
            f"{op}: offset must have shape (N, {coordinates}, {letters}), where G divides the {int(C)} channels of "
            f"{moved}, got {tuple(int(n) for n in offset.shape)}, which is G = {int(G)}"
        )
    if mask is not None:
        _check.shape(op, "mask", mask, f"(N, G·{TAPS[axes]}, {letters})", (N, G * K, *grid))


def conv(
    op: str,
    axes: int,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    mask: Tensor | None,
) -> tuple[int, ...]:
    """Raise unless the tensors of a convolution fit each other; return the shape of its output."""
    _check.rank(op, "input", input, f"N C {MAP[axes]}")
    _check.rank(op, "weight", weight, f"O C/groups {KERNEL[axes]}")
    tensors(op, input, offset, weight, bias, mask)
    _check.numbers(op, "stride", stride, 1, axes)
    N, C, *size = input.shape
    O, Cg, *kernel = weight.shape
    if any(n < 1 for n in weight.shape):
        raise ValueError(f"{op}: weight must not be empty, got {tuple(int(n) for n in weight.shape)}")
    if C < 1 or C % Cg != 0:
        raise ValueError(
            f"{op}: the {int(C)} channels of input must be divisible by the {int(Cg)} channels per group of weight"
        )
    if O % (C // Cg) != 0:
        raise ValueError(f"{op}: the {int(O)} output channels of weight must be divisible by its {int(C // Cg)} groups")
    grid = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, padding, dilation, kernel, stride, strict=True)
    ]
    if any(n < 1 for n in (*size, *grid)):
        raise ValueError(
            f"{op}: the output would be {times(grid)}, the {times(kernel)} kernel with dilation {tuple(dilation)} and "
            f"padding {tuple(padding)} does not fit into the {times(size)} input"
        )
    offsets(op, axes, offset, mask, N, C, prod(kernel), grid, "input")
    if bias is not None:
        _check.shape(op, "bias", bias, "(O,)", (O,))
    return (N, O, *grid)


def times(sizes: Sequence[int]) -> str:
    """Return sizes as in 3×4."""
    return "×".join([str(int(n)) for n in sizes])
