"""Position-sensitive RoIAlign: the public function, its checks, and its declaration."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor
from torch.overrides import has_torch_function_variadic

from pliant import _check
from pliant.ops import _declare
from pliant.ops.roi import checks
from pliant.ops.roi.reference import averages

_OP = "ps_roi_align"


def ps_roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    *,
    implementation: str = "auto",
) -> Tensor:
    """Average the map over the bins of every box at bilinear samples, each bin in its own channels.

    ``y[r,c,ph,pw]`` is bin (ph, pw) of channel ``(c·Ph + ph)·Pw + pw`` of :func:`roi_align` with ``aligned=True``.

    At the edges the operator follows :func:`roi_align`. A box without samples (of no area or inverted, with
    ``sampling_ratio ≤ 0``) gives 0, where torchvision gives NaN.

    Args:
        input: (N, C, H, W), the map; Ph·Pw must divide C.
        boxes: (R, 5), image index and ``x1 y1 x2 y2`` in pixels of the image; or a list of (n, 4), one per image.
            float32 or input's dtype.
        output_size: Ph, Pw, bins.
        spatial_scale: pixels of the map per pixel of the image.
        sampling_ratio: samples per bin in each direction; 0 or less: as many as the bin has pixels, rounded up.
        implementation: "auto", "native" (the compiled kernel or an error) or "reference" (plain PyTorch).

    Returns:
        (R, C/(Ph·Pw), Ph, Pw) in input's dtype, differentiable twice in input.

    Raises:
        TypeError: input's dtype is unsupported, or that of `boxes` is neither float32 nor input's.
        ValueError: a shape does not fit, tensors are on different devices, or (on the CPU, outside of torch.compile)
            an image index is out of range; elsewhere such a box gives zeros and no gradient.
        RuntimeError: ``implementation="native"`` where there is no kernel.

    Source: Li et al., "Light-Head R-CNN", 2017; Dai et al., "R-FCN", NeurIPS 2016. Arguments of
    torchvision.ops.ps_roi_align.

    >>> import torch
    >>> x = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 4, 4)
    >>> ps_roi_align(x, [torch.tensor([[0.0, 0.0, 4.0, 4.0]])], 2)[0, 0]
    tensor([[0., 1.],
            [2., 3.]])
    """
    if has_torch_function_variadic(input, boxes):
        return _declare.handed_over(ps_roi_align, locals())
    rois = checks.boxes(_OP, "boxes", boxes, input)
    size = _check.pair(_OP, "output_size", output_size, 1)
    checks.whole(_OP, "sampling_ratio", sampling_ratio, limit=_check.SAMPLES)
    return _run(implementation, input, rois, size, float(spatial_scale), sampling_ratio)


def _shape(input: Tensor, rois: Tensor, output_size: Sequence[int], *rest: object) -> tuple[int, int, int, int]:
    """Raise unless the tensors fit each other; return the shape of the output."""
    checks.check_map(_OP, "boxes", input, rois)
    C, (Ph, Pw) = input.shape[1], _check.pair(_OP, "output_size", output_size, 1)
    if C % (Ph * Pw) != 0:
        raise ValueError(f"{_OP}: the {Ph}×{Pw} = {Ph * Pw} bins must divide the {int(C)} channels of input")
    return rois.shape[0], C // (Ph * Pw), Ph, Pw


def _triton() -> ModuleType:
    from pliant.ops.roi.triton import averages as kernels

    return kernels


_run = _declare.declare(
    _OP,
    "Tensor input, Tensor rois, SymInt[] output_size, float spatial_scale, SymInt sampling_ratio",
    _shape,
    averages.ps_roi_align,
    _triton,
    gradients=("input",),
)
