"""The deformable layers: convolutions that predict their own offsets, and in version 2 their masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant import _check, _native
from pliant._check import not_scripted
from pliant.ops.conv.deform_conv2d import deform_conv2d
from pliant.ops.conv.packed import PackedWeight

Numbers = int | Sequence[int]


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


class _DeformConv(nn.Module):
    """What the layers of every dimension share; the number of `axes` is the number of dimensions of a map."""

    axes = "yx"
    # The convolution that predicts, the shape of what it reads, and the words for one number per axis.
    plain: Callable[..., nn.Module] = SlicedConv2d.if_needed
    letters, several = "N C H W", "a pair"
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
        stride: Numbers,
        padding: Numbers | str,
        dilation: Numbers,
        groups: int,
        bias: bool,
        version: int,
        offset_groups: int,
        mask_scale: float,
        boundary: str,
        guide_channels: int | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
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


class DeformConv2d(_DeformConv):
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
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, version, offset_groups,
            mask_scale, boundary, guide_channels, device, dtype,
        )  # fmt: skip

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
