"""Deformable convolution: the public function, its checks, and its declaration."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from pliant import _check
from pliant.ops import _declare
from pliant.ops.conv import reference
from pliant.ops.sampling.reference import BOUNDARIES

_OP = "deform_conv2d"
_Pair = tuple[int, int]


@_declare.leaf
def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    mask: Tensor | None = None,
    *,
    boundary: str = "zeros",
    implementation: str = "auto",
) -> Tensor:
    """Convolve with every tap moved by its own offset: DCNv1, and with `mask` DCNv2.

    ``y[n,o,p] = bias[o] + Σ_k Σ_c weight[o,c,k] · mask[n,G(c),k,p] · x[n,c, p·stride − padding + k·dilation + Δ]``
    with ``Δ = offset[n,G(c),k,p]`` and ``x(·)`` sampled bilinearly.

    At the edges: with ``boundary="zeros"`` pixels outside the map are 0 and a sample counts when −1 < y < H and
    −1 < x < W (torchvision, mmcv, detectron2, ONNX). With ``"clamp"`` it counts when 0 ≤ y < H and 0 ≤ x < W, and the
    far neighbour clamps to the last row or column (the original DCNv1 operator). A NaN or infinite coordinate samples
    nothing. At integer positions the offset gradient is the right-sided one. Coordinates, bilinear weights and sums
    are float32 (float64 for float64 input), whatever the storage type. Under autocast, input, weight and bias are cast
    to the low precision, offset and mask are not.

    Args:
        input: (N, C, H, W), the map; channels_last is kept, and copied only in float16 or with at most four channels.
        offset: (N, 2·G·Kh·Kw, Ho, Wo), in pixels of the input; channel ``(g·K + k)·2 + {0: dy, 1: dx}``, taps
            row-major (``k = i·Kw + j``). Offset group j owns input channels ``[j·C/G, (j+1)·C/G)``.
        weight: (O, C/groups, Kh, Kw), input's dtype; `groups` is read from its shape.
        bias: (O,), input's dtype.
        stride: distance between adjacent outputs in input pixels, at least 1.
        padding: rows and columns added around the map, at least 0.
        dilation: distance between adjacent taps in input pixels, at least 1.
        mask: (N, G·Kh·Kw, Ho, Wo), factor of every sample; channel ``g·K + k``.
        boundary: "zeros" or "clamp".
        implementation: "auto", "native" (the compiled kernel or an error) or "reference" (plain PyTorch).

    Returns:
        (N, O, Ho, Wo) in input's dtype, with ``Ho = (H + 2·padding − dilation·(Kh − 1) − 1)//stride + 1``.
        Differentiable twice in input, offset, weight, bias and mask; the backward is deterministic bit for bit for a
        fixed number of threads.

    Raises:
        TypeError: a dtype is unsupported or not input's; only `offset` and `mask` may be float32 instead, with input in
            float16 or bfloat16.
        ValueError: a shape does not fit, tensors are on different devices, the output would be empty.
        RuntimeError: ``implementation="native"`` where there is no kernel.

    Source: Dai et al., "Deformable Convolutional Networks", ICCV 2017, equation 2; Zhu et al., "Deformable ConvNets
    v2", CVPR 2019, equation 1. Argument order of torchvision.ops.deform_conv2d.

    >>> x = torch.arange(25.0).view(1, 1, 5, 5)
    >>> offset = torch.full((1, 18, 5, 5), 0.5)
    >>> deform_conv2d(x, offset, torch.ones(1, 1, 3, 3), padding=1)[0, 0, 0]
    tensor([30.0000, 41.2500, 48.7500, 45.0000, 28.7500])
    """
    strides = _check.pair(_OP, "stride", stride, 1)
    paddings = _check.pair(_OP, "padding", padding, 0)
    dilations = _check.pair(_OP, "dilation", dilation, 1)
    if boundary not in BOUNDARIES:
        raise ValueError(f"{_OP}: boundary must be one of {BOUNDARIES}, got {boundary!r}")
    clamp = boundary == "clamp"
    return _run(implementation, input, offset, weight, bias, strides, paddings, dilations, mask, clamp)


def _shape(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: _Pair,
    padding: _Pair,
    dilation: _Pair,
    mask: Tensor | None,
    clamp: bool,
) -> tuple[int, int, int, int]:
    """Raise unless the tensors fit each other; return the shape of the output."""
    _check.rank(_OP, "input", input, "N C H W")
    _check.rank(_OP, "weight", weight, "O C/groups Kh Kw")
    _check.device(_OP, "input", input, offset=offset, weight=weight, bias=bias, mask=mask)
    _check.dtype(_OP, "input", input)
    beside = (input.dtype, torch.float32) if input.dtype in _check.LOW else (input.dtype,)
    for name, tensor, allowed in (
        ("offset", offset, beside),
        ("weight", weight, (input.dtype,)),
        ("bias", bias, (input.dtype,)),
        ("mask", mask, beside),
    ):
        if tensor is not None:
            _check.dtype(_OP, name, tensor, allowed)

    N, C, H, W = input.shape
    O, Cg, Kh, Kw = weight.shape
    if O < 1 or Cg < 1 or Kh < 1 or Kw < 1:
        raise ValueError(f"{_OP}: weight must not be empty, got {tuple(int(n) for n in weight.shape)}")
    if C < 1 or C % Cg != 0:
        raise ValueError(
            f"{_OP}: the {int(C)} channels of input must be divisible by the {int(Cg)} channels per group of weight"
        )
    if O % (C // Cg) != 0:
        raise ValueError(
            f"{_OP}: the {int(O)} output channels of weight must be divisible by its {int(C // Cg)} groups"
        )
    size = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip((H, W), padding, dilation, (Kh, Kw), stride, strict=True)
    )
    Ho, Wo = size
    if H < 1 or W < 1 or Ho < 1 or Wo < 1:
        raise ValueError(
            f"{_OP}: the output would be {int(Ho)}×{int(Wo)}, the {int(Kh)}×{int(Kw)} kernel with dilation "
            f"{tuple(dilation)} and padding {tuple(padding)} does not fit into the {int(H)}×{int(W)} input"
        )
    K = Kh * Kw
    _check.rank(_OP, "offset", offset, "N 2·G·Kh·Kw Ho Wo")
    G = max(offset.shape[1] // (2 * K), 1)
    hint = "Did you pass only one coordinate per tap?" if offset.shape[1] == K else ""
    _check.shape(_OP, "offset", offset, "(N, 2·G·Kh·Kw, Ho, Wo)", (N, 2 * G * K, Ho, Wo), hint)
    if C % G != 0:
        raise ValueError(
            f"{_OP}: offset must have shape (N, 2·G·Kh·Kw, Ho, Wo), where G divides the {int(C)} channels of input, "
            f"got {tuple(int(n) for n in offset.shape)}, which is G = {int(G)}"
        )
    if mask is not None:
        _check.shape(_OP, "mask", mask, "(N, G·Kh·Kw, Ho, Wo)", (N, G * K, Ho, Wo))
    if bias is not None:
        _check.shape(_OP, "bias", bias, "(O,)", (O,))
    return N, O, Ho, Wo


def _triton() -> ModuleType:
    from pliant.ops.conv import triton

    return triton


# Padding may depend on the size of a map and is traced where sizes are symbolic. Stride and dilation are constants of
# the network, and lists of plain integers cost less per call.
_run = _declare.declare(
    _OP,
    "Tensor input, Tensor offset, Tensor weight, Tensor? bias, int[] stride, SymInt[] padding, int[] dilation, "
    "Tensor? mask, bool clamp",
    _shape,
    reference.deform_conv2d,
    _triton,
    gradients=("input", "offset", "weight", "bias", "mask"),
    bias="bias",
    lowered=("input", "weight", "bias"),
)
