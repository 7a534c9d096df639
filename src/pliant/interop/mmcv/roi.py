"""mmcv's deformable RoI pooling: its arguments and its names of parameters, with our operator."""

from __future__ import annotations

from torch import Tensor, nn

from pliant import ops
from pliant.interop._layers import Pair, pair, trunk


def deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    output_size: Pair,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:
    """Average over the bins of RoIs, moved by offsets: :func:`pliant.ops.deform_roi_pool` as `mmcv.ops` calls it.

    mmcv's own runs on GPUs alone.

    Args:
        input: (N, C, H, W).
        rois: (R, 5), image index and ``x1 y1 x2 y2``.
        offset: (R, 2, Ph, Pw), x first; None or an empty tensor: the bins are not moved.
        output_size: bins, an int or a pair.
        spatial_scale: pixels of the map per pixel of the image.
        sampling_ratio: samples per bin in each direction; 0: as many as the bin has pixels, rounded up.
        gamma: factor of the offsets, in units of the RoI's width and height.

    Raises:
        AssertionError: `rois` does not have five columns.
        ValueError: another shape does not fit.
    """
    assert rois.dim() == 2 and rois.shape[1] == 5, "RoI must be (idx, x1, y1, x2, y2)!"
    if offset is not None and offset.numel() == 0 and len(rois):
        offset = None
    return ops.deform_roi_pool(input, rois, offset, pair(output_size), spatial_scale, sampling_ratio, gamma)


class DeformRoIPool(nn.Module):
    """mmcv's layer: the caller passes offsets.

    Arguments are those of :func:`deform_roi_pool`.
    """

    def __init__(
        self, output_size: Pair, spatial_scale: float = 1.0, sampling_ratio: int = 0, gamma: float = 0.1
    ) -> None:
        super().__init__()
        self.output_size, self.spatial_scale = pair(output_size), float(spatial_scale)
        self.sampling_ratio, self.gamma = int(sampling_ratio), float(gamma)

    def forward(self, input: Tensor, rois: Tensor, offset: Tensor | None = None) -> Tensor:
        return deform_roi_pool(
            input, rois, offset, self.output_size, self.spatial_scale, self.sampling_ratio, self.gamma
        )


class DeformRoIPoolPack(DeformRoIPool):
    """mmcv's layer of version 1 that predicts its own offsets: `offset_fc` reads the RoIs pooled without offsets.

    Args:
        output_size: bins, an int or a pair.
        output_channels: C of the map.
        deform_fc_channels: width of the two hidden layers.
        spatial_scale: pixels of the map per pixel of the image.
        sampling_ratio: samples per bin in each direction; 0: as many as the bin has pixels, rounded up.
        gamma: factor of the offsets, in units of the RoI's width and height.
    """

    def __init__(
        self,
        output_size: Pair,
        output_channels: int,
        deform_fc_channels: int = 1024,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
    ) -> None:
        super().__init__(output_size, spatial_scale, sampling_ratio, gamma)
        self.output_channels, self.deform_fc_channels = output_channels, deform_fc_channels
        bins = self.output_size[0] * self.output_size[1]
        self.offset_fc = trunk(bins * output_channels, deform_fc_channels, deform_fc_channels, 2 * bins)

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input, rois, self._offset(self._unmoved(input, rois)))

    def _unmoved(self, input: Tensor, rois: Tensor) -> Tensor:
        assert input.shape[1] == self.output_channels, f"expected {self.output_channels} channels, got {input.shape[1]}"
        return super().forward(input, rois, None).flatten(1)

    def _offset(self, features: Tensor) -> Tensor:
        offset: Tensor = self.offset_fc(features)
        return offset.view(-1, 2, *self.output_size)


class ModulatedDeformRoIPoolPack(DeformRoIPoolPack):
    """mmcv's layer of version 2: `mask_fc`, with one hidden layer, predicts masks that multiply the bins.

    Arguments are those of :class:`DeformRoIPoolPack`.
    """

    def __init__(
        self,
        output_size: Pair,
        output_channels: int,
        deform_fc_channels: int = 1024,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
    ) -> None:
        super().__init__(output_size, output_channels, deform_fc_channels, spatial_scale, sampling_ratio, gamma)
        bins = self.output_size[0] * self.output_size[1]
        self.mask_fc = trunk(bins * output_channels, deform_fc_channels, bins).append(nn.Sigmoid())

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:  # type: ignore[override]
        features = self._unmoved(input, rois)
        mask: Tensor = self.mask_fc(features).view(-1, 1, *self.output_size)
        return DeformRoIPool.forward(self, input, rois, self._offset(features)) * mask
