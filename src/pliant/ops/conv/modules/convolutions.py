"""Deformable layers of one, two and three axes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pliant import _native
from pliant.ops.conv.deform_conv1d import deform_conv1d
from pliant.ops.conv.deform_conv2d import deform_conv2d
from pliant.ops.conv.deform_conv3d import deform_conv3d
from pliant.ops.conv.modules.predicting import Predicting
from pliant.ops.conv.packed import PackedWeight


class DeformConv1d(Predicting):
    """Convolve sequences with offsets (and a mask) that the layer predicts from the same input, or from a guide.

    ``offset, m = conv_offset(x)``; ``mask = mask_scale·sigmoid(m)``; ``y = deform_conv1d(x, offset, weight, mask)``.
    Version 1, and version 2 with ``mask_scale=2``, start exactly equal to `nn.Conv1d` with the same weights. Arguments,
    attributes and errors are those of :class:`DeformConv2d`, with one number per axis.

    Shape:
        (N, C, W) → (N, O, Wo), with a guide (N, guide_channels, Wo). `conv_offset` has G·K channels, or 2·G·K: all
        offsets, then all masks.

    Source: Dai et al., ICCV 2017, section 2.1, over one axis.

    >>> import torch
    >>> layer = DeformConv1d(16, 32, 3, padding=1)
    >>> layer(torch.randn(1, 16, 8)).shape
    torch.Size([1, 32, 8])
    """

    axes, plain, letters, several = "x", nn.Conv1d, "N C W", "a sequence of one"

    def _convolve(self, input: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        return deform_conv1d(
            input,
            offset,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            mask,
            boundary=self.boundary,
        )


class DeformConv2d(Predicting):
    """Convolve with offsets (and a mask) that the layer predicts from the same input, or from a guide.

    ``offset, m = conv_offset(x)``; ``mask = mask_scale·sigmoid(m)``; ``y = deform_conv2d(x, offset, weight, mask)``.
    The branch `conv_offset` has the main convolution's kernel size, stride, padding and dilation and starts at zero,
    so that version 1, and version 2 with ``mask_scale=2``, start exactly equal to `nn.Conv2d` with the same weights.

    With `guide_channels` the layer takes a second input, ``layer(x, guide)``, on the grid of the output, and
    ``offset, m = conv_offset(guide)``: video networks align a frame by features of both frames. The branch then has
    stride 1 and keeps the guide's size.

    At the edges the layer follows :func:`pliant.ops.deform_conv2d`.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: Kh, Kw.
        stride: distance between adjacent outputs in input pixels.
        padding: rows and columns added around the map, or "same" (stride 1 only).
        dilation: distance between adjacent taps, of the offset branch too.
        groups: convolution groups, which must divide C and O. The offset branch is not grouped.
        bias: learn a bias (O,).
        version: 1 (offsets) or 2 (offsets and mask).
        offset_groups: G, groups of input channels with their own offsets; must divide C.
        mask_scale: factor of the sigmoid: 2.0 starts at mask 1 (the official example), 1.0 at 0.5 (the paper's text,
            mmcv, detectron2).
        boundary: "zeros" or "clamp".
        guide_channels: channels of the guide that offsets and masks are predicted from; None: there is no guide.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) → (N, O, Ho, Wo), with a guide (N, guide_channels, Ho, Wo). `conv_offset` has 2·G·K channels, or
        3·G·K: all offsets, then all masks.

    Attributes:
        offset_lr_mult: learning rate of `conv_offset` relative to the rest, used by
            :func:`pliant.nn.parameter_groups`: 1.0 for version 1, 0.1 for version 2, as in the papers.

    Raises:
        TypeError: a guide is missing, or passed to a layer that takes none.
        ValueError: groups do not divide the channels, an unknown version or boundary, `mask_scale` not positive, "same"
            with a stride.

    Source: Dai et al., ICCV 2017, section 2.1; Zhu et al., CVPR 2019, section 3.2; mask scale of MXNet's example. The
    guide: Wang et al., "EDVR", CVPRW 2019, section 3.2.

    >>> import torch
    >>> layer = DeformConv2d(16, 32, 3, padding=1)
    >>> layer(torch.randn(1, 16, 8, 8)).shape
    torch.Size([1, 32, 8, 8])
    >>> layer = DeformConv2d(16, 32, 3, stride=2, padding=1, guide_channels=4)
    >>> layer(torch.randn(1, 16, 8, 8), torch.randn(1, 4, 4, 4)).shape
    torch.Size([1, 32, 4, 4])
    """

    conv_offset: nn.Conv2d
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def _convolve(self, input: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        given = (input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)
        packed = None if self.training else self._packed
        if packed is not None and packed.serves(self.weight, input, offset, self.bias, mask):
            return packed.convolve(*given, self.boundary)
        return deform_conv2d(*given, boundary=self.boundary)

    # What pliant.nn.prepack keeps between calls, never in a state dict, a copy or a saved model.
    _packed: PackedWeight | None = None

    def prepack(self) -> bool:
        """Keep the weight packed for inference; return whether it is. See :func:`pliant.nn.prepack`."""
        packs = _native.path is not None and self.weight.is_cpu
        packed = PackedWeight(self.weight, self.groups) if packs else None
        self._packed = packed if packed is not None and packed.panels.numel() > 0 else None
        return self._packed is not None

    def unprepack(self) -> None:
        """Drop the packed weight."""
        self._packed = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}


class DeformConv3d(Predicting):
    """Convolve volumes with offsets (and a mask) that the layer predicts from the same input, or from a guide.

    ``offset, m = conv_offset(x)``; ``mask = mask_scale·sigmoid(m)``; ``y = deform_conv3d(x, offset, weight, mask)``.
    Version 1, and version 2 with ``mask_scale=2``, start exactly equal to `nn.Conv3d` with the same weights. Arguments,
    attributes and errors are those of :class:`DeformConv2d`, with one number or three (depth, height, width).

    Shape:
        (N, C, D, H, W) → (N, O, Do, Ho, Wo), with a guide (N, guide_channels, Do, Ho, Wo). `conv_offset` has 3·G·K
        channels, or 4·G·K: all offsets, then all masks.

    Source: Ying et al., "Deformable 3D Convolution for Video Super-Resolution", IEEE SPL 2020.

    >>> import torch
    >>> layer = DeformConv3d(16, 32, 3, padding=1)
    >>> layer(torch.randn(1, 16, 4, 8, 8)).shape
    torch.Size([1, 32, 4, 8, 8])
    """

    axes, plain, letters, several = "zyx", nn.Conv3d, "N C D H W", "three numbers"

    def _convolve(self, input: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        return deform_conv3d(
            input,
            offset,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            mask,
            boundary=self.boundary,
        )
