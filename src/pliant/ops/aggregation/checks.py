"""What `dcnv3` and `dcnv4` check alike: their geometry, and how many samples it has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pliant import _check

Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int], int, float, bool]


def geometry(
    op: str,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
) -> Geometry:
    """Return the geometry as the raw operators take it; raise unless its numbers are right."""
    kernel = _check.pair(op, "kernel_size", kernel_size, 1)
    strides = _check.pair(op, "stride", stride, 1)
    paddings = _check.pair(op, "padding", padding, 0)
    dilations = _check.pair(op, "dilation", dilation, 1)
    if not isinstance(groups, int) or isinstance(groups, bool):
        raise TypeError(f"{op}: groups must be an int, got {groups!r}")
    if not isinstance(offset_scale, int | float) or not abs(offset_scale) < math.inf:
        raise ValueError(f"{op}: offset_scale must be a finite number, got {offset_scale!r}")
    return kernel, strides, paddings, dilations, groups, float(offset_scale), bool(remove_center)


def samples(op: str, kernel_size: Sequence[int], remove_center: bool) -> int:
    """Return K, the number of samples per position and group."""
    Kh, Kw = kernel_size
    K = Kh * Kw - int(remove_center)
    if K < 1:
        raise ValueError(f"{op}: a kernel of one tap has no other tap, so remove_center must be False")
    return K


def output_size(
    op: str,
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    **beside: Tensor,
) -> tuple[int, int, int, int]:
    """Raise unless the tensors have the right devices, dtypes and ranks; return the shape of the output."""
    _check.rank(op, "input", input, "N H W C")
    _check.device(op, "input", input, **beside)
    _check.dtype(op, "input", input)
    allowed = (input.dtype, torch.float32) if input.dtype in _check.LOW else (input.dtype,)
    for name, tensor in beside.items():
        _check.dtype(op, name, tensor, allowed)
    _check.pair(op, "stride", stride, 1)
    N, H, W, C = input.shape
    if groups < 1 or C < 1 or C % groups != 0:
        raise ValueError(f"{op}: the {int(C)} channels of input must be divisible by the {int(groups)} groups")
    Ho, Wo = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip((H, W), padding, dilation, kernel_size, stride, strict=True)
    )
    if H < 1 or W < 1 or Ho < 1 or Wo < 1:
        Kh, Kw = kernel_size
        raise ValueError(
            f"{op}: the output would be {int(Ho)}×{int(Wo)}, the {Kh}×{Kw} kernel with dilation {tuple(dilation)} and "
            f"padding {tuple(int(p) for p in padding)} does not fit into the {int(H)}×{int(W)} input"
        )
    if H * W >= _check.LIMIT:
        raise ValueError(f"{op}: input must have fewer than 2³¹ pixels, got {int(H)}×{int(W)}")
    return N, Ho, Wo, C
