"""The deformable position-sensitive RoI layer: a convolution says, for every class and part, where bins should look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pliant import _check
from pliant.ops.deform_psroi_pool.op import deform_psroi_pool

_NAME = "DeformPSRoIPool"


class DeformPSRoIPool(nn.Module):
    """Pool score maps into bins of channels of their own that move: a convolution predicts maps of offsets.

    ``offset = deform_psroi_pool(conv_offset(features), rois, None)``, position-sensitive too, then
    ``y = deform_psroi_pool(x, rois, offset)``. `conv_offset` is 1×1 and starts at zero, so that the layer starts as
    position-sensitive pooling without offsets. It reads the features that the score maps are made of.

    At the edges the layer follows :func:`pliant.ops.deform_psroi_pool`; no RoIs are fine.

    Args:
        output_size: P, bins in each direction.
        channels: of the features.
        classes: n, runs of output channels with offsets of their own (R-FCN: C + 1); 1: all move alike.
        spatial_scale: pixels of the map for one pixel of the image.
        group_size: in how many groups of channels of the score maps a row or column of bins takes turns; None: P.
        part_size: offsets in each direction; None: P.
        sample_per_part: samples of a bin in each direction.
        trans_std: factor of the offsets, in extents of the RoI.
        device: of the parameters.
        dtype: of the parameters.

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
                raise ValueError(f"{_NAME}: {name} must be at least 1, got {value}")
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
        """Return what the branch predicts: offset (R, 2·classes, part_size, part_size), of every class x first.

        Under autocast the convolution runs in the low precision, the offsets are pooled in float32.
        """
        _check.tensors(_NAME, features=features)
        _check.rank(_NAME, "features", features, "N channels H W")
        if features.shape[1] != self.channels:
            got = tuple(int(n) for n in features.shape)
            raise ValueError(f"{_NAME}: features must have {self.channels} channels, got shape {got}")
        maps, kind = self.conv_offset(features), features.device.type
        part, scale, samples = self.part_size, self.spatial_scale, self.sample_per_part
        if kind == "meta" or not torch.is_autocast_enabled(kind):
            return deform_psroi_pool(maps, rois, None, part, scale, group_size=part, sample_per_part=samples)
        with torch.autocast(kind, enabled=False):
            maps = maps.float() if maps.dtype in _check.LOW else maps
            return deform_psroi_pool(maps, rois, None, part, scale, group_size=part, sample_per_part=samples)

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

    def extra_repr(self) -> str:
        text = f"output_size={self.output_size}, channels={self.channels}, classes={self.classes}"
        text += f", spatial_scale={self.spatial_scale}, group_size={self.group_size}, part_size={self.part_size}"
        return text + f", sample_per_part={self.sample_per_part}, trans_std={self.trans_std}"

    # What any deformable layer answers: pliant.nn.deformable says what each member means.
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
        """Return how many values of an RoI are pooled before its offsets are known."""
        return 2 * self.classes * self.part_size**2

    def offsets(self, predicted: Tensor) -> Tensor:
        """Return the offsets in what `conv_offset` or `predict` returned, (…, classes, parts, parts, positions, 2).

        x comes first. `conv_offset` returns maps of offsets, of H·W positions for N images; `predict` one for each RoI.
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


def _in_roi(moves: Tensor) -> Tensor:
    """Return which bins keep their centres in the RoI, for moves (…, Ph, Pw, positions, 2) in its extents, x first."""
    Ph, Pw = moves.shape[-4:-2]
    # Where the centre of a bin is, from 0 at one side of the RoI to 1 at the other.
    x, y = ((torch.arange(n, device=moves.device, dtype=moves.dtype) + 0.5) / n for n in (Pw, Ph))
    x, y = moves[..., 0] + x.view(Pw, 1), moves[..., 1] + y.view(Ph, 1, 1)
    return (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)
