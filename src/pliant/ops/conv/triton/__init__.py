"""Deformable convolution on GPUs: one fused kernel forward, two backward, no column buffer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pliant.ops.conv.triton import blocks
from pliant.ops.conv.triton.backward import backward_samples, backward_weight, backward_weight_depthwise
from pliant.ops.conv.triton.forward import combine, forward, forward_depthwise
from pliant.ops.conv.triton.shape import Shape, rows
from pliant.ops.gpu.launch import Launch, ceil, destination, empty, processors
from pliant.ops.sampling.triton import Sums


def deform_conv(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    mask: Tensor | None,
    clamp: bool,
) -> Tensor:
    """Return the output, in input's memory format; arguments are checked, of any number of axes."""
    shape = Shape(input, offset, weight, mask, (*stride, *padding, *dilation), clamp)
    output = empty(input, (shape.N, shape.O, *offset.shape[2:]))
    for launch in forward_launches(shape, bias, rows(output)):
        launch.run(shape.device)
    return output


def forward_launches(shape: Shape, bias: Tensor | None, output: Tensor) -> list[Launch]:
    """Return what computes `output`: one kernel, and a second one that adds the shares where sums are divided."""
    to = destination(output) | {"bias": output if bias is None else bias.contiguous(), "BIASED": bias is not None}
    size = blocks.forward(shape)
    tiles = ceil(shape.P, size.P)
    if shape.multiplier:
        columns = ceil(shape.Cj * shape.multiplier, size.O)
        grid = (shape.N * tiles, shape.G * columns, 1)
        return [size.launch(forward_depthwise, grid, shape, **to, tiles=tiles, blocks=columns)]

    columns = ceil(shape.Og, size.O)
    steps = shape.Cg // shape.segment * ceil(shape.K, size.taps)
    programs = shape.N * tiles * shape.g * columns
    # Where there are too few programs for the device, several share each sum.
    share = ceil(steps, min(max(2 * processors(shape.device) // max(programs, 1), 1), 8))
    count = ceil(steps, share)
    grid = (shape.N * tiles, shape.g * columns, count)
    cut: dict[str, Any] = {"tiles": tiles, "blocks": columns, "share": share}
    if count == 1:
        return [size.launch(forward, grid, shape, **to, **cut, output_s=0)]
    shares = output.new_empty((count, shape.N, shape.P, shape.O), dtype=torch.float32)
    stride = shape.N * shape.P * shape.O
    first: dict[str, Any] = {"output": shares, "output_c": 1, "output_p": shape.O, "BIASED": False, "LAST": True}
    add: dict[str, Any] = {"shares": shares, "shares_s": stride, "P": shape.P, "count": count}
    add |= {"BLOCK_P": 32, "BLOCK_O": 64}
    return [
        size.launch(forward, grid, shape, **(to | first), **cut, output_s=stride),
        Launch.of(combine, (shape.N * ceil(shape.P, 32), ceil(shape.O, 64), 1), **shape.arguments, **to, **add),
    ]


def deform_conv_backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    mask: Tensor | None,
    clamp: bool,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of input, offset, weight and mask that the bits of `wanted` ask for, the others empty."""
    shape = Shape(input, offset, weight, mask, (*stride, *padding, *dilation), clamp)
    grad = rows(grad).contiguous(memory_format=torch.channels_last)
    none = input.new_empty(0)
    d_input, d_weight = none, none
    d_offset = torch.empty_like(offset, memory_format=torch.contiguous_format) if wanted & 2 else none
    d_mask = torch.empty_like(mask, memory_format=torch.contiguous_format) if mask is not None and wanted & 8 else none
    if wanted & 1 or d_offset.numel() or d_mask.numel():
        found = Sums.zeros(grad, shape.input.shape, True, lambda: largest(shape, grad)) if wanted & 1 else None
        sums, unit = found or (None, None)
        samples_launch(shape, grad, sums, unit, d_offset, d_mask).run(shape.device)
        if found is not None:
            d_input = empty(input, input.shape)
            rows(d_input).copy_(found.total()[:, : input.shape[1]])
    if wanted & 4:
        launch, shares = weight_launch(shape, grad)
        launch.run(shape.device)
        sums = shares.sum(0)[..., : weight.shape[1]]
        d_weight = sums.transpose(1, 2).to(weight.dtype).reshape(weight.shape).contiguous()
    return d_input, d_offset, d_weight, d_mask


# The operators, which differ in the number of axes of their tensors.
deform_conv1d = deform_conv2d = deform_conv3d = deform_conv
deform_conv1d_backward = deform_conv2d_backward = deform_conv3d_backward = deform_conv_backward


def deform_conv_transpose2d(
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
) -> Tensor:
    """Return the output in input's memory format: the gradient of the map that a convolution samples."""
    size = [
        (n - 1) * s - 2 * p + d * (k - 1) + 1 + more
        for n, s, p, d, k, more in zip(
            input.shape[2:], stride, padding, dilation, weight.shape[2:], output_padding, strict=True
        )
    ]
    output = empty(input, (input.shape[0], weight.shape[1] * groups, *size))
    # Nothing of this map is read but its sizes.
    shape = Shape(output, offset, weight, mask, (*stride, *padding, *dilation), clamp)
    grad = input.contiguous(memory_format=torch.channels_last)
    found = Sums.zeros(grad, shape.input.shape, True, lambda: largest(shape, grad))
    none = input.new_empty(0)
    samples_launch(shape, grad, found.tensor, found.unit, none, none).run(shape.device)
    total = found.total()[:, : output.shape[1]]
    return output.copy_(total if bias is None else total + bias[:, None, None].float())


def deform_conv_transpose2d_backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    mask: Tensor | None,
    groups: int,
    clamp: bool,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients that the bits of `wanted` ask for, the others empty: those of a convolution of `grad`."""
    geometry = (stride, padding, dilation, mask, clamp)
    _, *found = deform_conv_backward(input, grad, offset, weight, *geometry, wanted & ~1)
    d_input = input.new_empty(0)
    if wanted & 1:
        d_input = empty(input, input.shape).copy_(deform_conv(grad, offset, weight, None, *geometry))
    return d_input, found[0], found[1], found[2]


def largest(shape: Shape, grad: Tensor) -> Tensor:
    """Return an upper limit of the input's gradient.

    At most every sample of an image adds to a pixel, each at most the largest gradient times the largest sum of weights
    over the outputs.
    """
    weight = shape.arguments["weight"].double().abs().sum(0).amax()
    most: Tensor = shape.P * shape.K * grad.abs().amax().double() * weight
    if shape.arguments["MASKED"]:
        most *= shape.arguments["mask"].abs().amax().double()
    return most


def samples_launch(
    shape: Shape, grad: Tensor, d_input: Tensor | None, unit: Tensor | None, d_offset: Tensor, d_mask: Tensor
) -> Launch:
    """Return what computes the gradients of input (added to what is there), offset and mask."""
    size = blocks.samples(shape)
    tiles = ceil(shape.P, size.P)
    arguments: dict[str, Any] = {
        "grad": grad, "grad_offset": d_offset, "grad_mask": d_mask, "grad_input": grad if d_input is None else d_input,
        "scale": grad if unit is None else unit, "FIXED": unit is not None,
        "WANT_INPUT": d_input is not None, "WANT_OFFSET": d_offset.numel() > 0, "WANT_MASK": d_mask.numel() > 0,
        "tiles": tiles,
    }  # fmt: skip
    grid = (shape.N * tiles * shape.G * ceil(shape.K, size.taps), 1, 1)
    # Sums in 64 bits need more registers: those of several taps are divided over more threads.
    size = size._replace(warps=size.warps * 2) if unit is not None and size.taps > 1 else size
    return size.launch(backward_samples, grid, shape, **arguments)


def weight_launch(shape: Shape, grad: Tensor) -> tuple[Launch, Tensor]:
    """Return what computes the gradient of the weight, and its result: shares (…, O, K, Cg), to be added.

    Every share covers a fixed run of positions, so that without atomics the result has the same bits every time.
    """
    size = blocks.weight(shape)
    tiles = ceil(shape.P, size.P)
    if shape.multiplier:
        columns = ceil(shape.Cj * shape.multiplier, size.O)
        rows = (shape.G * columns * shape.K, 1)
    else:
        columns = ceil(shape.segment, size.C)
        rows = (shape.C // shape.segment * ceil(shape.K, size.taps) * columns, ceil(shape.Og, size.O))
    # Enough programs for the device, and no more memory than they need.
    share = max(ceil(shape.N * tiles, max(min(4 * processors(shape.device) // (rows[0] * rows[1]), 64), 1)), 1)
    count = ceil(shape.N * tiles, share)
    shares = grad.new_empty((count, shape.O, shape.K, shape.Cg), dtype=torch.float32)
    arguments: dict[str, Any] = {
        "grad": grad, "shares": shares, "shares_s": shape.O * shape.K * shape.Cg,
        "tiles": tiles, "blocks": columns, "share": share,
    }  # fmt: skip
    kernel = backward_weight_depthwise if shape.multiplier else backward_weight
    return size.launch(kernel, (rows[0], count, rows[1]), shape, **arguments), shares
