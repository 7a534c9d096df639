"""Position-sensitive RoI pooling: the public function, its checks, and its declaration."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor
from torch.overrides import has_torch_function_variadic

from pliant import _check
from pliant.ops import _declare
from pliant.ops.roi import checks
from pliant.ops.roi.reference import bins

_OP = "ps_roi_pool"


def ps_roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    *,
    implementation: str = "auto",
) -> Tensor:
    """Average the map over the bins of every box, each bin of whole pixels and in its own channels.

    ``y[r,c,ph,pw] = mean x[n(r), (c·Ph + ph)·Pw + pw, i, j]`` over rows
    ``floor(ph·h/Ph) ≤ i − top < ceil((ph + 1)·h/Ph)`` and columns likewise, with ``top = round(y1·spatial_scale)`` and
    ``h = max(round(y2·spatial_scale) − top, 1)``; round is C's, half away from zero.

    At the edges: pixels outside the map are neither added nor counted, and a bin without pixels is 0. The last row and
    column of the map belong to it; the forward of torchvision leaves them out, its backward does not. An inverted box
    is one pixel large. Boxes with a NaN or infinite coordinate give 0 and no gradient. No gradient flows into `boxes`.
    Boxes are placed and sums are taken in float32 (float64 for float64 input). Under autocast, input is cast to the low
    precision.

    Args:
        input: (N, C, H, W), the map; Ph·Pw must divide C.
        boxes: (R, 5), image index and ``x1 y1 x2 y2`` in pixels of the image; or a list of (n, 4), one per image.
            float32 or input's dtype.
        output_size: Ph, Pw, bins.
        spatial_scale: pixels of the map per pixel of the image.
        implementation: "auto", "native" (the compiled kernel or an error) or "reference" (plain PyTorch).

    Returns:
        (R, C/(Ph·Pw), Ph, Pw) in input's dtype, differentiable in input; the backward is deterministic bit for bit,
        for any number of threads.

    Raises:
        TypeError: input's dtype is unsupported, or that of `boxes` is neither float32 nor input's.
        ValueError: a shape does not fit, tensors are on different devices, or (on the CPU, outside of torch.compile)
            an image index is out of range; elsewhere such a box gives zeros and no gradient.
        RuntimeError: ``implementation="native"`` where there is no kernel.

    Source: Dai et al., "R-FCN", NeurIPS 2016, equation 1. Arguments of torchvision.ops.ps_roi_pool.

    >>> import torch
    >>> x = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 4, 4)
    >>> ps_roi_pool(x, [torch.tensor([[0.0, 0.0, 4.0, 4.0]])], 2)[0, 0]
    tensor([[0., 1.],
            [2., 3.]])
    """
    if has_torch_function_variadic(input, boxes):
        return _declare.handed_over(ps_roi_pool, locals())
    rois = checks.boxes(_OP, "boxes", boxes, input)
    size = _check.pair(_OP, "output_size", output_size, 1)
    return _run(implementation, input, rois, size, float(spatial_scale))


def _shape(input: Tensor, rois: Tensor, output_size: Sequence[int], *rest: object) -> tuple[int, ...]:
    """Raise unless the tensors fit each other; return the shape of the output."""
    checks.check_map(_OP, "boxes", input, rois)
    C, (Ph, Pw) = input.shape[1], _check.pair(_OP, "output_size", output_size, 1)
    if C % (Ph * Pw) != 0:
        raise ValueError(
            f"{_OP}: the {int(Ph)}×{int(Pw)} = {int(Ph * Pw)} bins must divide the {int(C)} channels of input"
        )
    return rois.shape[0], C // (Ph * Pw), Ph, Pw


def _triton() -> ModuleType:
    from pliant.ops.roi.triton import bins as kernels

    return kernels


_run = _declare.declare(
    _OP,
    "Tensor input, Tensor rois, SymInt[] output_size, float spatial_scale",
    _shape,
    bins.ps_roi_pool,
    _triton,
    gradients=("input",),
    forgotten="input",
    linear=True,
)
