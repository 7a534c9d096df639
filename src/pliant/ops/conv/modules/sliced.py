"""A plain convolution around a fault of oneDNN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pliant import _check


class SlicedConv2d(nn.Conv2d):
    """Convolve with a 1×1 kernel and a stride, as a slice of the input and a convolution of stride 1.

    The output is that of `nn.Conv2d`. It is for narrow layers that are trained on a CPU: with fewer than 16 input
    channels (8 with AVX2) and a channels_last input, oneDNN's weight gradient of a strided 1×1 convolution writes
    beyond its workspace, and the process dies. Every layer of this kind that pliant builds is this one.

    Its arguments are those of `nn.Conv2d`.

    Source: oneDNN issue 6035.

    >>> import torch
    >>> SlicedConv2d(8, 16, 1, stride=2)(torch.zeros(1, 8, 5, 5)).shape
    torch.Size([1, 16, 3, 3])
    """

    NARROW = 16  # channels from which on oneDNN is right

    @classmethod
    def if_needed(
        cls,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        *rest: Any,
        **options: Any,
    ) -> nn.Conv2d:
        """Return an `nn.Conv2d`, or this layer instead of one for which oneDNN is wrong."""
        kernel = _check.pair(cls.__name__, "kernel_size", kernel_size, 1)
        steps = _check.pair(cls.__name__, "stride", stride, 1)
        wrong = in_channels < cls.NARROW and kernel == (1, 1) != steps
        return (cls if wrong else nn.Conv2d)(in_channels, out_channels, kernel, steps, *rest, **options)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if max(self.kernel_size) > 1:
            output: Tensor = super()._conv_forward(input, weight, bias)
            return output
        if self.padding != "valid" and any(self._reversed_padding_repeated_twice):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=mode)
        return F.conv2d(input[..., :: self.stride[0], :: self.stride[1]], weight, bias, groups=self.groups)
