"""Multi-scale deformable attention as a layer: it predicts where queries look, and how much each sample counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import has_torch_function_variadic

from pliant import _check
from pliant._check import not_scripted
from pliant.ops import _declare
from pliant.ops.aggregation.ms_deform_attn import METHODS, ms_deform_attn


def sampling_locations(
    reference_points: Tensor,
    offsets: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    points: Sequence[int],
) -> Tensor:
    """Return where queries look, (N, Q, M, ΣP, 2) in [0, 1] of each level, in float32 at least.

    With points of reference ``ref + offset/(W, H)``, with boxes ``ref_xy + offset/P·ref_wh/2``.

    Args:
        reference_points: (N, Q, L, 2), points, or (N, Q, L, 4), boxes as centre and size; L may be 1 for all levels.
        offsets: (N, Q, M, ΣP, 2), x first; level after level.
        spatial_shapes: (H, W) of each level.
        points: number of samples of each level.
    """
    if has_torch_function_variadic(reference_points, offsets, spatial_shapes):
        return _declare.handed_over(sampling_locations, locals())
    offsets, reference_points = (t.float() if t.dtype in _check.LOW else t for t in (offsets, reference_points))
    levels = torch.tensor([level for level, P in enumerate(points) for _ in range(P)], device=offsets.device)
    references = reference_points.expand(-1, -1, len(points), -1)[:, :, levels].unsqueeze(2)
    if references.shape[-1] == 4:
        share = torch.tensor([1 / P for P in points], device=offsets.device, dtype=offsets.dtype)[levels, None]
        return references[..., :2] + offsets * share * references[..., 2:] * 0.5
    return references + offsets / _sizes(spatial_shapes, offsets)[levels]


def _sizes(shapes: Tensor | Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """Return W and H of every level, (L, 2)."""
    if isinstance(shapes, Tensor) or all(type(n) is int for shape in shapes for n in shape):
        return torch.as_tensor(shapes, device=like.device).flip(1).to(like.dtype)
    # A tensor of symbolic sizes would fix them.
    return torch.stack([like.new_full((), n) for H, W in shapes for n in (W, H)]).view(-1, 2)


class MSDeformAttn(nn.Module):
    """Attend to a few points of every level of a pyramid, predicted from the query: multi-scale deformable attention.

    ``y = output_proj(ms_deform_attn(value_proj(value), locations, softmax(attention_weights(query))))`` with locations
    around the points or boxes of reference, moved by ``sampling_offsets(query)``. The softmax goes over all samples of
    a head. Offsets are in pixels of each level, or with boxes in halves of the box, divided by the number of points.

    At the edges the layer follows :func:`pliant.ops.ms_deform_attn`. Padded pixels are 0 after the projection, and
    the weights of samples there are lost.

    Args:
        channels: C, of queries, values and the output.
        levels: L.
        heads: M, which must divide C.
        points: samples of each level, or a list with a number for each (RT-DETRv2, D-FINE).
        method: "bilinear" or "discrete".
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        query (N, Q, C), reference_points (N, Q, L, 2) or (N, Q, L, 4), value (N, S, C) → (N, Q, C). State: weight and
        bias of `sampling_offsets`, `attention_weights`, `value_proj` and `output_proj`, as in Deformable DETR.

    Attributes:
        offset_lr_mult: learning rate of `sampling_offsets` relative to the rest, used by
            :func:`pliant.nn.parameter_groups`: 0.1, as in the paper.

    Raises:
        ValueError: heads do not divide the channels, a number below 1, an unknown method, points for other levels.

    Source: Zhu et al., "Deformable DETR", ICLR 2021, section 4.1 and appendix A.4.

    >>> layer = MSDeformAttn(16, levels=2, heads=4, points=2)
    >>> value, reference = torch.randn(1, 26, 16), torch.rand(1, 5, 2, 2)
    >>> layer(torch.randn(1, 5, 16), reference, value, [(4, 5), (2, 3)]).shape
    torch.Size([1, 5, 16])
    """

    def __init__(
        self,
        channels: int = 256,
        levels: int = 4,
        heads: int = 8,
        points: int | Sequence[int] = 4,
        *,
        method: str = "bilinear",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = "MSDeformAttn"
        each = (points,) * levels if isinstance(points, int) else tuple(points)
        if min(channels, levels, heads, *each) < 1:
            raise ValueError(f"{name}: channels, levels, heads and points must be at least 1")
        if channels % heads:
            raise ValueError(f"{name}: heads={heads} must divide {channels} channels")
        if len(each) != levels:
            raise ValueError(f"{name}: points must name one number for each of the {levels} levels, got {each}")
        if method not in METHODS:
            raise ValueError(f"{name}: method must be one of {METHODS}, got {method!r}")
        self.channels, self.levels, self.heads, self.points, self.method = channels, levels, heads, each, method
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        samples = heads * sum(each)
        self.sampling_offsets = nn.Linear(channels, 2 * samples, **factory)
        self.attention_weights = nn.Linear(channels, samples, **factory)
        self.value_proj = nn.Linear(channels, channels, **factory)
        self.output_proj = nn.Linear(channels, channels, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Let every head look in its own direction, one pixel further with each point, all samples weighted alike."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.heads, dtype=torch.float64) * (2 * math.pi / self.heads)
        ways = torch.stack([angles.cos(), angles.sin()], -1)
        ways = ways / ways.abs().amax(-1, keepdim=True)
        steps = torch.cat([torch.arange(1.0, P + 1) for P in self.points])
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((ways[:, None] * steps[:, None]).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def predict(self, query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """Return the offsets (N, Q, M·ΣP·2) and weights (N, Q, M, ΣP) of queries; level after level, x first.

        Under autocast the branches run in the low precision; what they predict is converted to float32.
        """
        _check.layer("MSDeformAttn", "query", query, "N Q C", self.channels, self.sampling_offsets, -1)
        weights = _check.wide(self.attention_weights(query)).unflatten(-1, (self.heads, sum(self.points)))
        return _check.wide(self.sampling_offsets(query)), weights.softmax(-1)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Tensor | Sequence[Sequence[int]],
        level_start_index: Tensor | Sequence[int] | None = None,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return (N, Q, C).

        Args:
            query: (N, Q, C).
            reference_points: (N, Q, L, 2), x and y in [0, 1], or (N, Q, L, 4), centre and size of a box.
            value: (N, S, C), the pixels of all levels.
            spatial_shapes: (H, W) of each level.
            level_start_index: where each level begins; None: levels follow each other.
            padding_mask: (N, S), True where a pixel is padding.
        """
        _check.layer("MSDeformAttn", "value", value, "N S C", self.channels, self.value_proj, -1)
        predicted, weights = self.predict(query)
        places = sampling_locations(reference_points, self.offsets(predicted), spatial_shapes, self.points)
        projected = self.value_proj(value)
        if padding_mask is not None:
            projected = projected.masked_fill(padding_mask.unsqueeze(-1), 0)
        projected = projected.unflatten(-1, (self.heads, -1))
        output = ms_deform_attn(
            projected, spatial_shapes, level_start_index, places, weights, points=self.points, method=self.method
        )
        result: Tensor = self.output_proj(output)
        return result

    def extra_repr(self) -> str:
        text = f"{self.channels}, levels={self.levels}, heads={self.heads}, points={self.points}"
        return text + f", method={self.method!r}"

    __prepare_scriptable__ = not_scripted

    # The protocol of deformable layers; pliant.nn.deformable documents its members.
    branches, axes, unit, offset_scale, modulated = ("sampling_offsets",), "xy", "pixels", 1.0, True
    offset_lr_mult = 0.1

    def offsets(self, predicted: Tensor) -> Tensor:
        """Return the offsets in what the branch or `predict` returned, (N, Q, M, ΣP, 2), x first."""
        offsets: Tensor = predicted.unflatten(-1, (self.heads, sum(self.points), 2))
        return offsets

    def map_size(self, input: Tensor) -> tuple[int, ...]:
        """Return (): queries do not tell how large the levels are."""
        return ()

    def inside(self, moves: Tensor, size: Sequence[int]) -> None:
        """Return None: where samples lie depends on the points of reference."""
