"""The deformable layer: a convolution that predicts its own offsets, and in version 2 its mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant import _check, _native
from pliant.ops.conv.deform_conv2d import deform_conv2d
from pliant.ops.conv.packed import PackedWeight


class DeformConv2d(nn.Module):
    """Convolve with offsets (and a mask) that the layer predicts from the same input.

    ``offset, m = conv_offset(x)``; ``mask = mask_scale·sigmoid(m)``; ``y = deform_conv2d(x, offset, weight, mask)``.
    The branch `conv_offset` has the main convolution's kernel size, stride, padding and dilation and starts at zero,
    so that version 1, and version 2 with ``mask_scale=2``, start exactly equal to `nn.Conv2d` with the same weights.

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
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) → (N, O, Ho, Wo). `conv_offset` has 2·G·K channels, or 3·G·K: all offsets, then all masks.

    Attributes:
        offset_lr_mult: learning rate of `conv_offset` relative to the rest, used by
            :func:`pliant.nn.parameter_groups`: 1.0 for version 1, 0.1 for version 2, as in the papers.

    Raises:
        ValueError: groups do not divide the channels, an unknown version or boundary, `mask_scale` not positive, "same"
            with a stride.

    Source: Dai et al., ICCV 2017, section 2.1; Zhu et al., CVPR 2019, section 3.2; mask scale of MXNet's example.

    >>> layer = DeformConv2d(16, 32, 3, padding=1)
    >>> layer(torch.randn(1, 16, 8, 8)).shape
    torch.Size([1, 32, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        version: int = 2,
        offset_groups: int = 1,
        mask_scale: float = 2.0,
        boundary: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = "DeformConv2d"
        for least, what in ((in_channels, "in_channels"), (out_channels, "out_channels"), (groups, "groups")):
            if least < 1:
                raise ValueError(f"{name}: {what} must be at least 1, got {least}")
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{name}: groups={groups} must divide {in_channels} input and {out_channels} output channels"
            )
        if offset_groups < 1 or in_channels % offset_groups:
            raise ValueError(f"{name}: offset_groups={offset_groups} must divide {in_channels} input channels")
        if version not in (1, 2):
            raise ValueError(f"{name}: version must be 1 (offsets) or 2 (offsets and mask), got {version!r}")
        if not 0 < mask_scale < math.inf:
            raise ValueError(f"{name}: mask_scale must be positive and finite, got {mask_scale}")
        if boundary not in ("zeros", "clamp"):
            raise ValueError(f"{name}: boundary must be 'zeros' or 'clamp', got {boundary!r}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = _check.pair(name, "kernel_size", kernel_size, 1)
        self.stride = _check.pair(name, "stride", stride, 1)
        self.dilation = _check.pair(name, "dilation", dilation, 1)
        self.version, self.offset_groups = version, offset_groups
        self.mask_scale, self.boundary = mask_scale, boundary
        self.offset_lr_mult = 1.0 if version == 1 else 0.1

        # "same" with an even kernel needs one more row or column at the end, which is padded before the operator runs.
        self.extra = (0, 0)
        if isinstance(padding, str):
            if padding != "same":
                raise ValueError(f"{name}: padding must be a number, a pair or 'same', got {padding!r}")
            if self.stride != (1, 1):
                raise ValueError(f"{name}: padding='same' needs stride 1, got {self.stride}")
            span = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            self.padding = (span[0] // 2, span[1] // 2)
            self.extra = (span[0] % 2, span[1] % 2)
            if boundary == "clamp" and any(self.extra):
                raise ValueError(f"{name}: padding='same' pads unevenly here, which boundary='clamp' cannot follow")
        else:
            self.padding = _check.pair(name, "padding", padding, 0)

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        K = self.kernel_size[0] * self.kernel_size[1]
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size, **factory))
        self.bias = nn.Parameter(torch.empty(out_channels, **factory)) if bias else None
        self.conv_offset = SlicedConv2d.if_needed(
            in_channels,
            (version + 1) * offset_groups * K,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            **factory,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise weight and bias as `nn.Conv2d` does, the offset branch to zero."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)
        for parameter in self.conv_offset.parameters():
            nn.init.zeros_(parameter)

    def predict(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what the branch predicts for `input`: offset (N, 2·G·K, Ho, Wo) and mask (N, G·K, Ho, Wo) or None.

        Under autocast the branch runs in the low precision; its prediction is converted to float32.
        """
        self._check(input)
        return self._split(self.conv_offset(self._pad(input)))

    def forward(self, input: Tensor) -> Tensor:
        self._check(input)
        input = self._pad(input)
        offset, mask = self._split(self.conv_offset(input))
        given = (input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)
        if (
            self._packed is not None
            and not self.training
            and self._packed.serves(self.weight, input, offset, self.bias, mask)
        ):
            return self._packed.convolve(*given, self.boundary)
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

    def _check(self, input: Tensor) -> None:
        # Checked here: the branch would accept an input without a batch, and blame its own weight for wrong channels.
        _check.layer("DeformConv2d", "input", input, "N C H W", self.in_channels)

    def _pad(self, input: Tensor) -> Tensor:
        return F.pad(input, (0, self.extra[1], 0, self.extra[0])) if any(self.extra) else input

    def _split(self, predicted: Tensor) -> tuple[Tensor, Tensor | None]:
        predicted = _check.wide(predicted)
        if self.version == 1:
            return predicted, None
        channels = self.offset_groups * self.kernel_size[0] * self.kernel_size[1]
        offset, mask = predicted.split((2 * channels, channels), 1)
        return offset, self.mask_scale * mask.sigmoid()

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += f", padding={self.padding}, dilation={self.dilation}, groups={self.groups}"
        text += f", bias={self.bias is not None}, version={self.version}, offset_groups={self.offset_groups}"
        return text + (f", mask_scale={self.mask_scale}" if self.version == 2 else "") + f", boundary={self.boundary!r}"

    # The protocol of deformable layers; pliant.nn.deformable documents its members.
    branches, axes, unit, offset_scale, transposed = ("conv_offset",), "yx", "pixels", 1.0, False

    @property
    def modulated(self) -> bool:
        """Return whether samples are multiplied by a mask."""
        return self.version == 2

    def offsets(self, predicted: Tensor) -> Tensor:
        """Return the offsets in what the branch or `predict` returned, (N, G, Kh, Kw, Ho, Wo, 2), y first."""
        G, (Kh, Kw) = self.offset_groups, self.kernel_size
        offsets: Tensor = predicted[:, : 2 * G * Kh * Kw].unflatten(1, (G, Kh, Kw, 2)).movedim(4, -1)
        return offsets

    def map_size(self, input: Tensor) -> tuple[int, int]:
        """Return height and width of the map that is sampled, from the padded map that the branch reads."""
        return input.shape[2] - self.extra[0], input.shape[3] - self.extra[1]

    def inside(self, moves: Tensor, size: Sequence[int]) -> Tensor:
        """Return which samples lie in a map of `size`, (N, G, Kh, Kw, Ho, Wo), for `moves` as returned by `offsets`."""
        (Kh, Kw), (Ho, Wo), (H, W) = self.kernel_size, moves.shape[-3:-1], size

        def line(count: int, distance: int, start: int = 0) -> Tensor:
            return torch.arange(count, device=moves.device, dtype=moves.dtype) * distance + start

        y, x = moves.unbind(-1)
        y = y + line(Kh, self.dilation[0]).view(Kh, 1, 1, 1) + line(Ho, self.stride[0], -self.padding[0])[:, None]
        x = x + line(Kw, self.dilation[1]).view(Kw, 1, 1) + line(Wo, self.stride[1], -self.padding[1])
        return (y < H) & (x < W) & ((y > -1) & (x > -1) if self.boundary == "zeros" else (y >= 0) & (x >= 0))


class SlicedConv2d(nn.Conv2d):
    """Convolve with a 1×1 kernel and a stride, as a slice of the input and a convolution of stride 1.

    The output is that of `nn.Conv2d`. It is for narrow layers that are trained on a CPU: with fewer than 16 input
    channels (8 with AVX2) and a channels_last input, oneDNN's weight gradient of a strided 1×1 convolution writes
    beyond its workspace, and the process dies. Every layer of this kind that pliant builds is this one.

    Args:
        args, options: those of `nn.Conv2d`.

    Source: oneDNN issue 6035.

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
