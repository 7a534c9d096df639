"""The deformable RoI layers: DeformRoIPool predicts offsets from every pooled RoI, DeformPSRoIPool from a map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import has_torch_function_variadic

from pliant import _check
from pliant._check import not_scripted
from pliant.ops import _declare
from pliant.ops.roi.deform_psroi_pool import deform_psroi_pool
from pliant.ops.roi.deform_roi_pool import deform_roi_pool

_NAME = "DeformRoIPool"
_PS_NAME = "DeformPSRoIPool"


class DeformRoIPool(nn.Module):
    """Pool RoIs into bins that move: offsets (and a mask) are predicted from each RoI pooled without them.

    ``p = offset_fc(flatten(deform_roi_pool(x, rois, None)))``; version 1 takes p as offset, version 2 its first two
    thirds, and ``mask = mask_scale·sigmoid(last third)``; ``y = deform_roi_pool(x, rois, offset, mask=mask)``. The last
    layer of the branch starts at zero, so that version 1 starts as RoIAlign and version 2 as `mask_scale`/2 times that.

    At the edges the layer follows :func:`pliant.ops.deform_roi_pool`; an empty set of RoIs is allowed.

    Args:
        output_size: Ph, Pw, bins.
        channels: C.
        spatial_scale: pixels of the map per pixel of the image.
        sampling_ratio: samples per bin in each direction; 0 or less: as many as the bin has pixels, rounded up.
        gamma: factor of the offsets, in extents of the RoI.
        version: 1 (offsets) or 2 (offsets and mask).
        hidden: widths of the fully connected layers before the last one, each followed by a ReLU; None: none for
            version 1 (the paper), (1024, 1024) for version 2.
        mask_scale: factor of the sigmoid: 1.0 in the paper, the authors' code and mmcv.
        separate_mask_trunk: predict the mask with its own trunk of one hidden layer, as mmcv's pack does.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W), RoIs (R, 5) → (R, C, Ph, Pw). With K = Ph·Pw, `offset_fc` has 2·K outputs, all x, then all y, or
        3·K with the masks last. State: ``offset_fc.{0, 2, 4, …}.weight`` and ``.bias``; with `separate_mask_trunk`
        also ``mask_fc.{0, 2}``, mmcv's names.

    Attributes:
        offset_lr_mult: learning rate of `offset_fc` and `mask_fc` relative to the rest, used by
            :func:`pliant.nn.parameter_groups`: 0.01 for version 1, 1.0 for version 2, as in the papers.

    Raises:
        ValueError: a size below 1, an unknown version, `mask_scale` not positive, `separate_mask_trunk` with version 1.

    Source: Dai et al., ICCV 2017, section 2.2; Zhu et al., CVPR 2019, section 3.2, whose hidden layers start at
    N(0, 0.01²); the second trunk is that of mmcv.ops.ModulatedDeformRoIPoolPack.

    >>> layer = DeformRoIPool(7, 16, spatial_scale=1 / 8, sampling_ratio=2)
    >>> layer(torch.randn(1, 16, 20, 20), torch.tensor([[0.0, 8.0, 8.0, 120.0, 96.0]])).shape
    torch.Size([1, 16, 7, 7])
    """

    def __init__(
        self,
        output_size: int | Sequence[int],
        channels: int,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
        *,
        version: int = 1,
        hidden: Sequence[int] | None = None,
        mask_scale: float = 1.0,
        separate_mask_trunk: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if version not in (1, 2):
            raise ValueError(f"{_NAME}: version must be 1 (offsets) or 2 (offsets and mask), got {version!r}")
        if separate_mask_trunk and version == 1:
            raise ValueError(f"{_NAME}: separate_mask_trunk needs version 2, version 1 has no mask")
        if not 0 < mask_scale < math.inf:
            raise ValueError(f"{_NAME}: mask_scale must be positive and finite, got {mask_scale}")
        if hidden is None:
            hidden = () if version == 1 else (1024, 1024)
        if channels < 1 or any(width < 1 for width in hidden):
            raise ValueError(f"{_NAME}: channels and hidden must be at least 1, got {channels} and {tuple(hidden)}")
        self.output_size = _check.pair(_NAME, "output_size", output_size, 1)
        self.channels, self.spatial_scale, self.sampling_ratio = channels, spatial_scale, sampling_ratio
        self.gamma, self.version, self.hidden, self.mask_scale = gamma, version, tuple(hidden), mask_scale
        self.offset_lr_mult = 0.01 if version == 1 else 1.0

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        K = self.output_size[0] * self.output_size[1]
        outputs = 3 * K if version == 2 and not separate_mask_trunk else 2 * K
        self.offset_fc = _trunk([channels * K, *self.hidden, outputs], factory)
        self.mask_fc = _trunk([channels * K, *self.hidden[:1], K], factory) if separate_mask_trunk else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the hidden layers to N(0, 0.01²), their biases and the last layers to zero."""
        for trunk in (self.offset_fc, self.mask_fc):
            layers = [] if trunk is None else [layer for layer in trunk if isinstance(layer, nn.Linear)]
            for layer in layers:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
            if layers:
                nn.init.zeros_(layers[-1].weight)

    def predict(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return what the branch predicts: offset (R, 2, Ph, Pw), x first, and mask (R, 1, Ph, Pw) or None.

        Under autocast the branch runs in the low precision; its prediction is converted to float32.
        """
        self._check(input)
        pooled = deform_roi_pool(input, rois, None, self.output_size, self.spatial_scale, self.sampling_ratio)
        flat = pooled.flatten(1)
        predicted = _check.wide(self.offset_fc(flat))
        Ph, Pw = self.output_size
        offset = predicted[:, : 2 * Ph * Pw].unflatten(1, (2, Ph, Pw))
        if self.version == 1:
            return offset, None
        mask = predicted[:, 2 * Ph * Pw :] if self.mask_fc is None else _check.wide(self.mask_fc(flat))
        return offset, self.mask_scale * mask.sigmoid().unflatten(1, (1, Ph, Pw))

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        offset, mask = self.predict(input, rois)
        return deform_roi_pool(
            input, rois, offset, self.output_size, self.spatial_scale, self.sampling_ratio, self.gamma, mask=mask
        )

    def _check(self, input: Tensor) -> None:
        # Checked here: the fully connected layer would blame its own weight for wrong channels.
        _check.layer(_NAME, "input", input, "N C H W", self.channels, self.offset_fc[0])

    __prepare_scriptable__ = not_scripted

    def extra_repr(self) -> str:
        text = f"output_size={self.output_size}, channels={self.channels}, spatial_scale={self.spatial_scale}"
        text += f", sampling_ratio={self.sampling_ratio}, gamma={self.gamma}, version={self.version}"
        text += f", hidden={self.hidden}"
        return text + (f", mask_scale={self.mask_scale}" if self.version == 2 else "")

    # The protocol of deformable layers; pliant.nn.deformable documents its members.
    branches, axes, unit, classes = ("offset_fc", "mask_fc"), "xy", "extents", None

    @property
    def offset_scale(self) -> float:
        """Return the factor that turns offsets into extents of the RoI."""
        return self.gamma

    @property
    def modulated(self) -> bool:
        """Return whether bins are multiplied by a mask."""
        return self.version == 2

    @property
    def bins(self) -> tuple[int, int]:
        """Return how many rows and columns of bins an RoI has."""
        return self.output_size

    @property
    def pooled_to_predict(self) -> int:
        """Return how many values per RoI are pooled before its offsets are known."""
        return self.channels * self.output_size[0] * self.output_size[1]

    def offsets(self, predicted: Tensor) -> Tensor:
        """Return the offsets in what `offset_fc` or `predict` returned, (R, 1, Ph, Pw, 1, 2), x first."""
        Ph, Pw = self.output_size
        offsets: Tensor = predicted.flatten(1)[:, : 2 * Ph * Pw].unflatten(1, (1, 2, Ph, Pw, 1)).movedim(2, -1)
        return offsets

    def map_size(self, input: Tensor) -> tuple[int, ...]:
        """Return (): the branch reads an RoI, not a map."""
        return ()

    def inside(self, moves: Tensor, size: Sequence[int]) -> Tensor:
        """Return which bins keep their centres in the RoI, for moves in its extents shaped as by `offsets`."""
        return _in_roi(moves)

    def boxes(self, rois: Tensor) -> Tensor:
        """Return the boxes (R, 4) that are pooled for `rois` (R, 4): the same."""
        return rois


class DeformPSRoIPool(nn.Module):
    """Pool score maps into bins that move, each in its own channels: a convolution predicts maps of offsets.

    ``offset = deform_psroi_pool(conv_offset(features), rois, None)``, position-sensitive too, then
    ``y = deform_psroi_pool(x, rois, offset)``. `conv_offset` is 1×1 and starts at zero, so that the layer starts as
    position-sensitive pooling without offsets. It reads the features that the score maps are made of.

    At the edges the layer follows :func:`pliant.ops.deform_psroi_pool`; an empty set of RoIs is allowed.

    Args:
        output_size: P, bins in each direction.
        channels: channels of the features.
        classes: n, runs of output channels with their own offsets (R-FCN: C + 1); 1: all channels share them.
        spatial_scale: pixels of the map per pixel of the image.
        group_size: groups of channels in each direction, over which the bins are divided; None: P.
        part_size: offsets per class in each direction; None: P.
        sample_per_part: samples per bin in each direction.
        trans_std: factor of the offsets, in extents of the RoI.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        score maps (N, O·group_size², H, W), features (N, channels, H, W), RoIs (R, 5) → (R, O, P, P). `conv_offset`
        has 2·n·part_size² channels, ``((2·class + {0: x, 1: y})·part_size + row)·part_size + column``. State:
        ``conv_offset.weight`` and ``.bias``.

    Attributes:
        offset_lr_mult: learning rate of `conv_offset` relative to the rest, used by
            :func:`pliant.nn.parameter_groups`: 1.0, as in the paper.

    Raises:
        ValueError: a size below 1.

    Source: Dai et al., "Deformable Convolutional Networks", ICCV 2017, section 2.2, and its R-FCN.

    >>> layer = DeformPSRoIPool(3, channels=16, classes=2, spatial_scale=1 / 8)
    >>> features, scores = torch.randn(1, 16, 20, 20), torch.randn(1, 2 * 9, 20, 20)
    >>> layer(scores, features, torch.tensor([[0.0, 8.0, 8.0, 120.0, 96.0]])).shape
    torch.Size([1, 2, 3, 3])
    """

    def __init__(
        self,
        output_size: int,
        channels: int,
        classes: int = 1,
        spatial_scale: float = 1.0,
        *,
        group_size: int | None = None,
        part_size: int | None = None,
        sample_per_part: int = 4,
        trans_std: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        group_size = output_size if group_size is None else group_size
        part_size = output_size if part_size is None else part_size
        for name, value in (
            ("output_size", output_size),
            ("channels", channels),
            ("classes", classes),
            ("group_size", group_size),
            ("part_size", part_size),
            ("sample_per_part", sample_per_part),
        ):
            if value < 1:
                raise ValueError(f"{_PS_NAME}: {name} must be at least 1, got {value}")
        self.output_size, self.channels, self.classes, self.spatial_scale = (
            output_size,
            channels,
            classes,
            spatial_scale,
        )
        self.group_size, self.part_size = group_size, part_size
        self.sample_per_part, self.trans_std = sample_per_part, trans_std
        self.offset_lr_mult = 1.0
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv_offset = nn.Conv2d(channels, 2 * classes * part_size**2, 1, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the offset branch to zero."""
        for parameter in self.conv_offset.parameters():
            nn.init.zeros_(parameter)

    def predict(self, features: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        """Return what the branch predicts: offset (R, 2·classes, part_size, part_size), x before y per class.

        Under autocast the convolution runs in the low precision, the offsets are pooled in float32.
        """
        _check.layer(_PS_NAME, "features", features, "N channels H W", self.channels, self.conv_offset)
        part = self.part_size
        return _pool_offsets(self.conv_offset(features), rois, part, self.spatial_scale, self.sample_per_part)

    def forward(self, input: Tensor, features: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return deform_psroi_pool(
            input,
            rois,
            self.predict(features, rois),
            self.output_size,
            self.spatial_scale,
            group_size=self.group_size,
            part_size=self.part_size,
            sample_per_part=self.sample_per_part,
            trans_std=self.trans_std,
        )

    __prepare_scriptable__ = not_scripted

    def extra_repr(self) -> str:
        text = f"output_size={self.output_size}, channels={self.channels}, classes={self.classes}"
        text += f", spatial_scale={self.spatial_scale}, group_size={self.group_size}, part_size={self.part_size}"
        return text + f", sample_per_part={self.sample_per_part}, trans_std={self.trans_std}"

    # The protocol of deformable layers; pliant.nn.deformable documents its members.
    branches, axes, unit, modulated = ("conv_offset",), "xy", "extents", False

    @property
    def offset_scale(self) -> float:
        """Return the factor that turns offsets into extents of the RoI."""
        return self.trans_std

    @property
    def bins(self) -> tuple[int, int]:
        """Return how many rows and columns of bins an RoI has."""
        return self.output_size, self.output_size

    @property
    def sampling_ratio(self) -> int:
        """Return how many samples a bin has in each direction."""
        return self.sample_per_part

    @property
    def pooled_to_predict(self) -> int:
        """Return how many values per RoI are pooled before its offsets are known."""
        return 2 * self.classes * self.part_size**2

    def offsets(self, predicted: Tensor) -> Tensor:
        """Return the offsets in what `conv_offset` or `predict` returned, (…, classes, parts, parts, positions, 2).

        x comes first. `conv_offset` returns maps of offsets, of H·W positions for N images; `predict` one per RoI.
        """
        n, parts = self.classes, self.part_size
        positions = predicted.shape[1:].numel() // (2 * n * parts**2)
        return predicted.reshape(len(predicted), n, 2, parts, parts, positions).movedim(2, -1)

    def map_size(self, input: Tensor) -> tuple[int, ...]:
        """Return (): offsets are in extents of the RoI, whatever the map."""
        return ()

    def inside(self, moves: Tensor, size: Sequence[int]) -> Tensor:
        """Return which bins keep their centres in the RoI, for moves in its extents shaped as by `offsets`."""
        return _in_roi(moves)

    def boxes(self, rois: Tensor) -> Tensor:
        """Return the boxes (R, 4) that are pooled for `rois` (R, 4): rounded, the last pixel included."""
        # C's round: halves away from zero.
        corner, end = (rois.sign() * (rois.abs() + 0.5).floor()).split(2, 1)
        return torch.cat((corner, torch.maximum(end + 1, corner + 0.1 / self.spatial_scale)), 1)


def _trunk(widths: list[int], factory: dict[str, Any]) -> nn.Sequential:
    """Return fully connected layers with ReLUs between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, **factory), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _in_roi(moves: Tensor) -> Tensor:
    """Return which bins keep their centres in the RoI, for moves (…, Ph, Pw, positions, 2) in its extents, x first."""
    Ph, Pw = moves.shape[-4:-2]
    # Where the centre of a bin is, from 0 at one side of the RoI to 1 at the other.
    x, y = ((torch.arange(n, device=moves.device, dtype=moves.dtype) + 0.5) / n for n in (Pw, Ph))
    x, y = moves[..., 0] + x.view(Pw, 1), moves[..., 1] + y.view(Ph, 1, 1)
    return (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)


def _pool_offsets(maps: Tensor, rois: Tensor | Sequence[Tensor], part: int, scale: float, samples: int) -> Tensor:
    """Pool maps of offsets, in float32 under autocast too."""
    if has_torch_function_variadic(maps, rois):
        return _declare.handed_over(_pool_offsets, locals())
    kind = maps.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return deform_psroi_pool(maps, rois, None, part, scale, group_size=part, sample_per_part=samples)
    with torch.autocast(kind, enabled=False):
        maps = maps.float() if maps.dtype in _check.LOW else maps
        return deform_psroi_pool(maps, rois, None, part, scale, group_size=part, sample_per_part=samples)
