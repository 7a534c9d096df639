"""DCNv4's layer and operator under their own names, and what leads from DCNv3 to DCNv4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pliant import ops
from pliant.nn import DCNv4 as _DCNv4

__all__ = ["DCNv4", "DCNv4Function", "from_dcnv3", "pack"]


class DCNv4Function:
    """DCNv4's autograd function: :func:`pliant.ops.dcnv4` behind ``apply``."""

    @staticmethod
    def apply(
        input: Tensor,
        offset_mask: Tensor,
        kernel_h: int,
        kernel_w: int,
        stride_h: int,
        stride_w: int,
        pad_h: int,
        pad_w: int,
        dilation_h: int,
        dilation_w: int,
        group: int,
        group_channels: int,
        offset_scale: float,
        im2col_step: int,
        remove_center: bool,
    ) -> Tensor:
        """Return (N, Ho, Wo, C); `im2col_step` is ignored, any batch is computed as a whole.

        Raises:
            ValueError: a shape does not fit, or `input` has not `group` times `group_channels` channels.
        """
        if input.shape[-1] != group * group_channels:
            raise ValueError(
                f"DCNv4Function: input must have group·group_channels = {group}·{group_channels} channels, got "
                f"{input.shape[-1]}"
            )
        return ops.dcnv4(
            input,
            offset_mask,
            (kernel_h, kernel_w),
            (stride_h, stride_w),
            (pad_h, pad_w),
            (dilation_h, dilation_w),
            group,
            offset_scale,
            bool(remove_center),
        )


class DCNv4(_DCNv4):
    """DCNv4's layer, (N, H·W, C) → (N, H·W, C), and :class:`pliant.nn.DCNv4` under its names.

    It runs on CPUs too, with any number of channels per group and any kernel size.

    Args:
        channels: C.
        kernel_size: height and width of the kernel.
        stride: 1.
        pad: rows and columns added around the map.
        dilation: distance between adjacent taps.
        group: G, which must divide C.
        offset_scale: factor of offsets and taps.
        dw_kernel_size: of the depthwise convolution before the branch; None: there is none.
        center_feature_scale: learn how much of the pixel itself is kept.
        remove_center: leave out the tap in the middle.
        output_bias: learn a bias of the last projection.
        without_pointwise: leave out the projections.
        **kwargs: ignored, as in the original.

    Raises:
        ValueError: groups do not divide the channels; a stride other than 1, with which the original reads the wrong
            offsets.

    >>> import torch
    >>> DCNv4(32, group=2)(torch.randn(1, 42, 32), shape=(6, 7)).shape
    torch.Size([1, 42, 32])
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        dw_kernel_size: int | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        output_bias: bool = True,
        without_pointwise: bool = False,
        **kwargs: Any,
    ) -> None:
        if channels % group:
            raise ValueError(f"channels must be divisible by group, but got {channels} and {group}")
        super().__init__(
            channels,
            kernel_size,
            stride,
            pad,
            dilation,
            group,
            offset_scale,
            dw_kernel_size=dw_kernel_size,
            center_feature_scale=center_feature_scale,
            remove_center=remove_center,
            output_bias=output_bias,
            without_pointwise=without_pointwise,
        )
        self.pad, self.group, self.group_channels, self.K = pad, group, channels // group, self.samples

    def _reset_parameters(self) -> None:
        self.reset_parameters()


def pack(offset: Tensor, mask: Tensor, groups: int) -> Tensor:
    """Pack offsets (…, G·K·2) and masks (…, G·K) of DCNv3 into the one tensor (…, ⌈G·3·K/8⌉·8) that DCNv4 reads.

    ``dcnv4(x, pack(offset, mask, G), …)`` is ``dcnv3(x, offset, mask, …)``.

    Raises:
        ValueError: the last dimensions do not fit each other or the groups.

    >>> import torch
    >>> pack(torch.randn(1, 5, 5, 36), torch.rand(1, 5, 5, 18), 2).shape
    torch.Size([1, 5, 5, 56])
    """
    samples = mask.shape[-1]
    if groups < 1 or samples % groups or offset.shape[-1] != 2 * samples:
        raise ValueError(
            f"pack: offset and mask must have G·K·2 and G·K channels for {groups} groups, got {offset.shape[-1]} and "
            f"{samples}"
        )
    both = (offset.unflatten(-1, (groups, -1)), mask.unflatten(-1, (groups, -1)))
    packed = torch.cat(both, -1).flatten(-2)
    return F.pad(packed, (0, -packed.shape[-1] % 8))


def from_dcnv3(state: Mapping[str, Tensor], kernel_size: int = 3, remove_center: bool = False) -> dict[str, Tensor]:
    """Return a state dict for DCNv4 layers from one of a network with DCNv3 layers, to start training from.

    Projections are renamed, and the branches `offset` and `mask` are packed into `offset_mask`. Two things are lost, so
    that the converted layer does not compute what the old one did: DCNv4 has neither the softmax over the masks nor the
    normalized depthwise convolution `dw_conv` before the branches. Everything else is kept under its name.

    Args:
        state: names and tensors; a DCNv3 layer is found by its `offset`, `mask` and `input_proj`.
        kernel_size: of the DCNv3 layers.
        remove_center: whether their taps in the middle were left out.

    Raises:
        ValueError: there is no DCNv3 layer, or the branches of one have another number of taps.
    """
    layers = [
        name.removesuffix("input_proj.weight")
        for name in state
        if name.endswith("input_proj.weight") and name.replace("input_proj", "mask") in state
    ]
    if not layers:
        raise ValueError("from_dcnv3: the state has no layer with offset, mask and input_proj")
    samples = kernel_size**2 - int(remove_center)
    converted = dict(state)
    for layer in layers:
        masks = state[f"{layer}mask.weight"].shape[0]
        if masks % samples:
            raise ValueError(f"from_dcnv3: {layer}mask has {masks} rows, which {samples} taps do not divide")
        for part in ("weight", "bias"):
            offset, mask = (converted.pop(f"{layer}{branch}.{part}") for branch in ("offset", "mask"))
            packed = pack(offset.movedim(0, -1), mask.movedim(0, -1), masks // samples)
            converted[f"{layer}offset_mask.{part}"] = packed.movedim(-1, 0).contiguous()
            converted[f"{layer}value_proj.{part}"] = converted.pop(f"{layer}input_proj.{part}")
        for name in [name for name in converted if name.startswith(f"{layer}dw_conv.")]:
            del converted[name]
    return converted
