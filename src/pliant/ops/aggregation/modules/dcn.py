"""DCNv3 and DCNv4 as layers: they predict offsets and masks from every pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant import _check
from pliant._check import not_scripted
from pliant.ops.aggregation.dcnv3 import dcnv3
from pliant.ops.aggregation.dcnv4 import dcnv4


class _Aggregation(nn.Module):
    """What DCNv3 and DCNv4 share: their geometry, and the protocol of deformable layers."""

    def __init__(
        self,
        channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        padding: int | Sequence[int],
        dilation: int | Sequence[int],
        groups: int,
        offset_scale: float,
        remove_center: bool,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if channels < 1 or groups < 1 or channels % groups:
            raise ValueError(f"{name}: groups={groups} must divide {channels} channels")
        self.channels, self.groups, self.offset_scale, self.remove_center = (
            channels,
            groups,
            offset_scale,
            remove_center,
        )
        self.kernel_size = _check.pair(name, "kernel_size", kernel_size, 1)
        self.stride = _check.pair(name, "stride", stride, 1)
        self.padding = _check.pair(name, "padding", padding, 0)
        self.dilation = _check.pair(name, "dilation", dilation, 1)
        if self.stride != (1, 1):
            raise ValueError(f"{name}: stride must be 1, its branch predicts offsets for every pixel, got {stride!r}")
        self.samples = self.kernel_size[0] * self.kernel_size[1] - int(remove_center)
        if self.samples < 1:
            raise ValueError(f"{name}: a kernel of one tap has no other tap, so remove_center must be False")

    @property
    def _geometry(self) -> dict[str, Any]:
        names = ("kernel_size", "stride", "padding", "dilation", "groups", "offset_scale", "remove_center")
        return {name: getattr(self, name) for name in names}

    def _centre(self, output: Tensor, value: Tensor, source: Tensor) -> Tensor:
        """Blend the output with the value at its own pixel, by a factor per group that `source` predicts."""
        weight, bias = self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias
        scale = F.linear(source, weight, bias).sigmoid().repeat_interleave(self.channels // self.groups, -1)
        return output * (1 - scale) + value * scale

    def _add_centre(self, factory: dict[str, Any]) -> None:
        self.center_feature_scale_proj_weight = nn.Parameter(torch.zeros(self.groups, self.channels, **factory))
        self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(self.groups, **factory))

    def extra_repr(self) -> str:
        text = f"{self.channels}, kernel_size={self.kernel_size}, padding={self.padding}, dilation={self.dilation}"
        text += f", groups={self.groups}, offset_scale={self.offset_scale}"
        return text + (", remove_center=True" if self.remove_center else "")

    __prepare_scriptable__ = not_scripted

    # The protocol of deformable layers; pliant.nn.deformable documents its members.
    axes, unit, modulated, offset_lr_mult = "xy", "pixels", True, 1.0

    def inside(self, moves: Tensor, size: Sequence[int]) -> Tensor:
        """Return which samples lie in a map of `size`, (N, Ho, Wo, G, K), for `moves` of that shape, x first."""
        (Ho, Wo), (H, W) = moves.shape[1:3], size
        Kh, Kw = self.kernel_size
        taps = [(j, i) for i in range(Kw) for j in range(Kh)]
        if self.remove_center:
            taps.remove((Kh // 2, Kw // 2))

        def line(axis: int, count: int) -> Tensor:
            """Return the positions of all taps along one axis without their offsets, (count, K)."""
            d = self.dilation[axis]
            center = d * (self.kernel_size[axis] - 1) // 2
            tap = torch.tensor([tap[axis] * d - center for tap in taps], device=moves.device, dtype=moves.dtype)
            output = torch.arange(count, device=moves.device, dtype=moves.dtype) - self.padding[axis] + center
            return output[:, None] + self.offset_scale * tap

        x, y = moves.unbind(-1)
        x, y = x + line(1, Wo).view(Wo, 1, -1), y + line(0, Ho).view(Ho, 1, 1, -1)
        return (y < H) & (x < W) & (y > -1) & (x > -1)


class DCNv3(_Aggregation):
    """Aggregate samples around every pixel, with offsets and masks predicted from it: the layer of InternImage.

    ``u = gelu(norm(dw_conv(x)))``; ``v = input_proj(x)``;
    ``y = output_proj(dcnv3(v, offset(u), softmax(mask(u))))``, where the softmax goes over the taps of a group. Offsets
    and masks start at 0, so that the layer starts as the average of v over the window. With `center_feature_scale` y is
    blended with v before the last projection, by a factor per group that u predicts.

    At the edges the layer follows :func:`pliant.ops.dcnv3`.

    Args:
        channels: C.
        kernel_size: Kh, Kw.
        stride: 1; the branch predicts for every pixel.
        padding: rows and columns added around the map.
        dilation: distance between adjacent taps.
        groups: G, groups of channels with their own offsets and masks; must divide C.
        offset_scale: factor of offsets and taps.
        dw_kernel_size: kernel of the depthwise convolution; None takes `kernel_size`.
        norm: "layer" or "batch".
        center_feature_scale: learn how much of the pixel itself is kept.
        remove_center: leave out the tap in the middle.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, H, W, C) → (N, H, W, C). State as in InternImage: ``dw_conv.0``, ``dw_conv.1.1`` (``dw_conv.1.0`` with
        batch normalization), `offset`, `mask`, `input_proj`, `output_proj`, ``center_feature_scale_proj_weight`` and
        ``center_feature_scale_proj_bias``.

    Raises:
        ValueError: groups do not divide the channels, a stride other than 1, an unknown norm, a branch that keeps
            another number of pixels than the operator.

    Source: Wang et al., "InternImage", CVPR 2023, section 3.1.

    >>> layer = DCNv3(32, groups=2)
    >>> layer(torch.randn(1, 7, 7, 32)).shape
    torch.Size([1, 7, 7, 32])
    """

    branches = ("offset",)

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        groups: int = 4,
        offset_scale: float = 1.0,
        *,
        dw_kernel_size: int | Sequence[int] | None = None,
        norm: str = "layer",
        center_feature_scale: bool = False,
        remove_center: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center)
        if norm not in ("layer", "batch"):
            raise ValueError(f"DCNv3: norm must be 'layer' or 'batch', got {norm!r}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        kernel = _check.pair(
            "DCNv3", "dw_kernel_size", self.kernel_size if dw_kernel_size is None else dw_kernel_size, 1
        )
        pad = ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2)
        self.dw_conv = nn.Sequential(
            nn.Conv2d(channels, channels, kernel, padding=pad, groups=channels, **factory),
            nn.Sequential(_Last(), nn.LayerNorm(channels, eps=1e-6, **factory))
            if norm == "layer"
            else nn.Sequential(nn.BatchNorm2d(channels, **factory), _Last()),
            nn.GELU(),
        )
        self.offset = nn.Linear(channels, groups * self.samples * 2, **factory)
        self.mask = nn.Linear(channels, groups * self.samples, **factory)
        self.input_proj = nn.Linear(channels, channels, **factory)
        self.output_proj = nn.Linear(channels, channels, **factory)
        self.center_feature_scale = center_feature_scale
        if center_feature_scale:
            self._add_centre(factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise offsets and masks to zero, and the projections to xavier."""
        for layer in (self.offset, self.mask):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.input_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def predict(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Return the offsets (N, H, W, G·K·2), x first, and masks (N, H, W, G·K) of every pixel.

        Under autocast the branches run in the low precision; what they predict is converted to float32.
        """
        _check.layer("DCNv3", "input", input, "N H W C", self.channels, self.input_proj, -1)
        return self._predict(self.dw_conv(input.permute(0, 3, 1, 2)))

    def _predict(self, u: Tensor) -> tuple[Tensor, Tensor]:
        mask = _check.wide(self.mask(u)).unflatten(-1, (self.groups, self.samples)).softmax(-1).flatten(-2)
        return _check.wide(self.offset(u)), mask

    def forward(self, input: Tensor) -> Tensor:
        _check.layer("DCNv3", "input", input, "N H W C", self.channels, self.input_proj, -1)
        u = self.dw_conv(input.permute(0, 3, 1, 2))
        offset, mask = self._predict(u)
        value = self.input_proj(input)
        output = dcnv3(value, offset, mask, **self._geometry)
        if self.center_feature_scale:
            output = self._centre(output, value, u)
        result: Tensor = self.output_proj(output)
        return result

    def offsets(self, predicted: Tensor) -> Tensor:
        """Return the offsets in what the branch or `predict` returned, (N, H, W, G, K, 2), x first."""
        offsets: Tensor = predicted.unflatten(-1, (self.groups, self.samples, 2))
        return offsets

    def map_size(self, input: Tensor) -> tuple[int, ...]:
        """Return height and width of the map that is sampled, from what the branch reads."""
        return tuple(input.shape[1:3])


class _Last(nn.Module):
    """Move channels last; InternImage's normalization counts it as a layer."""

    def forward(self, input: Tensor) -> Tensor:
        return input.permute(0, 2, 3, 1)


class DCNv4(_Aggregation):
    """Aggregate samples around every pixel, with offsets and masks from one projection: the layer of FlashInternImage.

    ``v = value_proj(x)``; ``y = output_proj(dcnv4(v, offset_mask(x)))``, where a depthwise convolution `offset_mask_dw`
    may come before `offset_mask`. Masks have no softmax and start at 0, so that the operator's output is exactly 0 when
    training starts; masks learn first. With `center_feature_scale` y is blended with v before the last projection, by a
    factor per group that y predicts.

    At the edges the layer follows :func:`pliant.ops.dcnv4`.

    Args:
        channels: C.
        kernel_size: Kh, Kw.
        stride: 1; the branch predicts for every pixel.
        padding: rows and columns added around the map.
        dilation: distance between adjacent taps.
        groups: G, groups of channels with their own offsets and masks; must divide C.
        offset_scale: factor of offsets and taps.
        dw_kernel_size: kernel of the depthwise convolution before `offset_mask`; None: there is none.
        center_feature_scale: learn how much of the pixel itself is kept.
        remove_center: leave out the tap in the middle.
        output_bias: learn a bias of `output_proj`.
        without_pointwise: leave out `value_proj` and `output_proj`.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, H·W, C) → (N, H·W, C), with ``shape=(H, W)``; without it the map is a square. State as in DCNv4:
        `offset_mask_dw`, `offset_mask`, `value_proj`, `output_proj`, ``center_feature_scale_proj_weight`` and
        ``center_feature_scale_proj_bias``.

    Raises:
        ValueError: groups do not divide the channels, a stride other than 1, a `shape` of another number of pixels.

    Source: Xiong et al., "Efficient Deformable ConvNets", CVPR 2024, section 3.

    >>> layer = DCNv4(32, groups=2)
    >>> layer(torch.randn(1, 42, 32), shape=(6, 7)).shape
    torch.Size([1, 42, 32])
    """

    branches = ("offset_mask",)

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        groups: int = 4,
        offset_scale: float = 1.0,
        *,
        dw_kernel_size: int | Sequence[int] | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        output_bias: bool = True,
        without_pointwise: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.offset_mask_dw = None
        if dw_kernel_size is not None:
            kernel = _check.pair("DCNv4", "dw_kernel_size", dw_kernel_size, 1)
            pad = ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2)
            self.offset_mask_dw = nn.Conv2d(channels, channels, kernel, padding=pad, groups=channels, **factory)
        used = groups * self.samples * 3
        self.offset_mask = nn.Linear(channels, used + -used % 8, **factory)
        self.value_proj = None if without_pointwise else nn.Linear(channels, channels, **factory)
        self.output_proj = None if without_pointwise else nn.Linear(channels, channels, output_bias, **factory)
        self.center_feature_scale = center_feature_scale
        if center_feature_scale:
            self._add_centre(factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise offsets and masks to zero, and the projections to xavier."""
        nn.init.zeros_(self.offset_mask.weight)
        nn.init.zeros_(self.offset_mask.bias)
        for layer in (self.value_proj, self.output_proj):
            if layer is not None:
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def predict(self, input: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Return the packed offsets and masks (N, H, W, Cp) of every pixel of `input` (N, H·W, C).

        Under autocast the branch runs in the low precision; what it predicts is converted to float32.
        """
        _check.layer("DCNv4", "input", input, "N H·W C", self.channels, self.offset_mask, -1)
        return self._predict(self._map(input, shape))

    def _map(self, input: Tensor, shape: tuple[int, int] | None) -> Tensor:
        if shape is None:
            side = math.isqrt(input.shape[1])
            shape = side, side
        if not isinstance(input, torch.fx.Proxy) and shape[0] * shape[1] != input.shape[1]:
            raise ValueError(f"DCNv4: input must have H·W = {shape[0]}·{shape[1]} pixels, got {int(input.shape[1])}")
        map: Tensor = input.unflatten(1, shape)
        return map

    def _predict(self, map: Tensor) -> Tensor:
        if self.offset_mask_dw is not None:
            map = self.offset_mask_dw(map.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return _check.wide(self.offset_mask(map))

    def forward(self, input: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        _check.layer("DCNv4", "input", input, "N H·W C", self.channels, self.offset_mask, -1)
        map = self._map(input, shape)
        value = map if self.value_proj is None else self.value_proj(map)
        output = dcnv4(value, self._predict(map), **self._geometry)
        if self.center_feature_scale:
            output = self._centre(output, value, output)
        output = output.flatten(1, 2)
        if self.output_proj is not None:
            output = self.output_proj(output)
        return output

    def offsets(self, predicted: Tensor) -> Tensor:
        """Return the offsets in what the branch or `predict` returned, (N, H, W, G, K, 2), x first."""
        G, K = self.groups, self.samples
        packed = predicted[..., : G * K * 3].unflatten(-1, (G, K * 3))
        offsets: Tensor = packed[..., : 2 * K].unflatten(-1, (K, 2))
        return offsets

    def map_size(self, input: Tensor) -> tuple[int, ...]:
        """Return height and width of the map that is sampled, from what the branch reads."""
        return tuple(input.shape[1:3])
