"""Our operators expressed, in PyTorch, by operators that ONNX and OpenVINO have: the rules that rewrite programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from pliant import ops
from pliant.nn.deformable import taps_by_row


def rules(graph: fx.Graph, *, clamp: bool, gather: bool = False) -> dict[Any, Callable[..., Any]]:
    """Return the rules for those operators of a graph that ONNX and OpenVINO have in part or not at all.

    A rule returns NotImplemented where the formats have the operator: the node stays, and is translated later.

    Args:
        graph: of an exported program.
        clamp: whether ``boundary="clamp"`` of deformable convolution is rewritten, too.
        gather: whether multi-scale deformable attention becomes gathers of single values rather than grid_sample.
    """
    ours = torch.ops.pliant
    every: dict[Any, Callable[..., Any]] = {
        ours.deform_conv2d.default: clamped,
        ours.deform_conv1d.default: deform_conv1d,
        ours.deform_conv3d.default: deform_conv3d,
        ours.deform_conv_transpose2d.default: deform_conv_transpose2d,
        ours.local_response_norm.default: local_response_norm,
        ours.deform_roi_pool.default: deform_roi_pool,
        ours.deform_psroi_pool.default: deform_psroi_pool,
        ours.ps_roi_align.default: ps_roi_align,
        ours.ps_roi_pool.default: ps_roi_pool,
        ours.ms_deform_attn.default: gathered_attention if gather else ms_deform_attn,
        ours.dcnv3.default: dcnv3,
        ours.dcnv4.default: dcnv4,
    }
    # Rewriting traces the whole program again: a network that needs no rule is not rewritten.
    conv = ours.deform_conv2d.default
    targets = {node.target for node in graph.nodes if node.target != conv}
    if clamp and any(node.target in (conv, ours.deform_conv1d.default) and node.args[-1] for node in graph.nodes):
        targets.add(conv)
    return {operator: rule for operator, rule in every.items() if operator in targets}


def clamped(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    mask: Tensor | None,
    clamp: bool,
) -> Any:
    """Express ``boundary="clamp"`` by ``"zeros"``: samples outside get mask 0, those past the last pixel move onto it.

    With "clamp", both neighbours of a sample between the last row and the border are that row; moved onto the row, it
    reads the same with "zeros". The move is exact, since its target is an integer.
    """
    if not clamp:
        return NotImplemented
    _, _, H, W = input.shape
    _, _, Kh, Kw = weight.shape
    N, channels, Ho, Wo = offset.shape
    G = channels // (2 * Kh * Kw)

    def line(count: int, distance: int, start: int = 0) -> Tensor:
        return torch.arange(count, device=offset.device, dtype=offset.dtype) * distance + start

    rows = line(Kh, dilation[0]).view(Kh, 1, 1, 1) + line(Ho, stride[0], -padding[0]).view(Ho, 1)
    columns = line(Kw, dilation[1]).view(Kw, 1, 1) + line(Wo, stride[1], -padding[1])
    dy, dx = offset.reshape(N, G, Kh, Kw, 2, Ho, Wo).unbind(4)
    y, x = rows + dy, columns + dx
    inside = (y >= 0) & (y < H) & (x >= 0) & (x < W)
    # `where` rather than a product, so that NaN does not spread.
    dy = torch.where(inside, torch.minimum(dy, H - 1 - rows), 0.0)
    dx = torch.where(inside, torch.minimum(dx, W - 1 - columns), 0.0)
    counts = inside.to(offset.dtype)
    if mask is not None:
        counts = counts * mask.reshape(N, G, Kh, Kw, Ho, Wo)
    moved = torch.stack((dy, dx), 4).reshape(N, channels, Ho, Wo)
    counts = counts.reshape(N, channels // 2, Ho, Wo)
    return torch.ops.pliant.deform_conv2d(input, moved, weight, bias, stride, padding, dilation, counts, False)


def deform_conv1d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    mask: Tensor | None,
    clamp: bool,
) -> Any:
    """Express the convolution of a sequence by that of a map of one row, whose samples do not move vertically."""
    moves = torch.stack((torch.zeros_like(offset), offset), 2).flatten(1, 2).unsqueeze(2)
    masks = None if mask is None else mask.unsqueeze(2)
    geometry = ((1, *stride), (0, *padding), (1, *dilation))
    row = (input.unsqueeze(2), moves, weight.unsqueeze(2), bias, *geometry, masks, clamp)
    return torch.ops.pliant.deform_conv2d(*row).squeeze(2)


def deform_conv3d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    mask: Tensor | None,
    clamp: bool,
) -> Any:
    """Express the convolution of a volume by eight gathers and a product: its reference."""
    boundary = "clamp" if clamp else "zeros"
    given = (input, offset, weight, bias, stride, padding, dilation, mask)
    return ops.deform_conv3d(*given, boundary=boundary, implementation="reference")


def deform_conv_transpose2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    mask: Tensor | None,
    groups: int,
    clamp: bool,
) -> Any:
    """Express the transposed convolution by a product and four scatters: its reference."""
    boundary = "clamp" if clamp else "zeros"
    given = (input, offset, weight, bias, stride, padding, output_padding, dilation, mask)
    return ops.deform_conv_transpose2d(*given, groups=groups, boundary=boundary, implementation="reference")


def local_response_norm(
    input: Tensor, dim: int, before: int, after: int, spatial: bool, a: float, beta: float, k: float
) -> Any:
    """Express normalization other than ONNX's LRN, odd windows over dimension 1 of four, by pooling of squares."""
    rank, shape = input.dim(), input.shape
    if not spatial and before == after:
        if dim == 1 and rank == 4:
            return NotImplemented
        # Reshaped to four dimensions with the channels in dimension 1, it is LRN.
        if dim == 1:
            return _four(input.reshape(*shape[:2], -1, 1), before, a, beta, k).reshape(shape)
        if rank < 3:
            return _four(input.reshape(-1, shape[-1], 1, 1), before, a, beta, k).reshape(shape)
        first = input.movedim(-1, 1)
        return _four(first.reshape(*first.shape[:2], -1, 1), before, a, beta, k).reshape(first.shape).movedim(1, -1)
    square = input * input
    if spatial:
        size = 2 * before + 1
        maps = square.reshape(-1, 1, *shape[-2:])
        total = F.avg_pool2d(maps, size, 1, before) * size**2
    else:
        size = before + after + 1
        maps = square.transpose(0, dim).reshape(1, 1, shape[dim], -1)
        total = F.avg_pool2d(F.pad(maps, (0, 0, before, after)), (size, 1), 1) * size
        turned = square.transpose(0, dim).shape
        return input * (k + a * total.reshape(turned).transpose(0, dim)) ** -beta
    return input * (k + a * total.reshape(shape)) ** -beta


def _four(input: Tensor, radius: int, a: float, beta: float, k: float) -> Tensor:
    result: Tensor = torch.ops.pliant.local_response_norm(input, 1, radius, radius, False, a, beta, k)
    return result


def deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    output_size: Sequence[int],
    scale: float,
    ratio: int,
    gamma: float,
    mask: Tensor | None,
) -> Tensor:
    """Express deformable RoI pooling by RoIAlign: every bin becomes a RoI of one bin, moved by the bin's offset.

    Where RoIAlign chooses the number of samples, ``ceil(bin)``, it computes the bin from coordinates that the move has
    rounded. A bin whose size is that close to a whole number of pixels is made a few units in the last place smaller or
    larger, around its centre, so that the number of samples stays that of the unmoved bin.
    """
    align = torch.ops.pliant.roi_align
    if offset is None:
        pooled: Tensor = align(input, rois, output_size, scale, ratio, True)
        return pooled if mask is None else pooled * mask.to(pooled.dtype)
    R, C, (Ph, Pw) = rois.shape[0], input.shape[1], output_size
    boxes = rois.to(torch.float64 if rois.dtype == torch.float64 else torch.float32)
    corners = (boxes[:, 1:] * scale - 0.5).view(R, 4, 1, 1)
    dx, dy = offset.to(boxes.dtype).unbind(1)
    x1, y1, x2, y2 = corners.unbind(1)
    rows = torch.arange(Ph, device=rois.device, dtype=boxes.dtype).view(Ph, 1)
    columns = torch.arange(Pw, device=rois.device, dtype=boxes.dtype)
    top, bottom = _moved(y1, y2, rows, Ph, gamma * dy, ratio)
    left, right = _moved(x1, x2, columns, Pw, gamma * dx, ratio)
    image = boxes[:, 0].view(R, 1, 1).expand(R, Ph, Pw)
    bins = torch.stack((image, left + 0.5, top + 0.5, right + 0.5, bottom + 0.5), 3).reshape(-1, 5)
    apart = align(input, bins, (1, 1), 1.0, ratio, True)
    pooled = apart.reshape(R, Ph, Pw, C).permute(0, 3, 1, 2)
    return pooled if mask is None else pooled * mask.to(pooled.dtype)


def _moved(start: Tensor, end: Tensor, place: Tensor, bins: int, shift: Tensor, ratio: int) -> tuple[Tensor, Tensor]:
    """Return both ends (R, Ph, Pw) of bins along one axis: (R, 1, 1) corners, places, and shifts in extents."""
    size = end - start
    bin = size / bins
    low = start + place * bin + size * shift
    if ratio > 0:
        return low, low + bin
    samples = bin.ceil()
    # Eight units in the last place of the coordinates that RoIAlign subtracts from each other.
    margin = (low.abs() + bin.abs() + 1) * (8 * torch.finfo(bin.dtype).eps)
    held = torch.minimum(torch.maximum(bin, samples - 1 + margin), samples - margin)
    # A bin smaller than the margin has one sample either way, and an empty one has none.
    held = torch.where(bin > margin, held, bin)
    middle = low + bin / 2
    return middle - held / 2, middle + held / 2


def deform_psroi_pool(input: Tensor, rois: Tensor, offset: Tensor | None, P: int, *geometry: Any) -> Tensor:
    """Express deformable position-sensitive RoI pooling by its definition: gathers and sums."""
    names = ("spatial_scale", "group_size", "part_size", "sample_per_part", "trans_std", "mask")
    settings = dict(zip(names, geometry, strict=True))
    return ops.deform_psroi_pool(input, rois, offset, P, **settings, implementation="reference")


def ps_roi_align(input: Tensor, rois: Tensor, output_size: Sequence[int], scale: float, ratio: int) -> Tensor:
    """Express position-sensitive RoIAlign by RoIAlign of all channels, of which each bin (ph, pw) keeps its own."""
    C, (Ph, Pw) = input.shape[1], output_size
    every = torch.ops.pliant.roi_align(input, rois, output_size, scale, ratio, True)
    apart = every.reshape(rois.shape[0], C // (Ph * Pw), Ph * Pw, Ph * Pw)
    own = torch.eye(Ph * Pw, device=input.device, dtype=torch.bool)
    return torch.where(own, apart, 0.0).sum(3).reshape(rois.shape[0], C // (Ph * Pw), Ph, Pw)


def ps_roi_pool(input: Tensor, rois: Tensor, output_size: Sequence[int], scale: float) -> Tensor:
    """Express position-sensitive RoI pooling by a matrix product with masks of the rows and columns of each bin.

    A value that is not finite reaches every bin of its channel.
    """
    N, C, H, W = input.shape
    Ph, Pw = output_size
    R, c = rois.shape[0], C // (Ph * Pw)
    maps = input.to(torch.float64 if input.dtype == torch.float64 else torch.float32)
    rois = rois.to(maps.dtype)
    image, corners = rois[:, 0], rois[:, 1:] * scale
    # Round half away from zero, as C does and torch does not.
    whole = corners.trunc()
    x1, y1, x2, y2 = (whole + torch.where((corners - whole).abs() >= 0.5, corners.sign(), 0)).unbind(1)
    rows, columns = _members(y1, y2, Ph, H).to(maps.dtype), _members(x1, x2, Pw, W).to(maps.dtype)
    area = (rows.sum(2).unsqueeze(2) * columns.sum(2).unsqueeze(1)).clamp(min=1)
    # The product runs over the rows of all images: those of the others are masked out.
    own = (image[:, None].floor() == torch.arange(N, device=input.device)).to(maps.dtype)
    rows = (own.view(R, 1, N, 1) * rows.unsqueeze(2)).reshape(R, Ph, N * H).transpose(0, 1)
    table = maps.reshape(N, c, Ph, Pw, H, W).permute(2, 0, 4, 1, 3, 5).reshape(Ph, N * H, c * Pw * W)
    total = torch.matmul(rows, table).reshape(Ph, R, c, Pw, W) * columns.view(R, 1, Pw, W)
    return (total.sum(4).permute(1, 2, 0, 3) / area.unsqueeze(1)).to(input.dtype)


def _members(start: Tensor, end: Tensor, bins: int, extent: int) -> Tensor:
    """Return which pixels of an axis belong to each bin, (R, bins, extent).

    Bin k has the pixels ``[floor(k·h/bins), ceil((k + 1)·h/bins))`` from `start`, with ``h = max(end − start, 1)``.
    """
    bin = (end - start).clamp(min=1).unsqueeze(1) / bins
    k = torch.arange(bins, device=start.device)
    low, high = ((edge + start.unsqueeze(1)).unsqueeze(2) for edge in ((k * bin).floor(), ((k + 1) * bin).ceil()))
    pixel = torch.arange(extent, device=start.device)
    return (pixel >= low) & (pixel < high)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[int],
    level_start_index: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    points: Sequence[int],
    discrete: bool,
) -> Tensor:
    """Express multi-scale deformable attention by grid_sample of each level; discrete samples by gathers."""
    if discrete:
        samples = sampling_locations, attention_weights
        return gathered_attention(value, spatial_shapes, level_start_index, *samples, points, discrete)
    N, _, M, D = value.shape
    Q = sampling_locations.shape[1]
    each = list(points) or [sampling_locations.shape[4]] * len(level_start_index)
    grids = (2 * sampling_locations.reshape(N, Q, M, sum(each), 2) - 1).transpose(1, 2).reshape(N * M, Q, sum(each), 2)
    found, end = [], 0
    for level, P in enumerate(each):
        H, W = spatial_shapes[2 * level : 2 * level + 2]
        start, first, end = level_start_index[level], end, end + P
        maps = value[:, start : start + H * W].permute(0, 2, 3, 1).reshape(N * M, D, H, W)
        found.append(F.grid_sample(maps, grids[:, :, first:end].to(value.dtype), align_corners=False))
    weights = attention_weights.reshape(N, Q, M, sum(each)).transpose(1, 2).reshape(N * M, 1, Q, sum(each))
    total = (torch.cat(found, 3) * weights).sum(3)
    return total.reshape(N, M * D, Q).transpose(1, 2).to(value.dtype)


def gathered_attention(value: Tensor, shapes: Sequence[int], starts: Sequence[int], *samples: Any) -> Tensor:
    """Express multi-scale deformable attention by its definition: gathers of single values, four for each sample."""
    *looked, points, discrete = samples
    sizes, method = list(zip(shapes[::2], shapes[1::2], strict=True)), "discrete" if discrete else "bilinear"
    settings: dict[str, Any] = {"points": points or None, "method": method, "implementation": "reference"}
    return ops.ms_deform_attn(value, sizes, starts, *looked, **settings)


def dcnv3(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
) -> Tensor:
    """Express DCNv3 by a deformable convolution with a weight of ones for each channel.

    Its taps lie where DCNv3's lie with ``offset_scale=1``; with another scale s they move by (s − 1) times their
    distance from the centre. Columns of taps come first in DCNv3, rows here. The tap that `remove_center` leaves out
    has the mask 0.
    """
    N, Ho, Wo, _ = offset.shape
    Kh, Kw = kernel_size
    C, K = input.shape[3], Kh * Kw - int(remove_center)
    moves = offset.reshape(N, Ho, Wo, groups, K, 2).flip(5) * offset_scale
    moves = taps_by_row(moves, kernel_size, remove_center)
    masks = taps_by_row(mask.reshape(N, Ho, Wo, groups, K, 1), kernel_size, remove_center)
    if offset_scale != 1:
        rows, columns = (
            (torch.arange(k, device=offset.device, dtype=offset.dtype) * d - d * (k - 1) // 2) * (offset_scale - 1)
            for k, d in zip(kernel_size, dilation, strict=True)
        )
        moves = moves + torch.stack(torch.meshgrid(rows, columns, indexing="ij"), 2).reshape(-1, 2)
    moves, masks = (t.permute(0, 3, 4, 5, 1, 2).reshape(N, -1, Ho, Wo).to(input.dtype) for t in (moves, masks))
    map, weight = (
        input.permute(0, 3, 1, 2).contiguous(),
        torch.ones(C, 1, Kh, Kw, device=input.device, dtype=input.dtype),
    )
    output: Tensor = torch.ops.pliant.deform_conv2d(map, moves, weight, None, stride, padding, dilation, masks, False)
    return output.permute(0, 2, 3, 1)


def dcnv4(input: Tensor, offset_mask: Tensor, kernel_size: Sequence[int], *geometry: Any) -> Tensor:
    """Express DCNv4 by DCNv3, with the packed offsets and masks taken apart."""
    *_, groups, _, remove_center = geometry
    K = kernel_size[0] * kernel_size[1] - int(remove_center)
    packed = offset_mask[..., : groups * 3 * K].unflatten(-1, (groups, 3 * K))
    offset, mask = packed[..., : 2 * K].flatten(-2), packed[..., 2 * K :].flatten(-2)
    return dcnv3(input, offset, mask, kernel_size, *geometry)
