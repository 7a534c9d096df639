"""The deformable layer that enlarges maps."""

from __future__ import annotations

import torch
from torch import Tensor

from pliant import _check
from pliant.ops.conv.deform_conv_transpose2d import deform_conv_transpose2d
from pliant.ops.conv.modules.predicting import Numbers, Predicting


class DeformConvTranspose2d(Predicting):
    """Upsample with taps moved by offsets (and weighted by a mask) that the layer predicts from its input or a guide.

    ``offset, m = conv_offset(x)``; ``mask = mask_scale·sigmoid(m)``;
    ``y = deform_conv_transpose2d(x, offset, weight, mask)``. Every input pixel has offsets of its own: the branch
    `conv_offset` has the kernel size and the dilation of the layer, keeps the input's size, and starts at zero, so that
    version 1, and version 2 with ``mask_scale=2``, start exactly equal to `nn.ConvTranspose2d` with the same weights.

    At the edges the layer follows :func:`pliant.ops.deform_conv_transpose2d`.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: Kh, Kw.
        stride: distance between the taps of adjacent input pixels in output pixels.
        padding: rows and columns cut off around the output.
        output_padding: rows and columns added at the end of the output, less than stride or dilation.
        groups: convolution groups, which must divide C and O. The offset branch is not grouped.
        bias: learn a bias (O,).
        dilation: distance between adjacent taps, of the offset branch too.
        version: 1 (offsets) or 2 (offsets and mask).
        offset_groups: G, groups of output channels with their own offsets; must divide O.
        mask_scale: factor of the sigmoid, as in :class:`DeformConv2d`.
        boundary: "zeros" or "clamp".
        guide_channels: channels of a guide on the grid of the input, that offsets and masks are predicted from.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (N, C, H, W) → (N, O, Ho, Wo), with a guide (N, guide_channels, H, W). `weight` is (C, O/groups, Kh, Kw).

    Attributes:
        offset_lr_mult: learning rate of `conv_offset` relative to the rest: 1.0 for version 1, 0.1 for version 2.

    Raises:
        TypeError: a guide is missing, or passed to a layer that takes none.
        ValueError: groups do not divide the channels, an unknown version or boundary, `mask_scale` not positive,
            `output_padding` too large.

    Source: the adjoint of Dai et al., ICCV 2017, section 2.1.

    >>> layer = DeformConvTranspose2d(16, 8, 4, stride=2, padding=1)
    >>> layer(torch.randn(1, 16, 8, 8)).shape
    torch.Size([1, 8, 16, 16])
    """

    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Numbers,
        stride: Numbers = 1,
        padding: Numbers = 0,
        output_padding: Numbers = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Numbers = 1,
        *,
        version: int = 2,
        offset_groups: int = 1,
        mask_scale: float = 2.0,
        boundary: str = "zeros",
        guide_channels: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if isinstance(padding, str):
            raise TypeError(f"DeformConvTranspose2d: padding must be an int or a pair of ints, got {padding!r}")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, version=version,
            offset_groups=offset_groups, mask_scale=mask_scale, boundary=boundary, guide_channels=guide_channels,
            device=device, dtype=dtype,
        )  # fmt: skip
        self.output_padding = _check.numbers("DeformConvTranspose2d", "output_padding", output_padding, 0, 2)
        for more, s, d in zip(self.output_padding, self.stride, self.dilation, strict=True):
            if more >= max(s, d):
                raise ValueError(
                    "DeformConvTranspose2d: output_padding must be less than stride or dilation, got "
                    f"{self.output_padding} with stride {self.stride} and dilation {self.dilation}"
                )

    def _convolve(self, input: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        return deform_conv_transpose2d(
            input,
            offset,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.output_padding,
            self.dilation,
            mask,
            groups=self.groups,
            boundary=self.boundary,
        )

    def map_size(self, input: Tensor) -> tuple[int, ...]:
        """Return the size of the map that is written to, from the padded map that the branch reads."""
        geometry = zip(
            input.shape[2:], self.branch_extra, self.stride, self.padding, self.dilation, self.kernel_size,
            self.output_padding, strict=True,
        )  # fmt: skip
        return tuple((n - e - 1) * s - 2 * p + d * (k - 1) + 1 + more for n, e, s, p, d, k, more in geometry)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, output_padding={self.output_padding}"
