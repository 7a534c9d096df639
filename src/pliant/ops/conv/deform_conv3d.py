"""Deformable convolution of volumes: the public function, its checks, and its declaration."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor
from torch.overrides import has_torch_function_variadic

from pliant import _check
from pliant.ops import _declare
from pliant.ops.conv import checks, reference

_OP = "deform_conv3d"


def deform_conv3d(
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
    """Convolve a volume with every tap moved by its own offset, and with `mask` multiplied by its own factor.

    ``y[n,o,p] = bias[o] + Σ_k Σ_c weight[o,c,k] · mask[n,G(c),k,p] · x[n,c, p·stride − padding + k·dilation + Δ]``
    with ``Δ = offset[n,G(c),k,p]`` and ``x(·)`` sampled trilinearly.

    At the edges: with ``boundary="zeros"`` voxels outside the volume are 0 and a sample counts when −1 < z < D,
    −1 < y < H and −1 < x < W. With ``"clamp"`` it counts when 0 ≤ z < D, 0 ≤ y < H and 0 ≤ x < W, and the far neighbour
    clamps to the last plane, row or column. A NaN or infinite coordinate samples nothing. At integer positions the
    offset gradient is the right-sided one. Coordinates, weights and sums are float32 (float64 for float64 input),
    whatever the storage type. Under autocast, input, weight and bias are cast to the low precision, offset and mask are
    not.

    Args:
        input: (N, C, D, H, W), the volumes; channels_last_3d is kept, and copied only in float16.
        offset: (N, 3·G·Kd·Kh·Kw, Do, Ho, Wo), in voxels of the input; channel ``(g·K + k)·3 + {0: dz, 1: dy, 2: dx}``,
            taps row-major (``k = (h·Kh + i)·Kw + j``). Offset group j owns input channels ``[j·C/G, (j+1)·C/G)``.
        weight: (O, C/groups, Kd, Kh, Kw), input's dtype; `groups` is read from its shape.
        bias: (O,), input's dtype.
        stride: distance between adjacent outputs in input voxels, at least 1; one number, or three for depth, height
            and width.
        padding: planes, rows and columns added around the volume, at least 0.
        dilation: distance between adjacent taps in input voxels, at least 1.
        mask: (N, G·Kd·Kh·Kw, Do, Ho, Wo), factor of every sample; channel ``g·K + k``.
        boundary: "zeros" or "clamp".
        implementation: "auto", "native" (the compiled kernel or an error) or "reference" (plain PyTorch).

    Returns:
        (N, O, Do, Ho, Wo) in input's dtype, with ``Do = (D + 2·padding − dilation·(Kd − 1) − 1)//stride + 1``, Ho and
        Wo alike. Differentiable twice in input, offset, weight, bias and mask; the backward is deterministic bit for
        bit for a fixed number of threads.

    Raises:
        TypeError: a dtype is unsupported or not input's; only `offset` and `mask` may be float32 instead, with input in
            float16 or bfloat16.
        ValueError: a shape does not fit, tensors are on different devices, the output would be empty.
        RuntimeError: ``implementation="native"`` where there is no kernel.

    Source: equation 2 of Dai et al., "Deformable Convolutional Networks", ICCV 2017, over three axes; the layout of
    offsets is that of D3Dnet (Ying et al., 2020) and tvdcn.

    >>> import torch
    >>> x = torch.arange(8.0).view(1, 1, 2, 2, 2)
    >>> offset = torch.full((1, 3, 2, 2, 2), 0.5)
    >>> deform_conv3d(x, offset, torch.ones(1, 1, 1, 1, 1))[0, 0, 0]
    tensor([[3.5000, 2.0000],
            [2.2500, 1.2500]])
    """
    if has_torch_function_variadic(input, offset, weight, bias, mask):
        return _declare.handed_over(deform_conv3d, locals())
    strides = _check.numbers(_OP, "stride", stride, 1, 3)
    paddings = _check.numbers(_OP, "padding", padding, 0, 3)
    dilations = _check.numbers(_OP, "dilation", dilation, 1, 3)
    clamp = checks.clamps(_OP, boundary)
    return _run(implementation, input, offset, weight, bias, strides, paddings, dilations, mask, clamp)


def _shape(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    mask: Tensor | None,
    clamp: bool,
) -> tuple[int, ...]:
    return checks.conv(_OP, 3, input, offset, weight, bias, stride, padding, dilation, mask)


def _triton() -> ModuleType:
    from pliant.ops.conv import triton

    return triton


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
