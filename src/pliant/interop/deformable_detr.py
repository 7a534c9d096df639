"""Deformable-DETR's operator and layer: its arguments and its names of parameters, with our operator."""

from __future__ import annotations

from torch import Tensor

from pliant import nn, ops

__all__ = ["MSDeformAttn", "MSDeformAttnFunction", "ms_deform_attn_core_pytorch"]


class MSDeformAttnFunction:
    """Deformable-DETR's autograd function: :func:`pliant.ops.ms_deform_attn` behind ``apply``."""

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """Return (N, Q, M·D); `im2col_step` is ignored, any batch is computed as a whole.

        Args:
            value: (N, S, M, D).
            value_spatial_shapes: (L, 2), H and W of each level.
            value_level_start_index: (L,), where each level begins.
            sampling_locations: (N, Q, M, L, P, 2), x and y in [0, 1] of the level.
            attention_weights: (N, Q, M, L, P).
            im2col_step: ignored.
        """
        return ops.ms_deform_attn(
            value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights
        )


def ms_deform_attn_core_pytorch(
    value: Tensor, value_spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Return (N, Q, M·D), with levels that follow each other; arguments are those of :class:`MSDeformAttnFunction`.

    >>> import torch
    >>> locations, weights = torch.rand(1, 5, 2, 1, 3, 2), torch.rand(1, 5, 2, 1, 3)
    >>> ms_deform_attn_core_pytorch(torch.rand(1, 6, 2, 4), torch.tensor([[2, 3]]), locations, weights).shape
    torch.Size([1, 5, 8])
    """
    return ops.ms_deform_attn(value, value_spatial_shapes, None, sampling_locations, attention_weights)


class MSDeformAttn(nn.MSDeformAttn):
    """Deformable-DETR's layer, and :class:`pliant.nn.MSDeformAttn` under its names.

    Args:
        d_model: C, the channels.
        n_levels: L.
        n_heads: M, which must divide C.
        n_points: samples of each head and level.

    Raises:
        ValueError: heads do not divide the channels; points of reference that are neither points nor boxes.
        AssertionError: the levels have another number of pixels than the map.

    >>> import torch
    >>> layer = MSDeformAttn(16, n_levels=1, n_heads=4)
    >>> shapes, starts = torch.tensor([[4, 5]]), torch.tensor([0])
    >>> layer(torch.randn(1, 7, 16), torch.rand(1, 7, 1, 2), torch.randn(1, 20, 16), shapes, starts).shape
    torch.Size([1, 7, 16])
    """

    im2col_step = 64  # read by nobody here; code that configures the original sets it

    def __init__(self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4) -> None:
        if d_model % n_heads:
            raise ValueError(f"d_model must be divisible by n_heads, but got {d_model} and {n_heads}")
        super().__init__(d_model, n_levels, n_heads, n_points)
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points

    def _reset_parameters(self) -> None:
        # Networks draw all matrices anew and call this afterwards.
        self.reset_parameters()

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Tensor,
        input_level_start_index: Tensor,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return (N, Q, C).

        Args:
            query: (N, Q, C).
            reference_points: (N, Q, L, 2), points, or (N, Q, L, 4), boxes as centre and size, in [0, 1].
            input_flatten: (N, S, C), the pixels of all levels.
            input_spatial_shapes: (L, 2), H and W of each level.
            input_level_start_index: (L,), where each level begins.
            input_padding_mask: (N, S), True where a pixel is padding.
        """
        assert int(input_spatial_shapes.prod(1).sum()) == input_flatten.shape[1]
        if reference_points.shape[-1] not in (2, 4):
            got = reference_points.shape[-1]
            raise ValueError(f"Last dim of reference_points must be 2 or 4, but get {got} instead.")
        return super().forward(
            query, reference_points, input_flatten, input_spatial_shapes, input_level_start_index, input_padding_mask
        )
