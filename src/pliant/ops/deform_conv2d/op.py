"""Deformable convolution: the public function, and what torch must know about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pliant import _check, _native
from pliant.ops import _twice
from pliant.ops._sampling import BOUNDARIES
from pliant.ops.deform_conv2d import reference

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
    are float32 (float64 for float64 input), whatever the storage type. Under autocast input, weight and bias run in
    the low precision, offset and mask stay as they are.

    Args:
        input: (N, C, H, W), the map; channels_last is kept, and copied only in float16 or with at most four channels.
        offset: (N, 2·G·Kh·Kw, Ho, Wo), in pixels of the input; channel ``(g·K + k)·2 + {0: dy, 1: dx}``, taps
            row-major (``k = i·Kw + j``). Offset group j owns input channels ``[j·C/G, (j+1)·C/G)``.
        weight: (O, C/groups, Kh, Kw), input's dtype; `groups` is read from its shape.
        bias: (O,), input's dtype.
        stride: step of the output grid in input pixels, at least 1.
        padding: rows and columns added around the map, at least 0.
        dilation: distance of adjacent taps in input pixels, at least 1.
        mask: (N, G·Kh·Kw, Ho, Wo), factor of every sample; channel ``g·K + k``.
        boundary: "zeros" or "clamp".
        implementation: "auto", "native" (the compiled kernel or an error) or "reference" (plain PyTorch).

    Returns:
        (N, O, Ho, Wo) in input's dtype, with ``Ho = (H + 2·padding − dilation·(Kh − 1) − 1)//stride + 1``.
        Differentiable twice in input, offset, weight, bias and mask; the backward is deterministic bit for bit for a
        fixed number of threads.

    Raises:
        TypeError: `offset` and `mask` have neither input's dtype nor, beside float16 and bfloat16, float32.
        ValueError: a shape does not fit, tensors are on different devices, the output would be empty.
        RuntimeError: ``implementation="native"`` where there is no kernel.

    Source: Dai et al., "Deformable Convolutional Networks", ICCV 2017, equation 2; Zhu et al., "Deformable ConvNets
    v2", CVPR 2019, equation 1. Argument order of torchvision.ops.deform_conv2d.

    >>> x = torch.arange(25.0).view(1, 1, 5, 5)
    >>> offset = torch.full((1, 18, 5, 5), 0.5)
    >>> deform_conv2d(x, offset, torch.ones(1, 1, 3, 3), padding=1)[0, 0, 0]
    tensor([30.0000, 41.2500, 48.7500, 45.0000, 28.7500])
    """
    step, pad, reach = (
        _check.pair(_OP, "stride", stride, 1),
        _check.pair(_OP, "padding", padding, 0),
        _check.pair(_OP, "dilation", dilation, 1),
    )
    if boundary not in BOUNDARIES:
        raise ValueError(f"{_OP}: boundary must be one of {BOUNDARIES}, got {boundary!r}")
    geometry = (*step, *pad, *reach, boundary == "clamp")
    if implementation == "auto" and (found := _eager(input, offset, weight, bias, mask, *geometry)) is not None:
        return found
    _check.tensors(_OP, input=input, offset=offset, weight=weight)
    _check.tensors(_OP, **{name: t for name, t in (("bias", bias), ("mask", mask)) if t is not None})
    cast_input, cast_weight, bias = _check.autocast(input, weight, bias)
    assert cast_input is not None
    assert cast_weight is not None
    input, weight = cast_input, cast_weight
    _check_tensors(input, offset, weight, bias, mask, step, pad, reach)
    result: Tensor
    if not _native.chosen(_OP, implementation, input):
        result = reference.deform_conv2d(input, offset, weight, bias, mask, step, pad, reach, boundary)
        return result.contiguous(memory_format=torch._prims_common.suggest_memory_format(input))
    result = torch.ops.pliant.deform_conv2d(input, offset, weight, bias, mask, *geometry)
    return result


def _check_tensors(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: _Pair,
    padding: _Pair,
    dilation: _Pair,
) -> tuple[int, int]:
    """Raise unless the tensors fit each other; return the size of the output map."""
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
    if C < 1 or C % Cg != 0 or O % (C // Cg) != 0:
        raise ValueError(
            f"{_OP}: weight has {int(Cg)} input channels a group and {int(O)} outputs, which does not divide the "
            f"{int(C)} channels of input into groups"
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
    return Ho, Wo


# What torch must know: schema, fake kernels, autograd. The CPU kernels are in csrc/deform_conv2d/.

_GEOMETRY = "SymInt sh, SymInt sw, SymInt ph, SymInt pw, SymInt dh, SymInt dw, bool clamp"
_native.library.define(
    f"{_OP}(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, {_GEOMETRY}) -> Tensor"
)
# `wanted` holds one bit per gradient, in the order of the outputs; those not asked for come back empty.
_native.library.define(
    f"{_OP}_backward(Tensor grad, Tensor input, Tensor offset, Tensor weight, Tensor? mask, {_GEOMETRY}, int wanted)"
    " -> (Tensor input, Tensor offset, Tensor weight, Tensor mask)"
)


@torch.library.register_fake(f"pliant::{_OP}", lib=_native.library)
def _fake(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, *geometry: Any
) -> Tensor:
    sh, sw, ph, pw, dh, dw, _ = geometry
    Ho, Wo = _check_tensors(input, offset, weight, bias, mask, (sh, sw), (ph, pw), (dh, dw))
    result = input.new_empty((input.shape[0], weight.shape[0], Ho, Wo))
    return result.to(memory_format=torch._prims_common.suggest_memory_format(input))


@torch.library.register_fake(f"pliant::{_OP}_backward", lib=_native.library)
def _fake_backward(
    grad: Tensor, input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, *geometry: Any
) -> tuple[Tensor, ...]:
    wanted = geometry[-1]
    formats = (torch._prims_common.suggest_memory_format(input), *[torch.contiguous_format] * 3)
    return tuple(
        t.new_empty(t.shape).to(memory_format=f) if t is not None and wanted >> i & 1 else input.new_empty(0)
        for i, (t, f) in enumerate(zip((input, offset, weight, mask), formats, strict=True))
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, offset, weight, _, mask, *ctx.geometry = inputs
    ctx.save_for_backward(input, offset, weight, mask)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, offset, weight, mask = ctx.saved_tensors
    need_bias = ctx.needs_input_grad[3]
    need = (*ctx.needs_input_grad[:3], ctx.needs_input_grad[4])
    wanted = sum(1 << i for i, n in enumerate(need) if n)
    found: tuple[Tensor | None, ...] = (None,) * 4
    if wanted:
        grads = torch.ops.pliant.deform_conv2d_backward.default(
            grad, input, offset, weight, mask, *ctx.geometry, wanted
        )
        found = tuple(g if n else None for g, n in zip(grads, need, strict=True))
    bias = grad.sum((0, 2, 3)) if need_bias else None
    return (*found[:3], bias, found[3], *[None] * len(ctx.geometry))


def _setup_context_twice(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad, input, offset, weight, mask, *ctx.geometry, ctx.wanted = inputs
    ctx.save_for_backward(grad, input, offset, weight, mask)


def _backward_twice(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    sh, sw, ph, pw, dh, dw, clamp = ctx.geometry
    boundary = "clamp" if clamp else "zeros"

    def output(input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
        return reference.deform_conv2d(input, offset, weight, None, mask, (sh, sw), (ph, pw), (dh, dw), boundary)

    grad, *tensors = ctx.saved_tensors
    return (*_twice.differentiate(output, grad, tensors, ctx.wanted, grads), *[None] * (len(ctx.geometry) + 1))


torch.library.register_autograd(f"pliant::{_OP}", _backward, setup_context=_setup_context, lib=_native.library)
torch.library.register_autograd(
    f"pliant::{_OP}_backward", _backward_twice, setup_context=_setup_context_twice, lib=_native.library
)

_eager = _native.eager(torch.ops.pliant.deform_conv2d.default, _setup_context, _backward)


# GPUs. Triton is imported by the first call.


def _on_gpu(*arguments: Any) -> Tensor:
    from pliant.ops.deform_conv2d import triton

    return triton.deform_conv2d(*arguments)


def _on_gpu_backward(*arguments: Any) -> tuple[Tensor, ...]:
    from pliant.ops.deform_conv2d import triton

    return triton.deform_conv2d_backward(*arguments)


_native.on_gpu(_OP, _on_gpu)
_native.on_gpu(f"{_OP}_backward", _on_gpu_backward)
