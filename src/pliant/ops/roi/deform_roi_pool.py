"""Deformable RoI pooling: the public function, its checks, and its declaration."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor
from torch.overrides import has_torch_function_variadic

from pliant import _check
from pliant.ops import _declare
from pliant.ops.roi import checks
from pliant.ops.roi.reference import averages

_OP = "deform_roi_pool"


def deform_roi_pool(
    input: Tensor,
    rois: Tensor | Sequence[Tensor],
    offset: Tensor | None,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
    *,
    mask: Tensor | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Average the map over the bins of every RoI, each bin moved by its own offset and weighted by its mask.

    ``y[r,c,b] = mask[r,b]/(gh·gw) · Σ_i Σ_j x[n(r),c, start + b·bin + (i + ½, j + ½)·bin/g + Δ]`` with
    ``start = (y1, x1)·spatial_scale − ½``, ``extent = (y2 − y1, x2 − x1)·spatial_scale``, ``bin = extent/(Ph, Pw)``,
    ``g = sampling_ratio``, or ``ceil(bin)`` where that is not positive, and ``Δ = gamma·extent·offset[r,b]``. Without
    offsets and mask this is :func:`roi_align` with ``aligned=True``.

    At the edges: a sample outside ``[−1, H] × [−1, W]`` is 0 and still counts in the average; others are moved into
    the map, where the derivative in that direction is 0. At integer positions the offset gradient is the right-sided
    one. RoIs without samples (of no area or inverted, with ``sampling_ratio ≤ 0``), RoIs with a NaN or infinite
    coordinate and bins with such an offset give 0 and gradients 0. No gradient flows into `rois`. Coordinates, weights
    and sums are float32 (float64 for float64 input). Under autocast, input is cast to the low precision, the other
    tensors are not.

    Args:
        input: (N, C, H, W), the map; channels_last is kept, without copies.
        rois: (R, 5), image index and ``x1 y1 x2 y2`` in pixels of the image; or a list of (n, 4), one per image.
            float32 or input's dtype.
        offset: (R, 2, Ph, Pw), x first, then y, in extents of the RoI times `gamma`; or None.
        output_size: Ph, Pw, bins.
        spatial_scale: pixels of the map per pixel of the image.
        sampling_ratio: samples per bin in each direction; 0 or less: as many as the bin has pixels, rounded up.
        gamma: factor of the offsets.
        mask: (R, 1, Ph, Pw), one factor per bin (DCNv2).
        implementation: "auto", "native" (the compiled kernel or an error) or "reference" (plain PyTorch).

    Returns:
        (R, C, Ph, Pw) in input's dtype, differentiable twice in input, offset and mask.

    Raises:
        TypeError: a dtype is unsupported or not input's; `rois` may always be float32 instead, `offset` and `mask` with
            input in float16 or bfloat16.
        ValueError: a shape does not fit, tensors are on different devices, or (on the CPU, outside of torch.compile)
            an image index is out of range; elsewhere such an RoI gives zeros and no gradient.
        RuntimeError: ``implementation="native"`` where there is no kernel.

    Source: Dai et al., "Deformable Convolutional Networks", ICCV 2017, equations 5 and 6; Zhu et al., "Deformable
    ConvNets v2", CVPR 2019, equation 2; the definition is mmcv's.

    >>> import torch
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    >>> rois = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0]])
    >>> deform_roi_pool(x, rois, None, 2, sampling_ratio=2)[0, 0]
    tensor([[1.0000, 1.2500],
            [1.5000, 1.7500]])
    """
    if has_torch_function_variadic(input, rois, offset, mask):
        return _declare.handed_over(deform_roi_pool, locals())
    _check.tensors(_OP, input=input)
    rois = checks.boxes(_OP, "rois", rois, input)
    size = _check.pair(_OP, "output_size", output_size, 1)
    checks.whole(_OP, "sampling_ratio", sampling_ratio, limit=_check.SAMPLES)
    geometry = (size, float(spatial_scale), sampling_ratio, float(gamma))
    return _run(implementation, input, rois, offset, *geometry, mask)


def _shape(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    output_size: Sequence[int],
    scale: float,
    ratio: int,
    gamma: float,
    mask: Tensor | None,
) -> tuple[int, int, int, int]:
    """Raise unless the tensors fit each other; return the shape of the output."""
    checks.check_map(_OP, "rois", input, rois, offset=offset, mask=mask)
    Ph, Pw = _check.pair(_OP, "output_size", output_size, 1)
    if offset is not None:
        _check.shape(_OP, "offset", offset, "(R, 2, Ph, Pw)", (rois.shape[0], 2, Ph, Pw))
    checks.check_mask(_OP, mask, rois, Ph, Pw)
    return rois.shape[0], input.shape[1], Ph, Pw


def _triton() -> ModuleType:
    from pliant.ops.roi.triton import averages as kernels

    return kernels


_run = _declare.declare(
    _OP,
    "Tensor input, Tensor rois, Tensor? offset, SymInt[] output_size, float spatial_scale, SymInt sampling_ratio, "
    "float gamma, Tensor? mask",
    _shape,
    averages.deform_roi_pool,
    _triton,
    gradients=("input", "offset", "mask"),
)
