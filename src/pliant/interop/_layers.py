"""What the layers of torchvision, mmcv, detectron2 and the DCNv2 forks share: geometry, parameters, checks, errors."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pliant._check import not_scripted
from pliant.nn import SlicedConv2d
from pliant.ops import deform_conv2d

Pair = int | Sequence[int]


def pair(value: Pair) -> tuple[int, int]:
    """Return `value` as (vertical, horizontal).

    Raises:
        ValueError: it is neither an int nor a pair of ints, such as ``padding="same"``.
    """
    both = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(both) != 2 or any(isinstance(one, str) for one in both):
        raise ValueError(f"kernel_size, stride, padding and dilation must be an int or a pair of ints, got {value!r}")
    return both


def output_size(size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> tuple[int, int]:
    """Return the height and width of a convolution's output; negative where the kernel is larger than the map."""
    both = zip(pair(size), pair(kernel_size), pair(stride), pair(padding), pair(dilation), strict=True)
    height, width = ((n + 2 * p - (d * (k - 1) + 1)) // s + 1 for n, k, s, p, d in both)
    return height, width


@contextlib.contextmanager
def as_runtime_error(name: str) -> Iterator[None]:
    """Raise what our operators refuse as a RuntimeError, with `name` in the place of the operator's name."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise RuntimeError(f"{name}: {str(error).partition(': ')[2] or error}") from error


def convolve(
    name: str,
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    deform_groups: int,
) -> Tensor:
    """Run :func:`pliant.ops.deform_conv2d` after the checks of mmcv, detectron2 and the DCNv2 forks.

    These libraries take the numbers of groups as arguments, which pliant reads from the shapes.

    Raises:
        ValueError: `input` is not a batch of maps, or the output would be empty.
        RuntimeError: a shape does not fit; the sentence starts with `name`.
    """
    if input.dim() != 4:
        raise ValueError(f"Expected 4D tensor as input, got {input.dim()}D tensor instead.")
    (N, C, H, W), (O, Cg, Kh, Kw) = input.shape, weight.shape
    stride, padding, dilation = pair(stride), pair(padding), pair(dilation)
    Ho, Wo = output_size((H, W), (Kh, Kw), stride, padding, dilation)
    if min(Ho, Wo) < 1:
        raise ValueError(f"convolution input is too small (output would be {N}x{O}x{Ho}x{Wo})")
    if Cg * groups != C or O % groups:
        raise RuntimeError(f"{name}: invalid number of input planes, expected: {Cg * groups}, but got: {C}")
    if deform_groups < 1 or C % deform_groups:
        raise RuntimeError(f"{name}: input channels must divide deformable group size, got {C} and {deform_groups}")
    for what, tensor, count in (("offset", offset, 2), ("mask", mask, 1)):
        if tensor is None:
            continue
        if tensor.dim() != 4 or tensor.shape[1] != count * deform_groups * Kh * Kw:
            got = tuple(int(n) for n in tensor.shape)
            expected = count * deform_groups * Kh * Kw
            raise RuntimeError(f"{name}: invalid number of channels of {what}, expected: {expected}, got shape {got}")
        if tensor.shape[2] != Ho or tensor.shape[3] != Wo:
            raise RuntimeError(
                f"{name}: invalid spatial size of {what}, expected height: {Ho} width: {Wo}, but got "
                f"height: {tensor.shape[2]} width: {tensor.shape[3]}"
            )
        if tensor.shape[0] != N:
            raise RuntimeError(f"{name}: invalid batch size of {what}, expected: {N}, but got: {tensor.shape[0]}")
    with as_runtime_error(name):
        return deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)


class Convolution(nn.Module):
    """Hold the parameters and the geometry of a deformable convolution; the bias starts at zero.

    Raises:
        AssertionError: `groups` does not divide the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
        bias: bool,
    ) -> None:
        super().__init__()
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            assert channels % groups == 0, f"{name} {channels} cannot be divisible by groups {groups}"
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = pair(kernel_size), pair(stride)
        self.padding, self.dilation = pair(padding), pair(dilation)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    __prepare_scriptable__ = not_scripted

    def _draw(self) -> None:
        """Draw the weight uniformly within ``±1/√(C·Kh·Kw)``, and set the bias to zero, as mmcv and the forks do."""
        bound = 1 / math.sqrt(self.in_channels * self.kernel_size[0] * self.kernel_size[1])
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _branch(self, channels: int) -> nn.Conv2d:
        """Return a convolution of the same geometry that predicts `channels` numbers per output pixel, all zero."""
        geometry = (self.kernel_size, self.stride, self.padding, self.dilation)
        branch = SlicedConv2d.if_needed(self.in_channels, channels, *geometry)
        zero(branch)
        return branch

    def _described(self, offset_groups: str) -> str:
        """Return the arguments for `repr`; `offset_groups` is the library's name for their number."""
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        text = ", ".join(f"{name}={getattr(self, name)}" for name in (*names, offset_groups))
        return f"{text}, bias={getattr(self, 'bias', None) is not None}"


def offsets_and_masks(predicted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the offsets and the masks, ``sigmoid(·)``, in the output of a branch: two thirds and one third of it."""
    channels = predicted.shape[1] // 3
    offset, mask = predicted.split((2 * channels, channels), 1)
    return offset, mask.sigmoid()


def zero(module: nn.Module) -> None:
    """Set every parameter of a module to zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def trunk(*widths: int) -> nn.Sequential:
    """Return fully connected layers with ReLU between them; the last one starts at zero."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    zero(layers[-2])
    return nn.Sequential(*layers[:-1])
