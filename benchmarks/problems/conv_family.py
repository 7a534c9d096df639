"""Deformable convolution of volumes, beside the product of its im2col; the transposed one, beside its adjoint."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from measuring import Call, Problem, Setting, call, gradient, inputs
from pliant.ops import deform_conv3d, deform_conv_transpose2d
from pliant.testing import DeformConvCase

from .conv import BATCHED, NAMES, _away_from_integers


def volume(case: DeformConvCase, setting: Setting) -> Problem:
    """Return a problem of deform_conv3d: pliant in both layouts, the limit, conv3d and grid_sample."""
    last = inputs(case, setting)
    last["offset"] = _away_from_integers(last["offset"])
    plain = {name: x.contiguous() for name, x in last.items()}
    grad = gradient((case.input[0], case.out_channels, *case.output), setting)
    timed = functools.partial(call, backward=setting.backward, trained=NAMES, compared=len(BATCHED))
    own = functools.partial(deform_conv3d, **case.geometry, implementation=setting.implementation)

    def exact() -> tuple[Tensor, ...]:
        alone = {name: (x[:1] if name in BATCHED else x).double() for name, x in plain.items()}
        reference = functools.partial(deform_conv3d, **case.geometry, implementation="reference")
        found: tuple[Tensor, ...] = timed(reference, alone, grad[:1].double())()
        return found

    def conv3d(input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv3d(input, weight, bias, case.stride, case.padding, case.dilation, case.groups)

    N, C, K, P = *case.input[:2], math.prod(case.kernel), math.prod(case.output)
    columns, weights = (
        torch.randn(rows, cols, device=setting.device, dtype=setting.dtype)
        for rows, cols in ((N * P, K * C), (K * C, case.out_channels))
    )
    contestants = [
        Call("mm", lambda: torch.mm(columns, weights), checked=False),
        Call("pliant ncdhw", timed(own, plain, grad)),
        Call("pliant channels_last_3d", timed(own, last, grad)),
    ]
    if setting.peers != "none":
        contestants.append(Call("conv3d", timed(conv3d, plain, grad), checked=False))
        contestants.append(Call("grid_sample", timed(functools.partial(grid_sample, case), plain, grad)))
    limit = {"mm": 3.0 if setting.backward else 1.0}
    return Problem(case.name, f"{case.input} → {case.out_channels}, kernel {case.kernel}", contestants, limit, exact)


def grid_sample(
    case: DeformConvCase, input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Deformable convolution of volumes as PyTorch users write it: one 5-D grid_sample and one matrix product."""
    N, C, *size = input.shape
    O, Cg, *kernel = weight.shape
    G, K, (Do, Ho, Wo) = case.offset_groups, math.prod(kernel), case.output
    moves = offset.view(N * G, *kernel, 3, Do, Ho, Wo).unbind(4)
    axes = []
    for d, move in enumerate(moves):
        taps = torch.arange(kernel[d]).view(-1, *[1] * (5 - d)) * case.dilation[d]
        steps = torch.arange(case.output[d]).view(-1, *[1] * (2 - d)) * case.stride[d] - case.padding[d]
        # With align_corners=False, pixel p lies at (2·p + 1)/size − 1.
        axes.append((2 * (taps + steps + move) + 1) / size[d] - 1)
    grid = torch.stack(axes[::-1], -1).view(N * G, K * Do, Ho, Wo, 3)
    samples = F.grid_sample(input.reshape(N * G, C // G, *size), grid, align_corners=False)
    samples = samples.view(N, G, C // G, K, Do * Ho * Wo) * mask.view(N, G, 1, K, Do * Ho * Wo)
    product = weight.view(case.groups, O // case.groups, Cg * K) @ samples.view(N, case.groups, Cg * K, Do * Ho * Wo)
    return product.view(N, O, Do, Ho, Wo) + bias.view(1, O, 1, 1, 1)


def transposed(case: DeformConvCase, setting: Setting) -> Problem:
    """Return a problem of deform_conv_transpose2d: pliant in both layouts, its adjoint's passes, conv_transpose2d."""
    last = inputs(case, setting)
    last["offset"] = _away_from_integers(last["offset"])
    plain = {name: x.contiguous() for name, x in last.items()}
    grad = gradient((case.input[0], case.out_channels, *case.output), setting)
    timed = functools.partial(call, backward=setting.backward, trained=NAMES, compared=len(BATCHED))
    own = functools.partial(deform_conv_transpose2d, **case.geometry, implementation=setting.implementation)

    def exact() -> tuple[Tensor, ...]:
        alone = {name: (x[:1] if name in BATCHED else x).double() for name, x in plain.items()}
        reference = functools.partial(deform_conv_transpose2d, **case.geometry, implementation="reference")
        found: tuple[Tensor, ...] = timed(reference, alone, grad[:1].double())()
        return found

    def conv_transpose2d(input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        assert case.output_padding is not None
        return F.conv_transpose2d(
            input, weight, bias, case.stride, case.padding, case.output_padding, case.groups, case.dilation
        )

    # The convolution of which this is the adjoint: its gradient in the input is the forward pass; backward is the
    # convolution and its other gradients.
    geometry = (case.stride, case.padding, case.dilation, plain["mask"], False)
    arguments = (plain["input"], grad, plain["offset"], plain["weight"], *geometry)

    def adjoint() -> None:
        torch.ops.pliant.deform_conv2d_backward(*arguments, 0b0001)
        if setting.backward:
            torch.ops.pliant.deform_conv2d(grad, plain["offset"], plain["weight"], None, *geometry)
            torch.ops.pliant.deform_conv2d_backward(*arguments, 0b1110)

    contestants = [
        Call("adjoint", adjoint, checked=False),
        Call("pliant nchw", timed(own, plain, grad)),
        Call("pliant channels_last", timed(own, last, grad)),
    ]
    if setting.peers != "none":
        contestants.append(Call("conv_transpose2d", timed(conv_transpose2d, plain, grad), checked=False))
    shape = f"{case.input} → {case.out_channels}, kernel {case.kernel}, stride {case.stride}"
    return Problem(case.name, shape, contestants, {"adjoint": 1.0}, exact)
