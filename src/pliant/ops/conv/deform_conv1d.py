"""Deformable convolution of sequences: the public function, its checks, and its declaration."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor
from torch.overrides import has_torch_function_variadic

from pliant import _check
from pliant.ops import _declare
from pliant.ops.conv import checks, reference

_OP = "deform_conv1d"


def deform_conv1d(
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
    """Convolve a sequence with every tap moved by its own offset, and with `mask` multiplied by its own factor.

    ``y[n,o,p] = bias[o] + Σ_k Σ_c weight[o,c,k] · mask[n,G(c),k,p] · x[n,c, p·stride − padding + k·dilation + Δ]``
    with ``Δ = offset[n,G(c),k,p]`` and ``x(·)`` sampled linearly: :func:`pliant.ops.deform_conv2d` on a map of one row.

    At the edges: with ``boundary="zeros"`` samples outside the sequence are 0 and one counts when −1 < x < W. With
    ``"clamp"`` it counts when 0 ≤ x < W, and beyond the last sample that one is repeated. A NaN or infinite coordinate
    samples nothing. At integer positions the offset gradient is the right-sided one. Coordinates, weights and sums are
    float32 (float64 for float64 input), whatever the storage type. Under autocast, input, weight and bias are cast to
    the low precision, offset and mask are not.

    Args:
        input: (N, C, W), the sequences.
        offset: (N, G·Kw, Wo), in samples of the input; channel ``g·K + k``. Offset group j owns input channels
            ``[j·C/G, (j+1)·C/G)``.
        weight: (O, C/groups, Kw), input's dtype; `groups` is read from its shape.
        bias: (O,), input's dtype.
        stride: distance between adjacent outputs in input samples, at least 1.
        padding: samples added at both ends, at least 0.
        dilation: distance between adjacent taps in input samples, at least 1.
        mask: (N, G·Kw, Wo), factor of every sample; channel ``g·K + k``.
        boundary: "zeros" or "clamp".
        implementation: "auto", "native" (the compiled kernel or an error) or "reference" (plain PyTorch).

    Returns:
        (N, O, Wo) in input's dtype, with ``Wo = (W + 2·padding − dilation·(Kw − 1) − 1)//stride + 1``. Differentiable
        twice in input, offset, weight, bias and mask; the backward is deterministic bit for bit for a fixed number of
        threads.

    Raises:
        TypeError: a dtype is unsupported or not input's; only `offset` and `mask` may be float32 instead, with input in
            float16 or bfloat16.
        ValueError: a shape does not fit, tensors are on different devices, the output would be empty.
        RuntimeError: ``implementation="native"`` where there is no kernel.

    Source: equation 2 of Dai et al., "Deformable Convolutional Networks", ICCV 2017, over one axis.

    >>> import torch
    >>> x = torch.arange(5.0).view(1, 1, 5)
    >>> deform_conv1d(x, torch.full((1, 3, 5), 0.5), torch.ones(1, 1, 3), padding=1)[0, 0]
    tensor([2.0000, 4.5000, 7.5000, 8.0000, 5.5000])
    """
    if has_torch_function_variadic(input, offset, weight, bias, mask):
        return _declare.handed_over(deform_conv1d, locals())
    strides = _check.numbers(_OP, "stride", stride, 1, 1)
    paddings = _check.numbers(_OP, "padding", padding, 0, 1)
    dilations = _check.numbers(_OP, "dilation", dilation, 1, 1)
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
    return checks.conv(_OP, 1, input, offset, weight, bias, stride, padding, dilation, mask)


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
