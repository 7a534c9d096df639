"""RoIAlign: the public function, its checks, and its declaration."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor
from torch.overrides import has_torch_function_variadic

from pliant import _check
from pliant.ops import _declare
from pliant.ops.roi import checks
from pliant.ops.roi.reference import averages

_OP = "roi_align"


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    implementation: str = "auto",
) -> Tensor:
    """Average the map over the bins of every box, at bilinear samples.

    ``y[r,c,b] = 1/(gh·gw) · Σ_i Σ_j x[n(r),c, start + b·bin + (i + ½, j + ½)·bin/g]`` with
    ``start = (y1, x1)·spatial_scale``, ``bin = (y2 − y1, x2 − x1)·spatial_scale/(Ph, Pw)`` and ``g = sampling_ratio``,
    or ``ceil(bin)`` where that is not positive. ``aligned=True`` moves boxes by −½, so that pixel p of the image lies
    at ``(p + ½)·spatial_scale − ½`` of the map; ``aligned=False`` makes them at least one pixel large instead.

    At the edges: a sample outside ``[−1, H] × [−1, W]`` is 0 and still counts in the average; others are moved into
    the map. Boxes without samples (of no area or inverted, with ``aligned=True`` and ``sampling_ratio ≤ 0``) and boxes
    with a NaN or infinite coordinate give 0 and no gradient. No gradient flows into `boxes`. Coordinates, weights and
    sums are float32 (float64 for float64 input). Under autocast, input is cast to the low precision.

    Args:
        input: (N, C, H, W), the map; channels_last is kept, without copies.
        boxes: (R, 5), image index and ``x1 y1 x2 y2`` in pixels of the image; or a list of (n, 4), one per image.
            float32 or input's dtype.
        output_size: Ph, Pw, bins.
        spatial_scale: pixels of the map per pixel of the image.
        sampling_ratio: samples per bin in each direction; 0 or less: as many as the bin has pixels, rounded up.
        aligned: whether boxes are moved by half a pixel; else no extent is below one pixel.
        implementation: "auto", "native" (the compiled kernel or an error) or "reference" (plain PyTorch).

    Returns:
        (R, C, Ph, Pw) in input's dtype, differentiable twice in input.

    Raises:
        TypeError: input's dtype is unsupported, or that of `boxes` is neither float32 nor input's.
        ValueError: a shape does not fit, tensors are on different devices, or (on the CPU, outside of torch.compile)
            an image index is out of range; elsewhere such a box gives zeros and no gradient.
        RuntimeError: ``implementation="native"`` where there is no kernel.

    Source: He et al., "Mask R-CNN", ICCV 2017, section 3. Arguments of torchvision.ops.roi_align.

    >>> import torch
    >>> x = torch.arange(16.0).view(1, 1, 4, 4)
    >>> roi_align(x, [torch.tensor([[0.0, 0.0, 4.0, 4.0]])], 2, aligned=True)[0, 0]
    tensor([[ 2.5000,  4.5000],
            [10.5000, 12.5000]])
    """
    if has_torch_function_variadic(input, boxes):
        return _declare.handed_over(roi_align, locals())
    rois = checks.boxes(_OP, "boxes", boxes, input)
    size = _check.pair(_OP, "output_size", output_size, 1)
    checks.whole(_OP, "sampling_ratio", sampling_ratio, limit=_check.SAMPLES)
    return _run(implementation, input, rois, size, float(spatial_scale), sampling_ratio, bool(aligned))


def _shape(input: Tensor, rois: Tensor, output_size: Sequence[int], *rest: object) -> tuple[int, ...]:
    """Raise unless the tensors fit each other; return the shape of the output."""
    checks.check_map(_OP, "boxes", input, rois)
    return rois.shape[0], input.shape[1], *_check.pair(_OP, "output_size", output_size, 1)


def _triton() -> ModuleType:
    from pliant.ops.roi.triton import averages as kernels

    return kernels


_run = _declare.declare(
    _OP,
    "Tensor input, Tensor rois, SymInt[] output_size, float spatial_scale, SymInt sampling_ratio, bool aligned",
    _shape,
    averages.roi_align,
    _triton,
    gradients=("input",),
)
