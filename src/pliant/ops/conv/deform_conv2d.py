"""Deformable convolution: the public function, its checks, and its declaration."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor
from torch.overrides import has_torch_function_variadic

from pliant import _check
from pliant.ops import _declare
from pliant.ops.conv import checks, reference

_OP = "deform_conv2d"
_Pair = tuple[int, int]


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

    >>> import torch
    >>> x = torch.arange(25.0).view(1, 1, 5, 5)
    >>> offset = torch.full((1, 18, 5, 5), 0.5)
    >>> deform_conv2d(x, offset, torch.ones(1, 1, 3, 3), padding=1)[0, 0, 0]
    tensor([30.0000, 41.2500, 48.7500, 45.0000, 28.7500])
    """
    if has_torch_function_variadic(input, offset, weight, bias, mask):
        return _declare.handed_over(deform_conv2d, locals())
    strides = _check.pair(_OP, "stride", stride, 1)
    paddings = _check.pair(_OP, "padding", padding, 0)
    dilations = _check.pair(_OP, "dilation", dilation, 1)
    clamp = checks.clamps(_OP, boundary)
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
    N, O, Ho, Wo = checks.conv(_OP, 2, input, offset, weight, bias, stride, padding, dilation, mask)
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
    reference.deform_conv,
    _triton,
    gradients=("input", "offset", "weight", "bias", "mask"),
    bias="bias",
    lowered=("input", "weight", "bias"),
)
