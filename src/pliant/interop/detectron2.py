"""detectron2's deformable convolutions on our kernels: on every device, with gradients on the CPU, too."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from pliant.interop._layers import Convolution, Pair, convolve


def deform_conv(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    deformable_groups: int = 1,
    im2col_step: int = 64,
) -> Tensor:
    """Convolve with taps moved by offsets, as `detectron2.layers.deform_conv` does: :func:`pliant.ops.deform_conv2d`.

    Args:
        input: (N, C, H, W).
        offset: (N, 2·G·Kh·Kw, Ho, Wo).
        weight: (O, C/groups, Kh, Kw).
        stride: an int or a pair, as are the two that follow.
        padding: rows and columns of zeros on each side of the map.
        dilation: distance between adjacent taps.
        groups: of the convolution.
        deformable_groups: G, the number of offset groups.
        im2col_step: ignored.

    Raises:
        ValueError: `input` is not a batch of maps, or the output would be empty.
        RuntimeError: a shape does not fit.
    """
    return convolve(
        "deform_conv", input, offset, None, weight, None, stride, padding, dilation, groups, deformable_groups
    )


def modulated_deform_conv(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    deformable_groups: int = 1,
) -> Tensor:
    """Convolve with taps moved by offsets and weighted by masks, as `detectron2.layers.modulated_deform_conv` does.

    Arguments and errors are those of :func:`deform_conv`, with mask (N, G·Kh·Kw, Ho, Wo) and bias (O,).
    """
    return convolve(
        "modulated_deform_conv",
        input,
        offset,
        mask,
        weight,
        bias,
        stride,
        padding,
        dilation,
        groups,
        deformable_groups,
    )


class _Convolution(Convolution):
    """Draw the weight, and apply norm and activation after the convolution."""

    def _complete(
        self, deformable_groups: int, norm: nn.Module | None, activation: Callable[[Tensor], Tensor] | None
    ) -> None:
        self.deformable_groups, self.norm, self.activation = deformable_groups, norm, activation
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def _follow(self, x: Tensor) -> Tensor:
        x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)

    def extra_repr(self) -> str:
        return self._described("deformable_groups")


class DeformConv(_Convolution):
    """detectron2's layer of version 1: the caller passes offsets; norm and activation follow.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: an int or a pair, as are the three that follow.
        stride: distance between adjacent output pixels, in pixels of the map.
        padding: rows and columns of zeros on each side of the map.
        dilation: distance between adjacent taps.
        groups: of the convolution.
        deformable_groups: G, the number of offset groups.
        bias: must be False.
        norm: a layer, or None.
        activation: a function, or None.

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
        deformable_groups: int = 1,
        bias: bool = False,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        assert not bias, "DeformConv: there is no bias, give it a norm"
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self._complete(deformable_groups, norm, activation)

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        x = deform_conv(
            x, offset, self.weight, self.stride, self.padding, self.dilation, self.groups, self.deformable_groups
        )
        return self._follow(x)


class ModulatedDeformConv(_Convolution):
    """detectron2's layer of version 2: the caller passes offsets and masks; norm and activation follow.

    Arguments are those of :class:`DeformConv`, except that `bias` may be True, the default.
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
        deformable_groups: int = 1,
        bias: bool = True,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self._complete(deformable_groups, norm, activation)
        self.with_bias = bias
        # detectron2 keeps these as they were given.
        self.stride, self.padding, self.dilation = stride, padding, dilation  # type: ignore[assignment]

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        x = modulated_deform_conv(
            x,
            offset,
            mask,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.deformable_groups,
        )
        return self._follow(x)
