"""torchvision's deformable convolution: its arguments and its errors, with our operator."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pliant.interop._layers import Pair, as_runtime_error, output_size, pair
from pliant.ops import deform_conv2d as _deform_conv2d


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """Convolve with moved taps, as `torchvision.ops.deform_conv2d` does: :func:`pliant.ops.deform_conv2d`.

    Groups and offset groups are read from the shapes: ``input.shape[1] // weight.shape[1]`` and
    ``offset.shape[1] // (2·Kh·Kw)``. What torchvision refuses raises a RuntimeError with its words. Unlike torchvision,
    it allows bfloat16, low precision under autocast, and second derivatives.

    Args:
        input: (N, C, H, W).
        offset: (N, 2·G·Kh·Kw, Ho, Wo), dy and dx of each tap in turn, in pixels.
        weight: (O, C/groups, Kh, Kw).
        bias: (O,).
        stride: an int or a pair; in a scripted function a pair.
        padding: likewise.
        dilation: likewise.
        mask: (N, G·Kh·Kw, Ho, Wo).

    Returns:
        (N, O, Ho, Wo).

    Raises:
        RuntimeError: a shape, dtype or device does not fit.

    >>> deform_conv2d(torch.rand(4, 3, 10, 10), torch.rand(4, 18, 8, 8), torch.rand(5, 3, 3, 3)).shape
    torch.Size([4, 5, 8, 8])
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        return _eager(input, offset, weight, bias, stride, padding, dilation, mask)
    result: Tensor = torch.ops.pliant.deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask, False)
    return result


def _eager(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    mask: Tensor | None,
) -> Tensor:
    _check(input, offset, weight, pair(stride), pair(padding), pair(dilation), mask)
    with as_runtime_error("torchvision.ops.deform_conv2d"):
        return _deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)


def _check(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mask: Tensor | None,
) -> None:
    """Raise what torchvision raises, in its order and with its words."""
    if input.dim() != 4 or offset.dim() != 4 or weight.dim() != 4 or (mask is not None and mask.dim() != 4):
        dims = {"input": input, "offset": offset, "weight": weight, "mask": mask}
        found = ", ".join(f"{name} {t.dim()}" for name, t in dims.items() if t is not None)
        raise RuntimeError(f"deform_conv2d: every tensor must have 4 dimensions, got {found}")
    (N, _, H, W), (_, _, Kh, Kw) = input.shape, weight.shape
    if Kh < 1 or Kw < 1:
        raise RuntimeError(f"weight_h: {Kh} weight_w: {Kw}")
    taps = 2 * Kh * Kw
    if offset.shape[1] // taps == 0:
        raise RuntimeError(
            "the shape of the offset tensor at dimension 1 is not valid. It should be a multiple of 2 * weight.size[2] "
            f"* weight.size[3].\nGot offset.shape[1]={offset.shape[1]}, while 2 * weight.size[2] * weight.size[3]="
            f"{taps}"
        )
    for name, (vertical, horizontal), least in (("stride", stride, 1), ("pad", padding, 0), ("dilation", dilation, 1)):
        if vertical < least or horizontal < least:
            raise RuntimeError(f"{name}_h: {vertical} {name}_w: {horizontal}")
    G = offset.shape[1] // taps
    if offset.shape[1] != G * taps:
        raise RuntimeError(f"offset.shape[1] is not valid: got: {offset.shape[1]} expected: {G * taps}")
    if mask is not None and mask.shape[1] != G * Kh * Kw:
        raise RuntimeError(f"mask.shape[1] is not valid: got: {mask.shape[1]} expected: {G * Kh * Kw}")
    Ho, Wo = output_size((H, W), (Kh, Kw), stride, padding, dilation)
    for name, tensor in (("offset", offset), ("mask", mask)):
        if tensor is None:
            continue
        if tensor.shape[0] != N:
            raise RuntimeError(f"invalid batch size of {name}")
        if tensor.shape[2] != Ho or tensor.shape[3] != Wo:
            raise RuntimeError(
                f"{name} output dims: ({tensor.shape[2]}, {tensor.shape[3]}) - computed output dims: ({Ho}, {Wo})"
            )
    if Ho < 1 or Wo < 1:
        raise RuntimeError(f"Calculated output size too small - out_h: {Ho} out_w: {Wo}")


class DeformConv2d(nn.Module):
    """Hold the weight and bias of :func:`deform_conv2d`; the caller passes offsets and masks, as in torchvision.

    A layer that predicts them itself is :class:`pliant.nn.DeformConv2d`.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: an int or a pair, as are stride, padding and dilation.
        stride: distance between adjacent output pixels, in pixels of the map.
        padding: rows and columns of zeros on each side of the map.
        dilation: distance between adjacent taps.
        groups: of the convolution; must divide C and O.
        bias: learn a bias.

    Raises:
        ValueError: groups do not divide the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"{name} must be divisible by groups")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = pair(kernel_size), pair(stride)
        self.padding, self.dilation = pair(padding), pair(dilation)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as `nn.Conv2d` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        return deform_conv2d(input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)

    def __repr__(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        for name, usual in (("padding", (0, 0)), ("dilation", (1, 1)), ("groups", 1)):
            if getattr(self, name) != usual:
                text += f", {name}={getattr(self, name)}"
        return f"{type(self).__name__}({text}{', bias=False' if self.bias is None else ''})"
