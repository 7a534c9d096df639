"""InternImage's layer: its arguments and its names of parameters, with our operator."""

from __future__ import annotations

from torch import nn

from pliant.nn import DCNv3 as _DCNv3

__all__ = ["DCNv3", "DCNv3_pytorch"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"GELU": nn.GELU, "ReLU": nn.ReLU, "SiLU": nn.SiLU}
NORMS = {"LN": "layer", "BN": "batch"}


class DCNv3(_DCNv3):
    """InternImage's layer, (N, H, W, C) → (N, H, W, C), and :class:`pliant.nn.DCNv3` under its names.

    Args:
        channels: C.
        kernel_size: height and width of the kernel.
        dw_kernel_size: of the depthwise convolution before the branches; None: `kernel_size`.
        stride: 1.
        pad: rows and columns added around the map.
        dilation: distance between adjacent taps.
        group: G, which must divide C.
        offset_scale: factor of offsets and taps.
        act_layer: "GELU", "ReLU" or "SiLU".
        norm_layer: "LN" or "BN".
        center_feature_scale: learn how much of the pixel itself is kept.
        remove_center: leave out the tap in the middle.

    Raises:
        ValueError: groups do not divide the channels; a stride other than 1, with which the original reads the wrong
            offsets.
        NotImplementedError: an unknown activation or normalization.

    >>> import torch
    >>> DCNv3(32, group=2)(torch.randn(1, 6, 7, 32)).shape
    torch.Size([1, 6, 7, 32])
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        dw_kernel_size: int | None = None,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        act_layer: str = "GELU",
        norm_layer: str = "LN",
        center_feature_scale: bool = False,
        remove_center: bool = False,
    ) -> None:
        if channels % group:
            raise ValueError(f"channels must be divisible by group, but got {channels} and {group}")
        if act_layer not in ACTIVATIONS:
            raise NotImplementedError(f"build_act_layer does not support {act_layer}")
        if norm_layer not in NORMS:
            raise NotImplementedError(f"build_norm_layer does not support {norm_layer}")
        super().__init__(
            channels,
            kernel_size,
            stride,
            pad,
            dilation,
            group,
            offset_scale,
            dw_kernel_size=dw_kernel_size,
            norm=NORMS[norm_layer],
            center_feature_scale=center_feature_scale,
            remove_center=remove_center,
        )
        self.dw_conv[2] = ACTIVATIONS[act_layer]()
        self.pad, self.group, self.group_channels = pad, group, channels // group

    def _reset_parameters(self) -> None:
        self.reset_parameters()


class DCNv3_pytorch(DCNv3):
    """InternImage's layer in plain PyTorch, which is the same layer here; see :class:`DCNv3`."""
