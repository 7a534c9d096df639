"""Modulated deformable convolution: the limit is the matrix product of its im2col, or conv2d for depthwise."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import peers as others
from measuring import Call, Problem
from pliant.ops import deform_conv2d
from pliant.testing import DEFORM_CONV_CALL, DEFORM_CONV_SPEED, DeformConvCase

__all__ = ["CASES", "problem"]

CASES = (*DEFORM_CONV_SPEED, DEFORM_CONV_CALL)
NAMES = ("input", "offset", "mask", "weight", "bias")


def problem(case: DeformConvCase, backward: bool, peers: str) -> Problem:
    """Return the contestants for one case: `pliant` in both layouts, the limit, conv2d, grid_sample."""
    nchw, nhwc = case.tensors(), case.tensors(channels_last=True)
    # At an integer the offset's gradient jumps: a rounding away from one, it says nothing about precision.
    whole = nchw["offset"].floor()
    nchw["offset"] = nhwc["offset"] = whole + (nchw["offset"] - whole).clamp(1e-3, 1 - 1e-3)
    N, C, _, _ = case.input
    Ho, Wo = case.output
    K = case.kernel[0] * case.kernel[1]
    columns = torch.randn(N * Ho * Wo, K * C)
    weights = torch.randn(K * C, case.out_channels)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(N, case.out_channels, Ho, Wo, generator=generator)

    def own(implementation: str) -> Callable[..., Tensor]:
        def run(input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return deform_conv2d(input, offset, weight, bias, mask=mask, **case.geometry, implementation=implementation)

        return run

    def plain(input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        geometry = (case.stride, case.padding, case.dilation)
        return F.conv2d(input, weight, bias, *geometry, case.groups)

    def sampled(*tensors: Tensor) -> Tensor:
        return grid_sample(case, *tensors)

    def exact() -> tuple[Tensor, ...]:
        alone = {name: (t[:1] if name in NAMES[:3] else t).double() for name, t in nchw.items()}
        return call(own("reference"), alone, grad[:1].double(), backward)()

    native = own("auto")
    contestants = [
        Call("pliant nchw", call(native, nchw, grad, backward)),
        Call("pliant channels_last", call(native, nhwc, grad, backward)),
        Call("conv2d channels_last", call(plain, nhwc, grad, backward), checked=False),
    ]
    if case.groups == 1:
        contestants.insert(0, Call("mm", lambda: torch.mm(columns, weights), checked=False))
        limit = {"mm": 3.0 if backward else 1.0}
    else:
        limit = {"conv2d channels_last": 1.0}
    if peers != "none":
        contestants.append(Call("conv2d nchw", call(plain, nchw, grad, backward), checked=False))
        contestants.append(Call("grid_sample", call(sampled, nchw, grad, backward)))
    if peers == "all":
        compiled = torch.compile(sampled)
        contestants.append(Call("grid_sample compiled", call(compiled, nchw, grad, backward)))
        trained = {
            "torchvision": lambda: others.torchvision_deform_conv2d(case),
            "mmcv": lambda: others.mmcv_deform_conv2d(case),
            "deformops": lambda: others.deformops_deform_conv2d(case),
            "tvdcn": lambda: others.tvdcn_deform_conv2d(case),
        }
        for name, function in others.available(trained):
            contestants.append(Call(name, call(function, nchw, grad, backward)))
        frameworks = {"Paddle": lambda: others.paddle_deform_conv2d(case, nchw, grad, backward)}
        contestants += [Call(name, run) for name, run in others.available(frameworks)]
        runtimes = {
            "ONNX Runtime": lambda: others.onnxruntime_deform_conv2d(case, nchw),
            "OpenVINO": lambda: others.openvino_deform_conv2d(case, nchw),
            "ncnn": lambda: others.ncnn_deform_conv2d(case, nchw),
        }
        if not backward:
            contestants += [Call(name, run) for name, run in others.available(runtimes)]
    kernel = f"{case.kernel[0]}×{case.kernel[1]}"
    shape = f"{case.input} → {case.out_channels}, {kernel}, groups {case.groups}, offset groups {case.offset_groups}"
    return Problem(case.name, shape, contestants, limit, exact)


def call(
    function: Callable[..., Tensor], t: dict[str, Tensor], grad: Tensor, backward: bool
) -> Callable[[], tuple[Tensor, ...]]:
    """Return the call to time; its result is what can be compared image by image: output and three gradients."""
    tensors = [t[name].detach().requires_grad_(backward) for name in NAMES]

    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (function(*tensors),)

    def both() -> tuple[Tensor, ...]:
        y = function(*tensors)
        # conv2d has no gradient for offset and mask.
        found = torch.autograd.grad(y, tensors, grad, allow_unused=True)
        return (y.detach(), *(g for g in found[:3] if g is not None))

    return both if backward else forward


def grid_sample(
    case: DeformConvCase, input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Deformable convolution as PyTorch users write it today: one grid_sample and one matrix product."""
    N, C, H, W = input.shape
    O, Cg, Kh, Kw = weight.shape
    G, K, (Ho, Wo) = case.offset_groups, Kh * Kw, case.output
    (sh, sw), (ph, pw), (dh, dw) = case.stride, case.padding, case.dilation
    rows = torch.arange(Ho).view(1, Ho, 1) * sh - ph + (torch.arange(Kh) * dh).repeat_interleave(Kw).view(K, 1, 1)
    columns = torch.arange(Wo).view(1, 1, Wo) * sw - pw + (torch.arange(Kw) * dw).repeat(Kh).view(K, 1, 1)
    dy, dx = offset.view(N * G, K, 2, Ho, Wo).unbind(2)
    # With align_corners=False, pixel p lies at (2·p + 1)/size − 1.
    y, x = (2 * (rows + dy) + 1) / H - 1, (2 * (columns + dx) + 1) / W - 1
    grid = torch.stack((x, y), -1).view(N * G, K * Ho, Wo, 2)
    samples = F.grid_sample(input.reshape(N * G, C // G, H, W), grid, align_corners=False)
    samples = samples.view(N, G, C // G, K, Ho * Wo) * mask.view(N, G, 1, K, Ho * Wo)
    samples = samples.view(N, case.groups, Cg * K, Ho * Wo)
    product = weight.view(case.groups, O // case.groups, Cg * K) @ samples
    return product.view(N, O, Ho, Wo) + bias.view(1, O, 1, 1)
