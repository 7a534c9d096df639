"""Deformable convolution: its limit on the CPU is the matrix product of its im2col, or conv2d for depthwise."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import peers as others
from measuring import Call, Problem, Setting, call, gradient, inputs
from pliant.ops import deform_conv2d
from pliant.testing import DeformConvCase

NAMES = ("input", "offset", "mask", "weight", "bias")
BATCHED = NAMES[:3]


def problem(case: DeformConvCase, setting: Setting) -> Problem:
    """Return a problem: pliant in both layouts, the limit, conv2d, grid_sample and other libraries."""
    cpu, backward = setting.device == "cpu", setting.backward
    nhwc = inputs(case, setting)
    nhwc["offset"] = _away_from_integers(nhwc["offset"])
    nchw = {name: x.contiguous() for name, x in nhwc.items()}
    grad = last = gradient((case.input[0], case.out_channels, *case.output), setting)
    if not cpu:
        # On a GPU the whole network is channels_last, weights and gradients too.
        nhwc["weight"] = nhwc["weight"].contiguous(memory_format=torch.channels_last)
        last = grad.contiguous(memory_format=torch.channels_last)
    # Only gradients of tensors with a batch can be compared for the first image.
    timed = functools.partial(call, backward=backward, trained=NAMES, compared=len(BATCHED))

    def own(implementation: str) -> Callable[..., Tensor]:
        return functools.partial(deform_conv2d, **case.geometry, implementation=implementation)

    def sampled(**tensors: Tensor) -> Tensor:
        return grid_sample(case, **tensors)

    def plain(input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(input, weight, bias, case.stride, case.padding, case.dilation, case.groups)

    def exact() -> tuple[Tensor, ...]:
        alone = {name: (x[:1] if name in BATCHED else x).double() for name, x in nchw.items()}
        return timed(own("reference"), alone, grad[:1].double())()

    contestants, limit = _yardsticks(case, setting, nhwc["input"])
    if cpu or setting.precision == "bfloat16":
        contestants.append(Call("pliant nchw", timed(own(setting.implementation), nchw, grad)))
    contestants.append(Call("pliant channels_last", timed(own(setting.implementation), nhwc, last)))
    contestants.append(Call("conv2d channels_last", timed(plain, nhwc, last), checked=False))
    if cpu and setting.peers != "none":
        contestants.append(Call("conv2d nchw", timed(plain, nchw, grad), checked=False))
        contestants.append(Call("grid_sample", timed(sampled, nchw, grad)))
    if cpu and setting.peers == "all":
        contestants.append(Call("grid_sample compiled", timed(torch.compile(sampled), nchw, grad)))
    if setting.peers == "all":
        contestants += _operators(case, setting, nchw, grad, timed)
    if cpu and setting.peers == "all":
        contestants += _frameworks(case, setting, nchw, grad)
    kernel = f"{case.kernel[0]}×{case.kernel[1]}"
    shape = f"{case.input} → {case.out_channels}, {kernel}, groups {case.groups}, offset groups {case.offset_groups}"
    return Problem(case.name, shape, contestants, limit, exact)


def _away_from_integers(offset: Tensor) -> Tensor:
    """Return offsets a little away from integers, where their gradient jumps: an error there would say nothing."""
    margin = 1e-3 if offset.dtype == torch.float32 else 0.02
    whole = offset.float().floor()
    return (whole + (offset.float() - whole).clamp(margin, 1 - margin)).to(offset.dtype)


def _yardsticks(case: DeformConvCase, setting: Setting, input: Tensor) -> tuple[list[Call], dict[str, float]]:
    """Return what is timed beside pliant as a measure of the machine, and the limit."""
    if setting.device != "cpu":
        return [Call("copy", input.clone, checked=False)], {"conv2d channels_last": 1.0}
    if case.groups > 1:
        return [], {"conv2d channels_last": 1.0}
    (N, C, _, _), (Ho, Wo), K = case.input, case.output, case.kernel[0] * case.kernel[1]
    columns, weights = torch.randn(N * Ho * Wo, K * C), torch.randn(K * C, case.out_channels)
    product = Call("mm", lambda: torch.mm(columns, weights), checked=False)
    return [product], {"mm": 3.0 if setting.backward else 1.0}


def _operators(
    case: DeformConvCase, setting: Setting, nchw: dict[str, Tensor], grad: Tensor, timed: Callable[..., Any]
) -> list[Call]:
    """Return the operators for PyTorch of other libraries, as far as they are installed."""
    makers = {
        "torchvision": lambda: others.torchvision_deform_conv2d(case),
        "mmcv": lambda: others.mmcv_deform_conv2d(case),
        "deformops": lambda: others.deformops_deform_conv2d(case),
        "tvdcn": lambda: others.tvdcn_deform_conv2d(case),
    }
    found = []
    for name, function in others.available(makers):
        if name == "torchvision" and setting.precision == "bfloat16":
            # It has no bfloat16: its users convert to float32 and back, which is not timed here.
            wide = {n: x.float() for n, x in nchw.items()}
            found.append(Call("torchvision float32", timed(function, wide, grad.float())))
        else:
            found.append(Call(name, timed(function, nchw, grad)))
    return found


def _frameworks(case: DeformConvCase, setting: Setting, nchw: dict[str, Tensor], grad: Tensor) -> list[Call]:
    """Return other frameworks and, as they have no gradients, for forward alone inference runtimes."""
    frameworks = {"Paddle": lambda: others.paddle_deform_conv2d(case, nchw, grad, setting.backward)}
    runtimes = {
        "ONNX Runtime": lambda: others.onnxruntime_deform_conv2d(case, nchw),
        "OpenVINO": lambda: others.openvino_deform_conv2d(case, nchw),
        "ncnn": lambda: others.ncnn_deform_conv2d(case, nchw),
    }
    makers = frameworks if setting.backward else {**frameworks, **runtimes}
    return [Call(name, run) for name, run in others.available(makers)]


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
