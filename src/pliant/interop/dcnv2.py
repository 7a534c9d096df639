"""The DCNv2 forks (CharlesShang/DCNv2 and its descendants) and basicsr: their names on our kernels."""

from __future__ import annotations

from torch import Tensor, nn

from pliant.interop._layers import Convolution, Pair, as_runtime_error, convolve, offsets_and_masks, trunk, zero
from pliant.ops import deform_psroi_pool


def dcn_v2_conv(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    deformable_groups: int,
) -> Tensor:
    """Convolve with taps moved by offsets and weighted by masks: :func:`pliant.ops.deform_conv2d`.

    Args:
        input: (N, C, H, W).
        offset: (N, 2·G·Kh·Kw, Ho, Wo).
        mask: (N, G·Kh·Kw, Ho, Wo).
        weight: (O, C, Kh, Kw); there are no groups.
        bias: (O,).
        stride: an int or a pair, as are the two that follow.
        padding: rows and columns of zeros on each side of the map.
        dilation: distance between adjacent taps.
        deformable_groups: G, the number of offset groups.

    Raises:
        ValueError: `input` is not a batch of maps, or the output would be empty.
        RuntimeError: a shape does not fit.
    """
    return convolve("dcn_v2_conv", input, offset, mask, weight, bias, stride, padding, dilation, 1, deformable_groups)


class DCNv2(Convolution):
    """The forks' layer: the caller passes offsets and masks.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: an int or a pair, as are the three that follow.
        stride: distance between adjacent output pixels, in pixels of the map.
        padding: rows and columns of zeros on each side of the map.
        dilation: distance between adjacent taps.
        deformable_groups: G, the number of offset groups.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair = 1,
        deformable_groups: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups=1, bias=True)
        self.deformable_groups = deformable_groups
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight uniformly within ``±1/√(C·Kh·Kw)``, and set the bias to zero."""
        self._draw()

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        K = self.deformable_groups * self.kernel_size[0] * self.kernel_size[1]
        assert offset.shape[1] == 2 * K, f"DCNv2: offset must have {2 * K} channels, got {offset.shape[1]}"
        assert mask.shape[1] == K, f"DCNv2: mask must have {K} channels, got {mask.shape[1]}"
        return dcn_v2_conv(
            input,
            offset,
            mask,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.deformable_groups,
        )


class DCN(DCNv2):
    """The forks' layer that predicts its own offsets and masks, with `conv_offset_mask`; the mask is ``sigmoid(·)``.

    Arguments are those of :class:`DCNv2`. The branch has the layer's dilation, so that its output has the right size;
    the forks leave the dilation out, and fail unless it is 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair = 1,
        deformable_groups: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, deformable_groups)
        channels = 3 * deformable_groups * self.kernel_size[0] * self.kernel_size[1]
        self.conv_offset_mask = self._branch(channels)
        self.init_offset()

    def init_offset(self) -> None:
        """Set the branch to zero."""
        zero(self.conv_offset_mask)

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input, *offsets_and_masks(self.conv_offset_mask(input)))


class DCN_sep(DCN):
    """The forks' layer that predicts offsets and masks from a second map: EDVR aligns frames by it.

    Arguments are those of :class:`DCNv2`. ``layer(input, fea)`` reads `fea`, which has the shape of `input`, through
    `conv_offset_mask`; :class:`pliant.nn.DeformConv2d` with `guide_channels` takes a map on the grid of the output.
    """

    def forward(self, input: Tensor, fea: Tensor) -> Tensor:  # type: ignore[override]
        return DCNv2.forward(self, input, *offsets_and_masks(self.conv_offset_mask(fea)))


class DCNv2Pack(Convolution):
    """basicsr's layer that predicts offsets and masks from a second map: BasicVSR++ and EDVR align frames by it.

    ``layer(x, feat)`` reads `feat`, which has the shape of `x`, through `conv_offset`; the mask is ``sigmoid(·)``.
    basicsr logs a warning where the mean offset exceeds 50 pixels; :class:`pliant.nn.OffsetStatistics` does so for
    :class:`pliant.nn.DeformConv2d`, which loads the same state dict with ``guide_channels=in_channels``.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: an int or a pair, as are the three that follow.
        stride: distance between adjacent output pixels, in pixels of the map.
        padding: rows and columns of zeros on each side of the map.
        dilation: distance between adjacent taps.
        groups: convolution groups.
        deformable_groups: G, the number of offset groups.
        bias: learn a bias (O,).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.deformable_groups = deformable_groups
        self.conv_offset = self._branch(3 * deformable_groups * self.kernel_size[0] * self.kernel_size[1])
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the weight uniformly within ``±1/√(C·Kh·Kw)``, and set the bias and the branch to zero."""
        self._draw()
        zero(self.conv_offset)

    def forward(self, x: Tensor, feat: Tensor) -> Tensor:
        offset, mask = offsets_and_masks(self.conv_offset(feat))
        geometry = (self.stride, self.padding, self.dilation, self.groups, self.deformable_groups)
        return convolve("DCNv2Pack", x, offset, mask, self.weight, self.bias, *geometry)


def dcn_v2_pooling(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    spatial_scale: float,
    pooled_size: int,
    output_dim: int,
    no_trans: bool,
    group_size: int = 1,
    part_size: int | None = None,
    sample_per_part: int = 4,
    trans_std: float = 0.0,
) -> Tensor:
    """Average over the bins of RoIs, moved by offsets: :func:`pliant.ops.deform_psroi_pool`.

    Args:
        input: (N, C, H, W).
        rois: (R, 5), image index and ``x1 y1 x2 y2``.
        offset: (R, 2·classes, part, part), x first; rows beyond the RoIs are not read, nor any with `no_trans`.
        spatial_scale: pixels of the map per pixel of the image.
        pooled_size: P, bins in each direction.
        output_dim: channels of the output, ``C/group_size²``.
        no_trans: do not move the bins.
        group_size: groups of position-sensitive channels in each direction.
        part_size: offsets in each direction; P by default.
        sample_per_part: samples per bin in each direction.
        trans_std: factor of the offsets, in units of the RoI's width and height.

    Raises:
        RuntimeError: a shape does not fit.
    """
    if input.shape[1] != output_dim * group_size**2:
        raise RuntimeError(
            f"dcn_v2_pooling: input must have output_dim·group_size² = {output_dim * group_size**2} channels, got "
            f"{input.shape[1]}"
        )
    with as_runtime_error("dcn_v2_pooling"):
        return deform_psroi_pool(
            input,
            rois,
            None if no_trans else offset[: len(rois)],
            pooled_size,
            spatial_scale,
            group_size=group_size,
            part_size=part_size,
            sample_per_part=sample_per_part,
            trans_std=trans_std,
        )


class DCNv2Pooling(nn.Module):
    """Hold the arguments of :func:`dcn_v2_pooling`; the caller passes offsets."""

    def __init__(
        self,
        spatial_scale: float,
        pooled_size: int,
        output_dim: int,
        no_trans: bool,
        group_size: int = 1,
        part_size: int | None = None,
        sample_per_part: int = 4,
        trans_std: float = 0.0,
    ) -> None:
        super().__init__()
        self.spatial_scale, self.pooled_size, self.output_dim = spatial_scale, pooled_size, output_dim
        self.no_trans, self.group_size, self.sample_per_part = no_trans, group_size, sample_per_part
        self.part_size = pooled_size if part_size is None else part_size
        self.trans_std = trans_std

    def forward(self, input: Tensor, rois: Tensor, offset: Tensor) -> Tensor:
        return self._pool(input, rois, offset, self.no_trans)

    def _pool(self, input: Tensor, rois: Tensor, offset: Tensor, no_trans: bool) -> Tensor:
        return dcn_v2_pooling(
            input,
            rois,
            offset,
            self.spatial_scale,
            self.pooled_size,
            self.output_dim,
            no_trans,
            self.group_size,
            self.part_size,
            self.sample_per_part,
            self.trans_std,
        )


class DCNPooling(DCNv2Pooling):
    """The forks' layer that predicts offsets and masks: `offset_mask_fc` reads the RoIs pooled without offsets.

    Arguments are those of :class:`DCNv2Pooling`, and `deform_fc_dim`, the width of the two hidden layers. With
    `no_trans` it only pools and has no parameters.
    """

    def __init__(
        self,
        spatial_scale: float,
        pooled_size: int,
        output_dim: int,
        no_trans: bool,
        group_size: int = 1,
        part_size: int | None = None,
        sample_per_part: int = 4,
        trans_std: float = 0.0,
        deform_fc_dim: int = 1024,
    ) -> None:
        super().__init__(
            spatial_scale, pooled_size, output_dim, no_trans, group_size, part_size, sample_per_part, trans_std
        )
        self.deform_fc_dim = deform_fc_dim
        if not no_trans:
            bins = pooled_size**2
            self.offset_mask_fc = trunk(bins * output_dim, deform_fc_dim, deform_fc_dim, 3 * bins)

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:  # type: ignore[override]
        unmoved = self._pool(input, rois, input, True)
        if self.no_trans:
            return unmoved
        P = self.pooled_size
        offset, mask = self.offset_mask_fc(unmoved.flatten(1)).view(-1, 3, P, P).split((2, 1), 1)
        weight: Tensor = mask.sigmoid()
        return self._pool(input, rois, offset.contiguous(), False) * weight
