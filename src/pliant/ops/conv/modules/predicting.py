"""What the deformable layers of every dimension share: the branch that predicts, and the questions that it answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant import _check
from pliant._check import not_scripted
from pliant.ops.conv.modules.sliced import SlicedConv2d

Numbers = int | Sequence[int]


class Predicting(nn.Module):
    """What the layers of every dimension share; the number of `axes` is the number of dimensions of a map."""

    axes = "yx"
    # The convolution that predicts, the shape of what it reads, and the words for one number per axis.
    plain: Any = SlicedConv2d.if_needed
    letters, several = "N C H W", "a pair"
    conv_offset: nn.Conv1d | nn.Conv2d | nn.Conv3d
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    # The protocol of deformable layers; pliant.nn.deformable documents its members.
    branches, unit, offset_scale, transposed = ("conv_offset",), "pixels", 1.0, False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Numbers,
        stride: Numbers = 1,
        padding: Numbers | str = 0,
        dilation: Numbers = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        version: int = 2,
        offset_groups: int = 1,
        mask_scale: float = 2.0,
        boundary: str = "zeros",
        guide_channels: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for least, what in ((in_channels, "in_channels"), (out_channels, "out_channels"), (groups, "groups")):
            if least < 1:
                raise ValueError(f"{name}: {what} must be at least 1, got {least}")
        if guide_channels is not None and guide_channels < 1:
            raise ValueError(f"{name}: guide_channels must be at least 1 or None, got {guide_channels}")
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{name}: groups={groups} must divide {in_channels} input and {out_channels} output channels"
            )
        moved, side = (out_channels, "output") if self.transposed else (in_channels, "input")
        if offset_groups < 1 or moved % offset_groups:
            raise ValueError(f"{name}: offset_groups={offset_groups} must divide {moved} {side} channels")
        if version not in (1, 2):
            raise ValueError(f"{name}: version must be 1 (offsets) or 2 (offsets and mask), got {version!r}")
        if not 0 < mask_scale < math.inf:
            raise ValueError(f"{name}: mask_scale must be positive and finite, got {mask_scale}")
        if boundary not in ("zeros", "clamp"):
            raise ValueError(f"{name}: boundary must be 'zeros' or 'clamp', got {boundary!r}")
        D = len(self.axes)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = _check.numbers(name, "kernel_size", kernel_size, 1, D)
        self.stride = _check.numbers(name, "stride", stride, 1, D)
        self.dilation = _check.numbers(name, "dilation", dilation, 1, D)
        self.version, self.offset_groups = version, offset_groups
        self.mask_scale, self.boundary = mask_scale, boundary
        self.guide_channels = guide_channels
        self.offset_lr_mult = 1.0 if version == 1 else 0.1
        # "same" with an even kernel needs one more row or column at the end, which is padded before the operator runs.
        self.extra = (0,) * D
        if isinstance(padding, str):
            self._pad_to_same(padding)
        else:
            self.padding = _check.numbers(name, "padding", padding, 0, D)

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        first, second = (in_channels, out_channels) if self.transposed else (out_channels, in_channels)
        self.weight = nn.Parameter(torch.empty(first, second // groups, *self.kernel_size, **factory))
        self.bias = nn.Parameter(torch.empty(out_channels, **factory)) if bias else None
        # Offsets lie on the output's grid. A guide has that grid already, and so has the input of a transposed layer:
        # there the branch keeps the size of what it reads, padded by one more at the end where its kernel is even.
        self.branch_extra = (0,) * D
        step, around = self.stride, self.padding
        if self.transposed or guide_channels is not None:
            step = (1,) * D
            around, self.branch_extra = self._same()
        self.conv_offset = self.plain(
            guide_channels or in_channels,
            (D + version - 1) * offset_groups * math.prod(self.kernel_size),
            self.kernel_size,
            step,
            around,
            self.dilation,
            **factory,
        )
        self.reset_parameters()

    def _same(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the padding on both sides that keeps a map's size at stride 1, and what is missing at the end."""
        spans = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        return tuple(span // 2 for span in spans), tuple(span % 2 for span in spans)

    def _pad_to_same(self, padding: str) -> None:
        name, D = type(self).__name__, len(self.axes)
        if padding != "same":
            raise ValueError(f"{name}: padding must be a number, {self.several} or 'same', got {padding!r}")
        if self.stride != (1,) * D:
            raise ValueError(f"{name}: padding='same' needs stride 1, got {self.stride}")
        self.padding, self.extra = self._same()
        if self.boundary == "clamp" and any(self.extra):
            raise ValueError(f"{name}: padding='same' pads unevenly here, which boundary='clamp' cannot follow")

    def reset_parameters(self) -> None:
        """Initialise weight and bias as the plain convolution does, the offset branch to zero."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)
        for parameter in self.conv_offset.parameters():
            nn.init.zeros_(parameter)

    def predict(self, input: Tensor, guide: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return what the branch predicts: offset (N, D·G·K, *output) and mask (N, G·K, *output) or None.

        It reads `input`, or `guide` in a layer with `guide_channels`. Under autocast the branch runs in the low
        precision; its prediction is converted to float32.
        """
        self._check(input, guide)
        return self._predict(self._pad(input), guide)

    def forward(self, input: Tensor, guide: Tensor | None = None) -> Tensor:
        self._check(input, guide)
        input = self._pad(input)
        return self._convolve(input, *self._predict(input, guide))

    def _convolve(self, input: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _check(self, input: Tensor, guide: Tensor | None) -> None:
        # Checked here: the branch would accept an input without a batch, and blame its own weight for wrong channels.
        name = type(self).__name__
        _check.layer(name, "input", input, self.letters, self.in_channels, self)
        if self.guide_channels is not None:
            if guide is None:
                raise TypeError(f"{name}: guide must be a tensor, this layer predicts its offsets from one")
            _check.layer(name, "guide", guide, self.letters, self.guide_channels, self)
        elif isinstance(guide, Tensor):
            raise TypeError(f"{name}: guide must be None, this layer was made without guide_channels")

    __prepare_scriptable__ = not_scripted

    def _pad(self, input: Tensor) -> Tensor:
        return _pad_end(input, self.extra)

    def _predict(self, input: Tensor, guide: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Split the branch's prediction into offsets and masks."""
        source = input if self.guide_channels is None or guide is None else guide
        predicted = _check.wide(self.conv_offset(_pad_end(source, self.branch_extra)))
        if self.version == 1:
            return predicted, None
        channels = self.offset_groups * math.prod(self.kernel_size)
        offset, mask = predicted.split((len(self.axes) * channels, channels), 1)
        return offset, self.mask_scale * mask.sigmoid()

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += f", padding={self.padding}, dilation={self.dilation}, groups={self.groups}"
        text += f", bias={self.bias is not None}, version={self.version}, offset_groups={self.offset_groups}"
        text += f", mask_scale={self.mask_scale}" if self.version == 2 else ""
        text += "" if self.guide_channels is None else f", guide_channels={self.guide_channels}"
        return text + f", boundary={self.boundary!r}"

    @property
    def modulated(self) -> bool:
        """Return whether samples are multiplied by a mask."""
        return self.version == 2

    def offsets(self, predicted: Tensor) -> Tensor:
        """Return the offsets in what the branch or `predict` returned, (N, G, *kernel, *output, D), in `axes` order."""
        D = len(self.axes)
        own = predicted[:, : D * self.offset_groups * math.prod(self.kernel_size)]
        moves: Tensor = own.unflatten(1, (self.offset_groups, *self.kernel_size, D)).movedim(2 + D, -1)
        return moves

    def map_size(self, input: Tensor) -> tuple[int, ...]:
        """Return the size of the map that is sampled, from the padded map that the branch reads.

        A guide has the size of the output; it tells that of the map where the layer keeps sizes, else this is ().
        """
        size = tuple(n - e for n, e in zip(input.shape[2:], self.branch_extra, strict=True))
        if self.guide_channels is None:
            return tuple(n - e for n, e in zip(size, self.extra, strict=True))
        kept = all(s == 1 for s in self.stride) and self.padding == self._same()[0] and self.extra == self.branch_extra
        return size if kept else ()

    def inside(self, moves: Tensor, size: Sequence[int]) -> Tensor | None:
        """Return which samples lie in a map of `size`, (N, G, *kernel, *output), for `moves` as returned by `offsets`.

        None where the size is not known.
        """
        D = len(self.axes)
        if len(size) != D:
            return None
        found = None
        for d in range(D):
            grid = [1] * (2 * D)
            grid[d] = self.kernel_size[d]
            taps = torch.arange(self.kernel_size[d], device=moves.device, dtype=moves.dtype) * self.dilation[d]
            at = moves[..., d] + taps.view(grid)
            grid[d], grid[D + d] = 1, moves.shape[2 + D + d]
            steps = torch.arange(grid[D + d], device=moves.device, dtype=moves.dtype) * self.stride[d]
            at = at + (steps - self.padding[d]).view(grid)
            own = (at < size[d]) & (at > -1 if self.boundary == "zeros" else at >= 0)
            found = own if found is None else found & own
        return found


def _pad_end(map: Tensor, extra: Sequence[int]) -> Tensor:
    """Return a map with `extra` zeros at the end of every axis."""
    return F.pad(map, [n for e in reversed(extra) for n in (0, e)]) if any(extra) else map
