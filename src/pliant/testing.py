"""The cases every operator is tested, benchmarked and documented on, and one table of tolerances."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

# Largest max|actual − expected|/max|expected| against the float64 reference of the same (rounded) inputs.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def error(actual: Tensor, expected: Tensor) -> float:
    """Return max|actual − expected|/max|expected|, in float64; NaN in the same places counts as equal."""
    actual, expected = actual.detach().double(), expected.detach().double()
    if actual.shape != expected.shape:
        raise AssertionError(f"shapes differ: {tuple(actual.shape)} and {tuple(expected.shape)}")
    if actual.numel() == 0:
        return 0.0
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    difference = torch.where(same, 0, (actual - expected).abs()).max()
    scale = expected.nan_to_num(0, 0, 0).abs().max()
    return float(difference / scale) if scale > 0 else float(difference)


@dataclass(frozen=True)
class DeformConvCase:
    """One shape of deformable convolution; `tensors` draws its inputs: N(0, 1), offsets 2·N(0, 1), masks U(0, 1).

    It has as many axes as `kernel` has numbers. A transposed one has a weight (C, O/groups, …), its offsets lie on the
    grid of the input, and `output_padding` is added to its output.
    """

    name: str
    input: tuple[int, ...]
    out_channels: int
    kernel: tuple[int, ...] = (3, 3)
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (1, 1)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    offset_groups: int = 1
    output_padding: tuple[int, ...] | None = None

    @property
    def output(self) -> tuple[int, ...]:
        """Return the size of the output map, such as (Ho, Wo)."""
        sizes = zip(self.input[2:], self.padding, self.dilation, self.kernel, self.stride, strict=True)
        if self.output_padding is None:
            return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in sizes)
        ends = [(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, p, d, k, s in sizes]
        return tuple(end + more for end, more in zip(ends, self.output_padding, strict=True))

    def tensors(
        self, dtype: torch.dtype = torch.float32, *, seed: int = 0, channels_last: bool = False
    ) -> dict[str, Tensor]:
        """Return input, offset, weight, bias and mask, drawn in float64 and rounded to `dtype`."""
        random = torch.Generator().manual_seed(seed)
        N, C, *size = self.input
        grid = self.output if self.output_padding is None else size
        taps = self.offset_groups * math.prod(self.kernel)
        first, second = self.out_channels, C
        if self.output_padding is not None:
            first, second = second, first

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, dtype=torch.float64)

        tensors = {
            "input": draw(*self.input),
            "offset": 2 * draw(N, len(size) * taps, *grid),
            "weight": draw(first, second // self.groups, *self.kernel),
            "bias": draw(self.out_channels),
            "mask": torch.rand(N, taps, *grid, generator=random, dtype=torch.float64),
        }
        tensors = {name: t.to(dtype) for name, t in tensors.items()}
        formats = {2: torch.channels_last, 3: torch.channels_last_3d}
        if channels_last and len(size) in formats:
            tensors["input"] = tensors["input"].contiguous(memory_format=formats[len(size)])
        return tensors

    @property
    def geometry(self) -> dict[str, Any]:
        """Return stride, padding and dilation as keyword arguments; of a transposed one its own, too."""
        found: dict[str, Any] = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        if self.output_padding is not None:
            found |= {"output_padding": self.output_padding, "groups": self.groups}
        return found

    def grown(self, step: int) -> DeformConvCase:
        """Return the case with more images on larger maps."""
        N, C, *size = self.input
        return replace(self, input=(N + step, C, *(n + (2 + d) * step for d, n in enumerate(size))))

    def empty(self) -> DeformConvCase:
        """Return the case without an image."""
        return replace(self, input=(0, *self.input[1:]))


# Small and irregular on purpose: nothing square, nothing symmetric, sizes that no tile or vector divides.
DEFORM_CONV_CASES = (
    DeformConvCase("plain", (2, 5, 7, 6), 4),
    DeformConvCase("crooked", (2, 6, 11, 9), 4, (3, 2), (2, 1), (1, 0), (2, 1), groups=2, offset_groups=3),
    DeformConvCase("pointwise", (1, 3, 4, 5), 7, (1, 1), padding=(0, 0)),
    DeformConvCase("one_pixel", (3, 4, 1, 1), 4, offset_groups=2),
    DeformConvCase("one_channel", (2, 1, 4, 5), 2),
    DeformConvCase("depthwise", (2, 8, 9, 7), 8, groups=8),
    DeformConvCase("multiplier", (1, 4, 6, 7), 12, groups=4, offset_groups=2),
    DeformConvCase("wide", (1, 48, 13, 17), 33),
    DeformConvCase("tiles", (1, 19, 20, 23), 17, (3, 3), offset_groups=19),
    DeformConvCase("stem", (1, 3, 20, 22), 9, (7, 7), (2, 2), (3, 3)),
)

# So small that finite differences take every entry.
DEFORM_CONV_SMALL = (
    DeformConvCase("tiny", (1, 2, 2, 2), 1, (2, 1), padding=(1, 0)),
    DeformConvCase("plain", (1, 2, 3, 4), 2),
    DeformConvCase("crooked", (2, 4, 4, 3), 4, (2, 1), (2, 1), (1, 0), (1, 2), groups=2, offset_groups=2),
)

# Input and offset have more than 2³¹ elements.
DEFORM_CONV_HUGE = DeformConvCase("huge", (2, 32768, 256, 256), 8, offset_groups=4096)

# The shapes on which speed is promised: ResNet stages of a detector, small maps, grouped, depthwise, a stem.
DEFORM_CONV_SPEED = (
    DeformConvCase("S1", (1, 256, 50, 84), 256),
    DeformConvCase("S2", (1, 512, 25, 42), 512),
    DeformConvCase("S3", (2, 128, 100, 168), 128),
    DeformConvCase("S4", (1, 64, 64, 64), 64),
    DeformConvCase("S5", (8, 64, 28, 28), 64),
    DeformConvCase("S6", (1, 256, 50, 84), 256, offset_groups=4),
    DeformConvCase("S7", (1, 128, 56, 56), 128, groups=128),
    DeformConvCase("S8", (1, 3, 224, 224), 64, (7, 7), (2, 2), (3, 3)),
)
# Other kernels: 1×1 and 7×7 (D-ASPP), depthwise 7×7 with dilation 3 (D-LKA).
DEFORM_CONV_KERNELS = (
    DeformConvCase("D1", (1, 256, 32, 32), 256, (1, 1), padding=(0, 0)),
    DeformConvCase("D2", (1, 256, 32, 32), 256, (7, 7), padding=(3, 3)),
    DeformConvCase("D3", (1, 96, 56, 56), 96, (7, 7), padding=(9, 9), dilation=(3, 3), groups=96),
)
# So small that its time is the overhead of a call.
DEFORM_CONV_CALL = DeformConvCase("T1", (1, 8, 8, 8), 8)


def _line(
    name: str,
    input: tuple[int, int, int],
    out_channels: int,
    kernel: int = 3,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    groups: int = 1,
    offset_groups: int = 1,
) -> DeformConvCase:
    """Return a case of one axis."""
    geometry = ((kernel,), (stride,), (padding,), (dilation,))
    return DeformConvCase(name, input, out_channels, *geometry, groups, offset_groups)


DEFORM_CONV1D_CASES = (
    _line("plain", (2, 5, 11), 4),
    _line("crooked", (2, 6, 23), 4, 4, 2, 3, 2, groups=2, offset_groups=3),
    _line("pointwise", (1, 3, 9), 7, 1, padding=0),
    _line("one_sample", (3, 4, 1), 4, offset_groups=2),
    _line("one_channel", (2, 1, 13), 2),
    _line("depthwise", (2, 8, 19), 8, groups=8),
    _line("wide", (1, 48, 221), 33, 7, padding=3),
)
DEFORM_CONV1D_SMALL = (
    _line("tiny", (1, 2, 3), 1, 2, padding=0),
    _line("crooked", (2, 4, 6), 4, 3, 2, 1, 2, groups=2, offset_groups=2),
)
DEFORM_CONV1D_HUGE = _line("huge", (2, 32768, 65536), 8, offset_groups=16384)

_CUBE = ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1))
_CROOKED = ((2, 3, 1), (1, 2, 1), (1, 0, 1), (2, 1, 1))
DEFORM_CONV3D_CASES = (
    DeformConvCase("plain", (2, 5, 4, 3, 5), 4, *_CUBE),
    DeformConvCase("crooked", (2, 6, 5, 7, 4), 4, *_CROOKED, groups=2, offset_groups=3),
    DeformConvCase("pointwise", (1, 3, 3, 4, 2), 7, (1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1)),
    DeformConvCase("one_voxel", (3, 4, 1, 1, 1), 4, *_CUBE, offset_groups=2),
    DeformConvCase("one_plane", (1, 3, 1, 6, 5), 4, *_CUBE),
    DeformConvCase("one_channel", (2, 1, 3, 4, 5), 2, *_CUBE),
    DeformConvCase("depthwise", (1, 8, 4, 5, 3), 8, *_CUBE, groups=8),
    DeformConvCase("multiplier", (1, 4, 3, 4, 5), 12, *_CUBE, groups=4, offset_groups=2),
    DeformConvCase("wide", (1, 35, 5, 6, 7), 18, *_CUBE),
)
DEFORM_CONV3D_SMALL = (
    DeformConvCase("tiny", (1, 2, 2, 2, 2), 1, (1, 2, 1), (1, 1, 1), (0, 1, 0), (1, 1, 1)),
    DeformConvCase("crooked", (1, 4, 3, 3, 2), 4, (2, 1, 2), (1, 2, 1), (1, 0, 0), (2, 1, 1), 2, 2),
)
DEFORM_CONV3D_HUGE = DeformConvCase("huge", (2, 32768, 16, 64, 64), 8, *_CUBE, offset_groups=1024)
# The shapes on which speed is promised: maps of video and medical networks.
DEFORM_CONV3D_SPEED = (
    DeformConvCase("V1", (1, 32, 16, 56, 56), 32, *_CUBE),
    DeformConvCase("V2", (1, 64, 8, 28, 28), 64, *_CUBE),
)


def _transposed(
    name: str,
    input: tuple[int, int, int, int],
    out_channels: int,
    kernel: tuple[int, int] = (4, 4),
    stride: tuple[int, int] = (2, 2),
    padding: tuple[int, int] = (1, 1),
    output_padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    offset_groups: int = 1,
) -> DeformConvCase:
    return DeformConvCase(
        name, input, out_channels, kernel, stride, padding, dilation, groups, offset_groups, output_padding
    )


DEFORM_CONV_TRANSPOSE2D_CASES = (
    _transposed("plain", (2, 5, 4, 3), 4),
    _transposed("crooked", (2, 6, 5, 4), 12, (3, 2), (2, 1), (1, 0), (1, 1), (1, 3), groups=2, offset_groups=3),
    _transposed("pointwise", (1, 3, 4, 5), 7, (1, 1), (1, 1), (0, 0)),
    _transposed("one_pixel", (3, 4, 1, 1), 4, offset_groups=2),
    _transposed("picture", (2, 9, 4, 5), 3),
    _transposed("one_channel", (1, 2, 4, 5), 1),
    _transposed("depthwise", (2, 8, 5, 3), 8, groups=8),
    _transposed("wide", (1, 33, 9, 11), 48, (3, 3), (1, 1)),
)
DEFORM_CONV_TRANSPOSE2D_SMALL = (
    _transposed("tiny", (1, 2, 2, 2), 1, (2, 1), (1, 1), (0, 0)),
    _transposed("crooked", (2, 4, 2, 2), 4, (2, 1), (2, 1), (1, 0), (1, 1), (1, 2), groups=2, offset_groups=2),
)
DEFORM_CONV_TRANSPOSE2D_HUGE = _transposed("huge", (2, 32768, 192, 192), 8192, offset_groups=2048)
# The shapes on which speed is promised: decoders.
DEFORM_CONV_TRANSPOSE2D_SPEED = (
    _transposed("U1", (1, 128, 28, 28), 64),
    _transposed("U2", (1, 64, 56, 56), 64, (3, 3), (2, 2), (1, 1), (1, 1)),
)


def _boxes(random: torch.Generator, count: int, images: int, height: float, width: float) -> Tensor:
    """Return (R, 5) RoIs at any place on images of one size, up to 80% as large, some beyond the edges."""
    first, extent = torch.rand(2, count, 2, generator=random, dtype=torch.float64)
    span = torch.tensor([width, height], dtype=torch.float64)
    start = (1.2 * first - 0.2) * span
    image = torch.randint(max(images, 1), (count, 1), generator=random).double()
    return torch.cat([image, start, start + (0.05 + 0.75 * extent) * span], 1)


@dataclass(frozen=True)
class RoICase:
    """One shape of RoI pooling; `tensors` draws its inputs: N(0, 1), boxes of any size, masks U(0, 1).

    `sampling_ratio` is an argument of all operators that sample but deformable PS-RoI pooling; `group_size`,
    `part_size`, `samples` and `classes` belong to that one, which has `output_size[0]` bins in both directions.
    """

    name: str
    input: tuple[int, int, int, int]
    rois: int
    output_size: tuple[int, int] = (3, 3)
    spatial_scale: float = 0.5
    sampling_ratio: int = 2
    group_size: int = 1
    part_size: int = 3
    samples: int = 4
    classes: int = 1

    def tensors(
        self, op: str, dtype: torch.dtype = torch.float32, *, seed: int = 0, channels_last: bool = False
    ) -> dict[str, Tensor]:
        """Return the tensors of one operator, drawn in float64 and rounded to `dtype`; boxes to float32 or float64."""
        random = torch.Generator().manual_seed(seed)
        N, _, H, W = self.input
        Ph, Pw = self.output_size
        input = torch.randn(self.input, generator=random, dtype=torch.float64).to(dtype)
        rois = _boxes(random, self.rois, N, H / self.spatial_scale, W / self.spatial_scale).float()
        rois = rois.double() if dtype == torch.float64 else rois
        if channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
        if not op.startswith("deform"):
            return {"input": input, "boxes": rois}
        parts = op == "deform_psroi_pool"
        offset = (2 * self.classes, self.part_size, self.part_size) if parts else (2, Ph, Pw)
        tensors = {
            "offset": torch.randn(self.rois, *offset, generator=random, dtype=torch.float64),
            "mask": torch.rand(self.rois, 1, Ph, Ph if parts else Pw, generator=random, dtype=torch.float64),
        }
        return {"input": input, "rois": rois, **{name: t.to(dtype) for name, t in tensors.items()}}

    def arguments(self, op: str) -> dict[str, Any]:
        """Return everything but the tensors as keyword arguments of one operator."""
        if op == "deform_psroi_pool":
            names = {name: getattr(self, name) for name in ("spatial_scale", "group_size", "part_size")}
            return {"output_size": self.output_size[0], "sample_per_part": self.samples, **names}
        found = {"output_size": self.output_size, "spatial_scale": self.spatial_scale}
        whole = op in ("roi_pool", "ps_roi_pool")
        return found if whole else {**found, "sampling_ratio": self.sampling_ratio}

    def grown(self, step: int) -> RoICase:
        """Return the case with more images, larger maps and more boxes."""
        N, C, H, W = self.input
        return replace(self, input=(N + step, C, H + 2 * step, W + 3 * step), rois=self.rois + 4 * step)

    def empty(self) -> RoICase:
        """Return the case without an image, and so without boxes."""
        return replace(self, input=(0, *self.input[1:]), rois=0)


# Bins of many shapes, map sizes that no vector divides, adaptive grids, RoIs larger and smaller than the map, no RoI,
# maps of one row, column and pixel.
ROI_CASES = (
    RoICase("plain", (2, 4, 9, 8), 5),
    RoICase("crooked", (3, 6, 7, 11), 7, (2, 3), 0.25, 3),
    RoICase("adaptive", (2, 5, 13, 10), 6, (3, 2), 0.5, 0),
    RoICase("adaptive_wide", (1, 3, 6, 40), 9, (1, 2), 1.0, -1),
    RoICase("row", (2, 4, 1, 9), 4, (2, 2), 0.5, 1),
    RoICase("column", (1, 4, 9, 1), 4, (2, 2), 0.5, 0),
    RoICase("pixel", (2, 4, 1, 1), 3, (2, 2), 0.5, 2),
    RoICase("many_bins", (1, 3, 10, 12), 3, (7, 5), 0.125, 2),
    RoICase("many_channels", (1, 37, 8, 9), 11, (2, 2), 0.5, 2),
    RoICase("one_bin", (2, 3, 8, 9), 4, (1, 1), 0.5, 0),
    RoICase("one_channel", (2, 1, 5, 4), 3, (2, 2)),
    RoICase("none", (2, 4, 5, 6), 0, (2, 2)),
)

# The same for the position-sensitive operators: groups and parts finer and coarser than bins, several classes.
PS_ROI_CASES = (
    RoICase("plain", (2, 18, 9, 8), 5, group_size=3),
    RoICase("no_groups", (2, 9, 7, 11), 6, part_size=2, samples=3),
    RoICase("coarse_groups", (2, 36, 8, 9), 4, group_size=2, part_size=1, samples=2, sampling_ratio=0),
    RoICase("classes", (2, 54, 8, 10), 5, group_size=3, classes=3, samples=3, sampling_ratio=1),
    RoICase("fine_groups", (1, 100, 9, 7), 4, (2, 2), group_size=5, part_size=3, classes=2),
    RoICase("crooked", (1, 30, 6, 12), 3, (3, 2), 0.25, 3, part_size=4, samples=1),
    RoICase("many_bins", (1, 98, 14, 11), 3, (7, 7), 0.25, 0, group_size=7, part_size=7),
    RoICase("wide", (1, 148, 9, 12), 6, (2, 2), group_size=2, part_size=2, classes=37),
    RoICase("pixel", (2, 8, 1, 1), 3, (2, 2), group_size=2, part_size=2),
    RoICase("one_channel", (2, 1, 5, 4), 3, (1, 1), part_size=1),
    RoICase("none", (2, 8, 5, 6), 0, (2, 2), group_size=2, part_size=2),
)

# So small that finite differences take every entry: fixed and adaptive grids, groups, parts and classes.
ROI_SMALL = (
    RoICase("fixed", (2, 2, 5, 6), 3, (2, 3), 0.5, 2),
    RoICase("adaptive", (1, 3, 6, 5), 2, (2, 1), 0.5, 0),
    RoICase("large_boxes", (2, 2, 3, 3), 3, (4, 1), 1.0),
)
PS_ROI_SMALL = (
    RoICase("groups", (2, 8, 5, 6), 3, (2, 2), 0.5, 2, 2, 2, 3, 2),
    RoICase("parts", (1, 9, 5, 6), 3, (3, 3), 0.5, 0, 1, 2, 2, 1),
)

# Input and output have more than 2³¹ elements.
ROI_HUGE = RoICase("huge", (2, 32768, 256, 256), (1 << 18) + 1, (8, 8), group_size=2, part_size=2)

# The shape on which speed is promised: the RoI head of a detector on a map of stride 16.
ROI_SPEED = (RoICase("R1", (1, 256, 50, 84), 512, (7, 7), 1 / 16, 2),)


@dataclass(frozen=True)
class MSDeformAttnCase:
    """One shape of multi-scale deformable attention; `tensors` draws its inputs: N(0, 1), weights U(0, 1).

    Locations lie anywhere in the levels and somewhat outside, or `near` pixels, N(0, 1) times that, around the query's
    own place in the pyramid.
    """

    name: str
    # N, and the rest of value: S, M, D.
    input: tuple[int, int, int, int]
    queries: int
    shapes: tuple[tuple[int, int], ...]
    points: int | tuple[int, ...] = 2
    starts: tuple[int, ...] | None = None
    near: float = 0.0

    def tensors(self, dtype: torch.dtype = torch.float32, *, seed: int = 0) -> dict[str, Tensor]:
        """Return value, sampling_locations and attention_weights, drawn in float64 and rounded to `dtype`."""
        random = torch.Generator().manual_seed(seed)
        N, _, M, _ = self.input
        L, P = len(self.shapes), self.points
        samples = (L, P) if isinstance(P, int) else (sum(P),)
        size = (N, self.queries, M, *samples)
        value = torch.randn(self.input, generator=random, dtype=torch.float64)
        if self.near:
            locations = torch.randn(*size, 2, generator=random, dtype=torch.float64) * self.near
            extent = torch.tensor(self.shapes, dtype=torch.float64).flip(1)
            locations = self.places().view(1, self.queries, 1, 1, 1, 2) + locations / extent[:, None]
        else:
            locations = 1.2 * torch.rand(*size, 2, generator=random, dtype=torch.float64) - 0.1
        weights = torch.rand(size, generator=random, dtype=torch.float64)
        tensors = {"value": value, "sampling_locations": locations, "attention_weights": weights}
        return {name: t.to(dtype) for name, t in tensors.items()}

    def places(self) -> Tensor:
        """Return the centres of the pixels of all levels, (Q, 2): an encoder asks at each of them."""
        found = []
        for H, W in self.shapes:
            y, x = (torch.arange(n, dtype=torch.float64).add(0.5) / n for n in (H, W))
            found.append(torch.stack([x.expand(H, W), y[:, None].expand(H, W)], -1).view(-1, 2))
        return torch.cat(found)

    @property
    def arguments(self) -> dict[str, Any]:
        """Return everything but the tensors as keyword arguments."""
        points = None if isinstance(self.points, int) else self.points
        return {"spatial_shapes": self.shapes, "level_start_index": self.starts, "points": points}

    def grown(self, step: int) -> MSDeformAttnCase:
        """Return the case with more images and queries, and pixels that no level covers."""
        N, S, M, D = self.input
        return replace(self, input=(N + step, S + 3 * step, M, D), queries=self.queries + 20 * step)

    def empty(self) -> MSDeformAttnCase:
        """Return the case without an image."""
        return replace(self, input=(0, *self.input[1:]))


def _pyramid(*shapes: tuple[int, int]) -> int:
    return sum(H * W for H, W in shapes)


# Levels of one row, column and pixel, in another order and with gaps; uniform and ragged; channels that no vector
# divides.
MS_DEFORM_ATTN_CASES = (
    MSDeformAttnCase("pyramid", (2, 32, 2, 5), 7, ((4, 5), (2, 3), (2, 3))),
    MSDeformAttnCase("ragged", (2, 41, 3, 8), 6, ((5, 6), (3, 3), (1, 2)), (3, 1, 2)),
    MSDeformAttnCase("reordered", (2, 40, 2, 3), 5, ((3, 4), (2, 2), (1, 5)), 3, (20, 1, 33)),
    MSDeformAttnCase("one_level", (3, 42, 4, 16), 30, ((6, 7),), 4),
    MSDeformAttnCase("lines", (1, 14, 1, 1), 9, ((1, 6), (7, 1), (1, 1)), 1),
    MSDeformAttnCase("detector", (2, 85, 8, 32), 11, ((8, 8), (4, 4), (2, 2), (1, 1)), 4),
    MSDeformAttnCase("wide", (1, 20, 1, 107), 4, ((4, 5),), 3),
    MSDeformAttnCase("many_points", (1, 24, 2, 4), 3, ((4, 6),), 301),
    MSDeformAttnCase("none", (2, 12, 2, 4), 0, ((3, 4),)),
)

# So small that finite differences take every entry.
MS_DEFORM_ATTN_SMALL = (
    MSDeformAttnCase("levels", (1, 8, 1, 2), 2, ((2, 3), (1, 2)), 1),
    MSDeformAttnCase("ragged", (2, 9, 2, 1), 2, ((2, 3), (1, 2)), (1, 2), (3, 1)),
)

# Value has more than 2³¹ elements.
MS_DEFORM_ATTN_HUGE = MSDeformAttnCase("huge", (2, 1 << 20, 32, 64), 4, ((1024, 1024),))

# The shapes on which speed is promised: the encoder of Deformable DETR on an image of 800×1066, with samples around
# every query's place and anywhere; decoders of Deformable DETR, RT-DETR, Grounding DINO and RF-DETR; the pixel decoder
# of Mask2Former on 1024×1024.
_DETR = ((100, 134), (50, 67), (25, 34), (13, 17))
_RT_DETR = ((80, 80), (40, 40), (20, 20))
_MASK2FORMER = ((128, 128), (64, 64), (32, 32))
MS_DEFORM_ATTN_SPEED = (
    MSDeformAttnCase("E1", (1, _pyramid(*_DETR), 8, 32), _pyramid(*_DETR), _DETR, 4, near=2.0),
    MSDeformAttnCase("E2", (1, _pyramid(*_DETR), 8, 32), _pyramid(*_DETR), _DETR, 4),
    MSDeformAttnCase("D1", (1, _pyramid(*_DETR), 8, 32), 300, _DETR, 4),
    MSDeformAttnCase("D2", (1, _pyramid(*_RT_DETR), 8, 32), 300, _RT_DETR, 4),
    MSDeformAttnCase("D3", (1, _pyramid(*_DETR), 8, 32), 900, _DETR, 4),
    MSDeformAttnCase("D4", (1, 1600, 16, 16), 300, ((40, 40),), 2),
    MSDeformAttnCase("E3", (1, _pyramid(*_MASK2FORMER), 8, 32), _pyramid(*_MASK2FORMER), _MASK2FORMER, 4, near=2.0),
)


@dataclass(frozen=True)
class DCNCase:
    """One shape of DCNv3 and DCNv4; `tensors` draws its inputs: N(0, 1), offsets and masks N(0, 1)."""

    name: str
    # N, H, W, C.
    input: tuple[int, int, int, int]
    groups: int = 1
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    offset_scale: float = 1.0
    remove_center: bool = False

    def tensors(self, op: str, dtype: torch.dtype = torch.float32, *, seed: int = 0) -> dict[str, Tensor]:
        """Return the tensors of "dcnv3" or "dcnv4", drawn in float64 and rounded to `dtype`."""
        random = torch.Generator().manual_seed(seed)
        N, H, W, _ = self.input
        sizes = zip((H, W), self.padding, self.dilation, self.kernel, self.stride, strict=True)
        Ho, Wo = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in sizes)
        G, K = self.groups, self.kernel[0] * self.kernel[1] - self.remove_center

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)

        input, offset, mask = draw(*self.input), draw(N, Ho, Wo, G * K * 2), draw(N, Ho, Wo, G * K)
        if op == "dcnv3":
            return {"input": input, "offset": offset, "mask": mask}
        parts = [offset.unflatten(-1, (G, 2 * K)), mask.unflatten(-1, (G, K))]
        packed = torch.cat(parts, -1).flatten(-2)
        return {"input": input, "offset_mask": torch.nn.functional.pad(packed, (0, -packed.shape[-1] % 8), value=99.0)}

    @property
    def arguments(self) -> dict[str, Any]:
        """Return everything but the tensors as keyword arguments."""
        names = ("stride", "padding", "dilation", "groups", "offset_scale", "remove_center")
        return {"kernel_size": self.kernel, **{name: getattr(self, name) for name in names}}

    def grown(self, step: int) -> DCNCase:
        """Return the case with more images on larger maps."""
        N, H, W, C = self.input
        return replace(self, input=(N + step, H + 2 * step, W + 3 * step, C))

    def empty(self) -> DCNCase:
        """Return the case without an image."""
        return replace(self, input=(0, *self.input[1:]))


DCN_CASES = (
    DCNCase("groups", (2, 5, 6, 8), 2),
    DCNCase("crooked", (2, 9, 7, 6), 3, (3, 2), (2, 1), (1, 0), (1, 2), 2.0),
    DCNCase("centre", (1, 7, 8, 10), 2, padding=(2, 2), dilation=(2, 2), offset_scale=0.5, remove_center=True),
    DCNCase("pointwise", (2, 4, 5, 3), 1, (1, 1), padding=(0, 0)),
    DCNCase("one_pixel", (3, 1, 1, 4), 4),
    DCNCase("depthwise", (1, 6, 5, 7), 7, (2, 2), offset_scale=1.5),
    DCNCase("image", (2, 9, 11, 64), 4),
    DCNCase("wide", (1, 6, 7, 107), 1),
    DCNCase("many_taps", (1, 8, 9, 4), 1, (17, 19), padding=(8, 9)),
)

# So small that finite differences take every entry.
DCN_SMALL = (
    DCNCase("tiny", (1, 2, 2, 2), 1, (2, 1), padding=(1, 0)),
    DCNCase("crooked", (2, 3, 4, 2), 2, (1, 2), (2, 1), (0, 1), (1, 2), 1.5),
)

# Input has more than 2³¹ elements.
DCN_HUGE = DCNCase("huge", (2, 1024, 1024, 2048), 1, (1, 1), (512, 512), (0, 0))

# The shapes on which speed is promised: the four stages of InternImage-T, on one image and on eight.
DCN_SPEED = tuple(
    DCNCase(f"I{stage + 1}x{images}", (images, 56 >> stage, 56 >> stage, 64 << stage), 4 << stage)
    for images in (1, 8)
    for stage in range(4)
)


@dataclass(frozen=True)
class LRNCase:
    """One shape of local response normalization; `tensors` draws its input and the gradient: 3·N(0, 1) and N(0, 1).

    The constants make the windowed sum as large as `k`, so that a wrong window shows in the first digits.
    """

    name: str
    input: tuple[int, ...]
    size: int = 5
    alpha: float = 0.5
    beta: float = 0.75
    k: float = 2.0
    region: str = "channel"
    even: str = "left"

    def tensors(
        self, dtype: torch.dtype = torch.float32, *, seed: int = 0, channels_last: bool = False
    ) -> dict[str, Tensor]:
        """Return input and the output's gradient, drawn in float64 and rounded to `dtype`."""
        random = torch.Generator().manual_seed(seed)
        scales = {"input": 3.0, "grad": 1.0}
        tensors = {
            name: (scale * torch.randn(self.input, generator=random, dtype=torch.float64)).to(dtype)
            for name, scale in scales.items()
        }
        if channels_last:
            formats = {4: torch.channels_last, 5: torch.channels_last_3d}
            tensors = {name: t.contiguous(memory_format=formats[t.dim()]) for name, t in tensors.items()}
        return tensors

    @property
    def arguments(self) -> dict[str, int | float | str]:
        """Return everything but the input as keyword arguments of `local_response_norm`."""
        names = ("size", "alpha", "beta", "k", "region", "even")
        return {name: getattr(self, name) for name in names}

    def grown(self, step: int) -> LRNCase:
        """Return the case with every dimension larger."""
        return replace(self, input=tuple(n + step for n in self.input))

    def empty(self) -> LRNCase:
        """Return the case without an image."""
        return replace(self, input=(0, *self.input[1:]))


# Every exponent with its own code path; windows that are odd, even, mirrored, wider than the tensor, one element wide;
# maps of one pixel, small maps, maps that no tile divides, more channels than a block holds; both regions.
LRN_CASES = (
    LRNCase("alexnet", (2, 11, 7, 6)),
    LRNCase("wide_map", (1, 10, 41, 43)),
    LRNCase("many_channels", (3, 301, 3, 3), beta=0.5),
    LRNCase("thousands", (1, 5003, 1, 2), 3, beta=1.0),
    LRNCase("vector", (3, 70), 3, beta=0.75),
    LRNCase("sequence", (2, 9, 5), 4, beta=0.5),
    LRNCase("volume", (2, 5, 3, 4, 3), 3, beta=1.0),
    LRNCase("even_left", (2, 9, 5, 4), 4),
    LRNCase("even_right", (2, 9, 5, 4), 4, even="right"),
    LRNCase("even_two", (1, 6, 20, 33), 2, beta=0.6, even="right"),
    LRNCase("general", (2, 13, 9, 8), 7, beta=0.6),
    LRNCase("steep", (1, 7, 8, 9), 5, beta=2.5),
    LRNCase("flat", (1, 7, 4, 4), 5, beta=0.0),
    LRNCase("growing", (1, 7, 4, 4), 3, beta=-0.5),
    LRNCase("own_energy", (2, 5, 6, 7), 1),
    LRNCase("one_channel", (2, 1, 6, 7), 5),
    LRNCase("wider_than_all", (2, 4, 6, 7), 25),
    LRNCase("wider_and_even", (1, 4, 40, 41), 10, even="right"),
    LRNCase("spatial", (2, 3, 9, 8), 3, region="spatial"),
    LRNCase("spatial_general", (1, 40, 7, 13), 5, beta=0.6, region="spatial"),
    LRNCase("spatial_tiles", (1, 70, 40, 9), 5, beta=0.5, region="spatial"),
    LRNCase("spatial_line", (2, 3, 1, 9), 3, beta=1.0, region="spatial"),
    LRNCase("spatial_wider_than_all", (1, 3, 4, 3), 11, region="spatial"),
)

# The same windows on tensors so small that finite differences take every entry.
LRN_SMALL = tuple(
    replace(case, input=tuple(min(n, most) for n, most in zip(case.input, (2, 6, 3, 3, 2), strict=False)))
    for case in LRN_CASES
)

# More than 2³¹ elements.
LRN_HUGE = LRNCase("huge", (3, 96, 4096, 4096))

# The shapes on which speed is promised: AlexNet's two layers at batch 32, GoogLeNet's first at batch 1.
LRN_SPEED = (
    LRNCase("A1", (32, 96, 55, 55), alpha=5e-4),
    LRNCase("A2", (32, 256, 27, 27), alpha=5e-4),
    LRNCase("G1", (1, 64, 56, 56), alpha=1e-4, k=1.0),
)


@dataclass(frozen=True)
class NMSCase:
    """Boxes around a few centres; `tensors` draws boxes, scores and classes: some scores and some boxes are equal."""

    name: str
    boxes: int
    centres: int
    classes: int = 3

    def tensors(self, dtype: torch.dtype = torch.float32, *, seed: int = 0) -> dict[str, Tensor]:
        """Return boxes (x1 y1 x2 y2), scores and classes, drawn in float64, boxes and scores rounded to `dtype`."""
        random = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.rand(shape, generator=random, dtype=torch.float64)

        centre = 1000 * draw(self.centres, 2)[torch.randint(self.centres, (self.boxes,), generator=random)]
        centre, half = centre + 10 * draw(self.boxes, 2), 10 + 20 * draw(self.boxes, 2)
        boxes, scores = torch.cat([centre - half, centre + half], 1), draw(self.boxes)
        boxes[1::7], scores[2::5] = boxes[: len(boxes[1::7])], scores[: len(scores[2::5])]
        classes = torch.randint(self.classes, (self.boxes,), generator=random)
        return {"boxes": boxes.to(dtype), "scores": scores.to(dtype), "classes": classes}

    def grown(self, step: int) -> NMSCase:
        """Return the case with more boxes."""
        return replace(self, boxes=self.boxes + 37 * step)

    def empty(self) -> NMSCase:
        """Return the case without a box."""
        return replace(self, boxes=0)


# Most boxes suppressed, few suppressed; sizes that no strip divides; one class, more classes than boxes.
NMS_CASES = (
    NMSCase("dense", 301, 8),
    NMSCase("sparse", 203, 150),
    NMSCase("one_class", 67, 9, 1),
    NMSCase("lonely", 90, 2, 500),
    NMSCase("pair", 2, 1, 1),
    NMSCase("one", 1, 1),
    NMSCase("none", 0, 1),
)

# The shapes on which speed is promised: proposals of one image, detections in 80 classes, a page full of boxes.
NMS_SPEED = (
    NMSCase("P1", 2000, 200, 1),
    NMSCase("D1", 5000, 300, 80),
    NMSCase("L1", 20000, 4000, 1),
)


@dataclass(frozen=True)
class NetworkCase:
    """A ResNet of `depth` layers on an image of `size`: height and width in pixels."""

    name: str
    depth: int
    size: tuple[int, int]


NETWORK_SPEED = (NetworkCase("N1", 50, (800, 1333)),)


def deform_conv_at_integers(case: DeformConvCase) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and settings of a deformable convolution whose samples all lie at whole pixels."""
    tensors = case.tensors(torch.float64)
    return {**tensors, "offset": tensors["offset"].round()}, dict(case.geometry)


def ms_deform_attn_at_integers() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and settings of `ms_deform_attn` whose samples all lie at whole pixels."""
    # Sides are powers of two, so that places of pixels have exact locations.
    case = MSDeformAttnCase("integers", (1, 40, 1, 3), 60, ((4, 8), (2, 4)), 2)
    tensors = case.tensors(torch.float64)
    extent = torch.tensor(case.shapes, dtype=torch.float64).flip(1)[:, None]
    pixel = (tensors["sampling_locations"] * (extent + 2) - 1.5).round()
    return {**tensors, "sampling_locations": (pixel + 0.5) / extent}, case.arguments


def dcnv3_at_integers() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and settings of `dcnv3` whose samples all lie at whole pixels."""
    case = DCNCase("integers", (1, 5, 6, 4), 2)
    tensors = case.tensors("dcnv3", torch.float64)
    return {**tensors, "offset": tensors["offset"].round()}, case.arguments


def dcnv4_at_integers() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and settings of `dcnv4` whose samples all lie at whole pixels; masks are integers, too."""
    case = DCNCase("integers", (1, 5, 6, 4), 2)
    tensors = case.tensors("dcnv4", torch.float64)
    return {**tensors, "offset_mask": tensors["offset_mask"].round()}, case.arguments


def roi_pool_at_integers() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and settings of `deform_roi_pool` whose samples all lie at whole pixels."""
    # A box of 2×2 bins of one pixel, whose samples lie in their middle, half a pixel or one and a half away.
    rois, offset, mask, random = _boxes_at_integers(start=0.5, side=2.0, moves=(-0.75, -0.25, 0.25, 0.75))
    input = torch.randn(1, 2, 5, 6, generator=random, dtype=torch.float64)
    settings = {"output_size": 2, "spatial_scale": 1.0, "sampling_ratio": 1, "gamma": 1.0}
    return {"input": input, "rois": rois, "offset": offset, "mask": mask}, settings


def psroi_pool_at_integers() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and settings of `deform_psroi_pool` whose samples all lie at whole pixels."""
    # Boxes of four pixels begin half a pixel before a whole one; samples are one pixel apart.
    rois, offset, mask, random = _boxes_at_integers(start=0.0, side=3.0, moves=(-0.25, 0.25))
    input = torch.randn(1, 8, 5, 6, generator=random, dtype=torch.float64)
    settings = {"output_size": 2, "spatial_scale": 1.0, "sample_per_part": 2, "trans_std": 0.5}
    return {"input": input, "rois": rois, "offset": offset, "mask": mask}, settings


def _boxes_at_integers(
    start: float, side: float, moves: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor, torch.Generator]:
    """Return boxes around every pixel of a map of 5×6 and beyond its borders, offsets drawn from `moves`, and masks."""
    random = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(-3.0, 6), torch.arange(-3.0, 7), indexing="ij")
    corner = torch.stack([x.flatten(), y.flatten()], 1).double() + start
    rois = torch.cat([torch.zeros(len(corner), 1), corner, corner + side], 1)
    drawn = torch.randint(len(moves), (len(rois), 2, 2, 2), generator=random)
    mask = torch.rand(len(rois), 1, 2, 2, generator=random, dtype=torch.float64)
    return rois, torch.tensor(moves, dtype=torch.float64)[drawn], mask, random
