"""mmcv's deformable convolutions: its arguments and its names of parameters, with our operator."""

from __future__ import annotations

import warnings
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pliant.interop._layers import Convolution, Pair, convolve, offsets_and_masks, zero


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
    """Convolve with taps moved by offsets, as `mmcv.ops.deform_conv2d` does: :func:`pliant.ops.deform_conv2d`.

    Input and weight are cast to the dtype of `offset`, which is how mmcv runs under autocast.

    Args:
        input: (N, C, H, W).
        offset: (N, 2·G·Kh·Kw, Ho, Wo).
        weight: (O, C/groups, Kh, Kw).
        stride: an int or a pair, as are the two that follow.
        padding: rows and columns of zeros on each side of the map.
        dilation: distance between adjacent taps.
        groups: of the convolution.
        deform_groups: G, the number of offset groups.
        bias: must be False.
        im2col_step: ignored; any batch is computed as a whole.

    Raises:
        AssertionError: `bias` is not False.
        ValueError: `input` is not a batch of maps, or the output would be empty.
        RuntimeError: a shape does not fit.

    >>> import torch
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
    """Convolve with taps moved by offsets and weighted by masks, as `mmcv.ops.modulated_deform_conv2d` does.

    Arguments and errors are those of :func:`deform_conv2d`, with mask (N, G·Kh·Kw, Ho, Wo) and bias (O,).
    """
    input = input.type_as(offset)
    weight, mask = weight.type_as(offset), mask.type_as(offset)
    bias = None if bias is None else bias.type_as(offset)
    return convolve(
        "modulated_deform_conv2d", input, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups
    )


def _groups(layer: nn.Module, deform_groups: int, options: dict[str, Any]) -> int:
    """Return the number of offset groups, which old versions of mmcv called `deformable_groups`.

    Raises:
        TypeError: there are other options.
    """
    if "deformable_groups" in options:
        warnings.warn('"deformable_groups" is deprecated, please use "deform_groups"', DeprecationWarning, stacklevel=3)
        deform_groups = options.pop("deformable_groups")
    if options:
        raise TypeError(f"{type(layer).__name__}: there is no argument {next(iter(options))!r}")
    return deform_groups


class _Convolution(Convolution):
    """Hold what all layers have, under mmcv's names."""

    deform_groups: int
    # For code that asks any convolution for these two.
    transposed, output_padding = False, (0,)


class _Pack(_Convolution):
    """Make the branch, and load its parameters from before version 2, where they lay beside the layer."""

    _version = 2

    def _predicting(self, count: int) -> nn.Conv2d:
        """Return the branch that predicts `count` numbers per tap, zero at the start."""
        return self._branch(self.deform_groups * count * self.kernel_size[0] * self.kernel_size[1])

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
        if (metadata.get("version") or 0) < 2:
            for part in ("weight", "bias"):
                old, new = f"{prefix[:-1]}_offset.{part}", f"{prefix}conv_offset.{part}"
                if new not in state and old in state:
                    state[new] = state.pop(old)
        super()._load_from_state_dict(state, prefix, metadata, *rest)


class DeformConv2d(_Convolution):
    """mmcv's layer of version 1: the caller passes offsets.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: an int or a pair, as are the three that follow.
        stride: distance between adjacent output pixels, in pixels of the map.
        padding: rows and columns of zeros on each side of the map.
        dilation: distance between adjacent taps.
        groups: of the convolution.
        deform_groups: G, the number of offset groups.
        bias: must be False.
        im2col_step: ignored.

    Raises:
        AssertionError: `bias` is True, or `groups` does not divide the channels.
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
        deform_groups = _groups(self, deform_groups, options)
        assert not bias, f"bias={bias} is not supported in DeformConv2d."
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)
        del self.bias  # mmcv's layer has no such attribute, and its users ask for it
        self.deform_groups, self.im2col_step = deform_groups, im2col_step
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight as mmcv does."""
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        # Maps smaller than the kernel are padded at the bottom and the right, and the output is cropped again.
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
        return self._described("deform_groups")


class DeformConv2dPack(_Pack, DeformConv2d):
    """mmcv's layer of version 1 that predicts its own offsets ("DCN" in configurations).

    Arguments are those of :class:`DeformConv2d`; `conv_offset` starts at zero. Checkpoints from before its version 2
    have ``NAME_offset.weight`` beside ``NAME.weight``. They load as in mmcv, if the loader passes a layer the names
    beside its own, which `load_state_dict` has not done since torch 2.0; ``convert(state, "mmcv")`` of
    `pliant.interop.checkpoints` renames them with every torch.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conv_offset = self._predicting(2)

    def init_offset(self) -> None:
        """Set the branch to zero."""
        zero(self.conv_offset)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self._convolve(x, self.conv_offset(x))


class ModulatedDeformConv2d(_Convolution):
    """mmcv's layer of version 2: the caller passes offsets and masks.

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
        deform_groups = _groups(self, deform_groups, options)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bool(bias))
        self.deform_groups = deform_groups
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the weight uniformly as mmcv does; set the bias, and the branch if there is one, to zero."""
        self._draw()

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


class ModulatedDeformConv2dPack(_Pack, ModulatedDeformConv2d):
    """mmcv's layer of version 2 that predicts its own offsets and masks ("DCNv2" in configurations).

    Arguments are those of :class:`ModulatedDeformConv2d`. The mask is ``sigmoid(·)``, so that the layer starts at half
    of the convolution it replaces. Checkpoints from before its version 2 load as into :class:`DeformConv2dPack`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conv_offset = self._predicting(3)

    def init_weights(self) -> None:
        super().init_weights()
        if hasattr(self, "conv_offset"):
            zero(self.conv_offset)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, *offsets_and_masks(self.conv_offset(x)))
