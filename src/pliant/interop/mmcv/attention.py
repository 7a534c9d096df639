"""mmcv's multi-scale deformable attention: its arguments and its names of parameters, with our operator."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from pliant.interop.deformable_detr import MSDeformAttnFunction as MultiScaleDeformableAttnFunction
from pliant.interop.deformable_detr import ms_deform_attn_core_pytorch as multi_scale_deformable_attn_pytorch
from pliant.nn import MSDeformAttn

__all__ = [
    "MultiScaleDeformableAttention",
    "MultiScaleDeformableAttnFunction",
    "multi_scale_deformable_attn_pytorch",
]


class MultiScaleDeformableAttention(MSDeformAttn):
    """mmcv's layer, a `pliant.nn.MSDeformAttn` with dropout and the residual inside.

    ``y = dropout(attention(query + query_pos, value)) + identity``. Tensors are (length, batch, channels) unless
    `batch_first`.

    Args:
        embed_dims: C, the channels.
        num_heads: M, which must divide C.
        num_levels: L.
        num_points: samples of each head and level.
        im2col_step: ignored.
        dropout: probability.
        batch_first: whether tensors are (batch, length, channels).
        norm_cfg: kept as an attribute, as in mmcv.
        init_cfg: kept as an attribute; mmengine reads it.
        value_proj_ratio: channels of the projected value relative to C.

    Raises:
        ValueError: heads do not divide the channels; points of reference that are neither points nor boxes.
        AssertionError: the levels have another number of pixels than the value.

    >>> import torch
    >>> layer = MultiScaleDeformableAttention(16, num_heads=4, num_levels=1)
    >>> query, shapes = torch.randn(20, 1, 16), torch.tensor([[4, 5]])
    >>> layer(query, reference_points=torch.rand(1, 20, 1, 2), spatial_shapes=shapes).shape
    torch.Size([20, 1, 16])
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        im2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = False,
        norm_cfg: dict[str, Any] | None = None,
        init_cfg: Any = None,
        value_proj_ratio: float = 1.0,
    ) -> None:
        if embed_dims % num_heads:
            raise ValueError(f"embed_dims must be divisible by num_heads, but got {embed_dims} and {num_heads}")
        super().__init__(embed_dims, num_levels, num_heads, num_points)
        width = int(embed_dims * value_proj_ratio)
        self.value_proj, self.output_proj = nn.Linear(embed_dims, width), nn.Linear(width, embed_dims)
        self.dropout = nn.Dropout(dropout)
        self.embed_dims, self.num_heads, self.num_levels, self.num_points = (
            embed_dims,
            num_heads,
            num_levels,
            num_points,
        )
        self.im2col_step, self.batch_first, self.norm_cfg, self.init_cfg = im2col_step, batch_first, norm_cfg, init_cfg
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the parameters as mmcv does, which is how Deformable-DETR does."""
        self.reset_parameters()

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the output in the shape of `query`.

        Args:
            query: (Q, N, C), or with `batch_first` (N, Q, C), as are the tensors that follow up to `query_pos`.
            key: ignored, as in mmcv: samples are weighted by what the query predicts.
            value: (S, N, C), the pixels of all levels; None: `query`.
            identity: what is added to the output; None: `query`, without `query_pos`.
            query_pos: added to the query before it predicts.
            key_padding_mask: (N, S), True where a pixel is padding.
            reference_points: (N, Q, L, 2), points, or (N, Q, L, 4), boxes as centre and size, in [0, 1].
            spatial_shapes: (L, 2), H and W of each level.
            level_start_index: (L,); ignored, as in mmcv on a CPU: levels follow each other.
            **kwargs: `residual`, the old name of `identity`; others, such as `attn_mask`, are ignored as in mmcv.
        """
        if "residual" in kwargs:
            warnings.warn('"residual" is deprecated, please use "identity"', DeprecationWarning, stacklevel=2)
            identity = kwargs.pop("residual")
        value = query if value is None else value
        identity = query if identity is None else identity
        if query_pos is not None:
            query = query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        assert reference_points is not None and spatial_shapes is not None
        assert int(spatial_shapes.prod(1).sum()) == value.shape[1]
        if reference_points.shape[-1] not in (2, 4):
            got = reference_points.shape[-1]
            raise ValueError(f"Last dim of reference_points must be 2 or 4, but get {got} instead.")
        output = super().forward(query, reference_points, value, spatial_shapes, None, key_padding_mask)
        if not self.batch_first:
            output = output.transpose(0, 1)
        result: Tensor = self.dropout(output) + identity
        return result
