"""Transposed deformable convolution: the public function, its checks, and its declaration."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor
from torch.overrides import has_torch_function_variadic

from pliant import _check
from pliant.ops import _declare
from pliant.ops.conv import checks, reference

_OP = "deform_conv_transpose2d"


def deform_conv_transpose2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    mask: Tensor | None = None,
    *,
    groups: int = 1,
    boundary: str = "zeros",
    implementation: str = "auto",
) -> Tensor:
    """Add every input pixel, times the weight, to a larger map around taps that are moved by their own offsets.

    ``y[n,o,q] = bias[o] + Σ_p Σ_k Σ_c x[n,c,p] · weight[c,o,k] · mask[n,G(o),k,p] · b(q, s)``, where tap k of p lies at
    ``s = p·stride − padding + k·dilation + offset[n,G(o),k,p]``, and the bilinear weight is
    ``b(q, s) = max(0, 1−|q_y−s_y|)·max(0, 1−|q_x−s_x|)``. It is the adjoint of :func:`pliant.ops.deform_conv2d` in its
    input, and with offsets 0 `torch.nn.functional.conv_transpose2d`.

    At the edges: with ``boundary="zeros"`` what lies outside the output map is lost, and a tap counts when −1 < y < Ho
    and −1 < x < Wo. With ``"clamp"`` it counts when 0 ≤ y < Ho and 0 ≤ x < Wo, and what falls beyond the last row or
    column is added to it. A NaN or infinite coordinate adds nothing. At integer positions the offset gradient is the
    right-sided one. Coordinates, bilinear weights and sums are float32 (float64 for float64 input), whatever the
    storage type. Under autocast, input, weight and bias are cast to the low precision, offset and mask are not.

    Args:
        input: (N, C, H, W), the map; channels_last is kept.
        offset: (N, 2·G·Kh·Kw, H, W), at every input pixel, in pixels of the output; channel
            ``(g·K + k)·2 + {0: dy, 1: dx}``, taps row-major (``k = i·Kw + j``). Offset group j owns output channels
            ``[j·O/G, (j+1)·O/G)``.
        weight: (C, O/groups, Kh, Kw), input's dtype.
        bias: (O,), input's dtype.
        stride: distance between the taps of adjacent input pixels in output pixels, at least 1.
        padding: rows and columns cut off around the output, at least 0.
        output_padding: rows and columns added at the end of the output, at least 0, less than stride or dilation.
        dilation: distance between adjacent taps in output pixels, at least 1.
        mask: (N, G·Kh·Kw, H, W), factor of every tap; channel ``g·K + k``.
        groups: groups of channels; input group j adds to output channels ``[j·O/groups, (j+1)·O/groups)``.
        boundary: "zeros" or "clamp".
        implementation: "auto", "native" (the compiled kernel or an error) or "reference" (plain PyTorch).

    Returns:
        (N, O, Ho, Wo) in input's dtype, with
        ``Ho = (H − 1)·stride − 2·padding + dilation·(Kh − 1) + 1 + output_padding``. Differentiable twice in input,
        offset, weight, bias and mask; forward and backward are deterministic bit for bit for a fixed number of threads.

    Raises:
        TypeError: a dtype is unsupported or not input's; only `offset` and `mask` may be float32 instead, with input in
            float16 or bfloat16.
        ValueError: a shape does not fit, tensors are on different devices, the output would be empty.
        RuntimeError: ``implementation="native"`` where there is no kernel.

    Source: the adjoint of equation 2 of Dai et al., "Deformable Convolutional Networks", ICCV 2017; the layout is
    tvdcn's.

    >>> import torch
    >>> x, weight = torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 1)
    >>> offset = torch.tensor([0.0, 0.5]).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    >>> deform_conv_transpose2d(x, offset, weight, stride=(1, 2), output_padding=(0, 1))[0, 0]
    tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """
    if has_torch_function_variadic(input, offset, weight, bias, mask):
        return _declare.handed_over(deform_conv_transpose2d, locals())
    strides = _check.numbers(_OP, "stride", stride, 1, 2)
    paddings = _check.numbers(_OP, "padding", padding, 0, 2)
    more = _check.numbers(_OP, "output_padding", output_padding, 0, 2)
    dilations = _check.numbers(_OP, "dilation", dilation, 1, 2)
    clamp = checks.clamps(_OP, boundary)
    if not isinstance(groups, int) or isinstance(groups, bool):
        raise TypeError(f"{_OP}: groups must be an int, got {groups!r}")
    if groups < 1:
        raise ValueError(f"{_OP}: groups must be at least 1, got {groups}")
    return _run(implementation, input, offset, weight, bias, strides, paddings, more, dilations, mask, groups, clamp)


def _shape(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    mask: Tensor | None,
    groups: int,
    clamp: bool,
) -> tuple[int, int, int, int]:
    """Raise unless the tensors fit each other; return the shape of the output."""
    _check.rank(_OP, "input", input, "N C H W")
    _check.rank(_OP, "weight", weight, "C O/groups Kh Kw")
    checks.tensors(_OP, input, offset, weight, bias, mask)
    _check.numbers(_OP, "stride", stride, 1, 2)
    N, C, H, W = input.shape
    Cw, Og, Kh, Kw = weight.shape
    if any(n < 1 for n in weight.shape):
        raise ValueError(f"{_OP}: weight must not be empty, got {tuple(int(n) for n in weight.shape)}")
    if Cw != C:
        raise ValueError(f"{_OP}: weight must have the {int(C)} channels of input first, got {int(Cw)}")
    if groups < 1 or C % groups != 0:
        raise ValueError(f"{_OP}: the {int(C)} channels of input must be divisible by groups={groups}")
    for more, s, d in zip(output_padding, stride, dilation, strict=True):
        if more >= max(s, d):
            raise ValueError(
                f"{_OP}: output_padding must be less than stride or dilation, got {tuple(output_padding)} with stride "
                f"{tuple(stride)} and dilation {tuple(dilation)}"
            )
    Ho, Wo = (
        (n - 1) * s - 2 * p + d * (k - 1) + 1 + more
        for n, s, p, d, k, more in zip((H, W), stride, padding, dilation, (Kh, Kw), output_padding, strict=True)
    )
    if H < 1 or W < 1 or Ho < 1 or Wo < 1:
        raise ValueError(
            f"{_OP}: the output would be {int(Ho)}×{int(Wo)}, nothing of the {int(H)}×{int(W)} input remains with "
            f"padding {tuple(padding)}"
        )
    O = Og * groups
    checks.offsets(_OP, 2, offset, mask, N, O, Kh * Kw, (H, W), "output")
    if bias is not None:
        _check.shape(_OP, "bias", bias, "(O,)", (O,))
    return N, O, Ho, Wo


def _triton() -> ModuleType:
    from pliant.ops.conv import triton

    return triton


_run = _declare.declare(
    _OP,
    "Tensor input, Tensor offset, Tensor weight, Tensor? bias, int[] stride, SymInt[] padding, "
    "SymInt[] output_padding, int[] dilation, Tensor? mask, int groups, bool clamp",
    _shape,
    reference.deform_conv_transpose2d,
    _triton,
    gradients=("input", "offset", "weight", "bias", "mask"),
    bias="bias",
    lowered=("input", "weight", "bias"),
)
