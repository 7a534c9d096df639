"""mmcv's deformable convolutions: its arguments, its parameters' names, our operator."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.interop._conv import Pair, convolve, pair


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    deform_groups: int = 1,
    bias: bool = False,
    im2col_step: int = 32,
) -> Tensor:
    """Convolve with moved taps, as `mmcv.ops.deform_conv2d` does: :func:`pliant.ops.deform_conv2d` without a mask.

    Input and weight are brought to the dtype of `offset`, which is how mmcv runs under autocast.

    Args:
        input: (N, C, H, W).
        offset: (N, 2·G·Kh·Kw, Ho, Wo).
        weight: (O, C/groups, Kh, Kw).
        stride: an int or a pair, like the two that follow.
        padding: rows and columns around the map.
        dilation: distance of adjacent taps.
        groups: of the convolution.
        deform_groups: G.
        bias: False.
        im2col_step: has no meaning here, any batch goes in one piece.

    Raises:
        AssertionError: `bias` is not False.
        ValueError: no map with a batch, or the output would be empty.
        RuntimeError: a shape does not fit.

    >>> deform_conv2d(torch.rand(2, 4, 8, 8), torch.zeros(2, 18, 8, 8), torch.rand(6, 4, 3, 3), 1, 1).shape
    torch.Size([2, 6, 8, 8])
    """
    assert bias is False, "Only support bias is False."
    input = input.type_as(offset)
    weight = weight.type_as(offset)
    return convolve(
        "deform_conv2d", input, offset, None, weight, None, stride, padding, dilation, groups, deform_groups
    )


def modulated_deform_conv2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> Tensor:
    """Convolve with moved and weighted taps, as `mmcv.ops.modulated_deform_conv2d` does.

    Arguments and errors are those of :func:`deform_conv2d`, with mask (N, G·Kh·Kw, Ho, Wo) and bias (O,).
    """
    input = input.type_as(offset)
    weight, mask = weight.type_as(offset), mask.type_as(offset)
    bias = None if bias is None else bias.type_as(offset)
    return convolve(
        "modulated_deform_conv2d", input, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups
    )


def _groups(options: dict[str, Any]) -> None:
    """Understand `deformable_groups`, the name of old versions."""
    if "deformable_groups" in options:
        warnings.warn('"deformable_groups" is deprecated, please use "deform_groups"', DeprecationWarning, stacklevel=3)
        options["deform_groups"] = options.pop("deformable_groups")


class _Convolution(nn.Module):
    """What both layers hold, under mmcv's names."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
        deform_groups: int,
        bias: bool,
    ) -> None:
        super().__init__()
        assert in_channels % groups == 0, f"in_channels {in_channels} cannot be divisible by groups {groups}"
        assert out_channels % groups == 0, f"out_channels {out_channels} cannot be divisible by groups {groups}"
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = pair(kernel_size), pair(stride)
        self.padding, self.dilation = pair(padding), pair(dilation)
        self.groups, self.deform_groups = groups, deform_groups
        # Where code asks any convolution for these two.
        self.transposed, self.output_padding = False, (0,)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None

    def _branch(self, count: int) -> nn.Conv2d:
        """Return the convolution that predicts `count` numbers for every tap, zero at the start."""
        channels = self.deform_groups * count * self.kernel_size[0] * self.kernel_size[1]
        branch = nn.Conv2d(
            self.in_channels, channels, self.kernel_size, self.stride, self.padding, self.dilation, bias=True
        )
        nn.init.zeros_(branch.weight)
        nn.init.zeros_(branch.bias)  # type: ignore[arg-type]
        return branch

    def _rename(self, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
        """Move the branch's parameters to where they are since version 2: they lay beside the layer before."""
        if (metadata.get("version") or 0) < 2:
            for part in ("weight", "bias"):
                old, new = f"{prefix[:-1]}_offset.{part}", f"{prefix}conv_offset.{part}"
                if new not in state and old in state:
                    state[new] = state.pop(old)


class DeformConv2d(_Convolution):
    """mmcv's layer of version 1: offsets come from the caller.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: an int or a pair, like the three that follow.
        stride: step of the output grid.
        padding: rows and columns around the map.
        dilation: distance of adjacent taps.
        groups: of the convolution.
        deform_groups: G.
        bias: False.
        im2col_step: has no meaning here.

    Raises:
        AssertionError: a bias is asked for, or groups do not divide the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = False,
        im2col_step: int = 32,
        **options: Any,
    ) -> None:
        _groups(options)
        deform_groups = options.pop("deform_groups", deform_groups)
        if options:
            raise TypeError(f"{type(self).__name__}: there is no argument {next(iter(options))!r}")
        assert not bias, f"bias={bias} is not supported in DeformConv2d."
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, deform_groups, bias=False
        )
        self.im2col_step = im2col_step
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight as mmcv does."""
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        # Maps smaller than the kernel are padded below and to the right, and the output is cut again.
        more = [max(k - n, 0) for k, n in zip(self.kernel_size, x.shape[2:], strict=True)]
        if any(more):
            x, offset = (F.pad(t, (0, more[1], 0, more[0])) for t in (x, offset))
        out = self._convolve(x, offset)
        return out[:, :, : out.shape[2] - more[0], : out.shape[3] - more[1]] if any(more) else out

    def _convolve(self, x: Tensor, offset: Tensor) -> Tensor:
        return deform_conv2d(
            x, offset, self.weight, self.stride, self.padding, self.dilation, self.groups, self.deform_groups
        )

    def extra_repr(self) -> str:
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        text = ", ".join(f"{name}={getattr(self, name)}" for name in (*names, "deform_groups"))
        return f"{text}, bias={self.bias is not None}"


class DeformConv2dPack(DeformConv2d):
    """mmcv's layer of version 1 that predicts its own offsets ("DCN" in configurations).

    Arguments are those of :class:`DeformConv2d`; `conv_offset` starts at zero. Checkpoints of before its version 2,
    with ``NAME_offset.weight`` beside ``NAME.weight``, load as in mmcv: where the loader shows a layer the names beside
    it. `load_state_dict` has not since torch 2.0; ``convert(state, "mmcv")`` of `pliant.interop.checkpoints` renames
    them.
    """

    _version = 2

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conv_offset = self._branch(2)

    def init_offset(self) -> None:
        """Set the branch to zero."""
        for parameter in self.conv_offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self._convolve(x, self.conv_offset(x))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
        self._rename(state, prefix, metadata)
        super()._load_from_state_dict(state, prefix, metadata, *rest)


class ModulatedDeformConv2d(_Convolution):
    """mmcv's layer of version 2: offsets and masks come from the caller.

    Arguments are those of :class:`DeformConv2d` without `im2col_step`; `bias` is True, False or "auto", which is True.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool | str = True,
        **options: Any,
    ) -> None:
        _groups(options)
        deform_groups = options.pop("deform_groups", deform_groups)
        if options:
            raise TypeError(f"{type(self).__name__}: there is no argument {next(iter(options))!r}")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, deform_groups, bool(bias)
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the weight uniformly as mmcv does; the bias, and the branch where there is one, are zero."""
        bound = 1 / math.sqrt(self.in_channels * self.kernel_size[0] * self.kernel_size[1])
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return modulated_deform_conv2d(
            x,
            offset,
            mask,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.deform_groups,
        )


class ModulatedDeformConv2dPack(ModulatedDeformConv2d):
    """mmcv's layer of version 2 that predicts its own offsets and masks ("DCNv2" in configurations).

    Arguments are those of :class:`ModulatedDeformConv2d`. The mask is ``sigmoid(·)``, so that the layer starts at half
    of the convolution it stands for. Checkpoints of before its version 2 load, as into :class:`DeformConv2dPack`.
    """

    _version = 2

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conv_offset = self._branch(3)

    def init_weights(self) -> None:
        super().init_weights()
        if hasattr(self, "conv_offset"):
            nn.init.zeros_(self.conv_offset.weight)
            nn.init.zeros_(self.conv_offset.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        predicted = self.conv_offset(x)
        channels = predicted.shape[1] // 3
        offset, mask = predicted.split((2 * channels, channels), 1)
        return super().forward(x, offset, mask.sigmoid())

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
        self._rename(state, prefix, metadata)
        super()._load_from_state_dict(state, prefix, metadata, *rest)
