"""Deformable position-sensitive RoI pooling: the public function, its checks, and its declaration."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor
from torch.overrides import has_torch_function_variadic

from pliant import _check
from pliant.ops import _declare
from pliant.ops.roi import checks
from pliant.ops.roi.reference import averages

_OP = "deform_psroi_pool"


def deform_psroi_pool(
    input: Tensor,
    rois: Tensor | Sequence[Tensor],
    offset: Tensor | None,
    output_size: int,
    spatial_scale: float = 1.0,
    *,
    group_size: int = 1,
    part_size: int | None = None,
    sample_per_part: int = 4,
    trans_std: float = 0.1,
    mask: Tensor | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Average the map over the bins of every RoI, each bin in its own channels and moved by its own offset.

    ``y[r,c,b] = mask[r,b]/count · Σ_i Σ_j x[n(r),c(b), start + b·bin + (i, j)·bin/sample_per_part + Δ]`` with
    ``start = round(y1, x1)·spatial_scale − ½``, ``extent = (round(y2, x2) + 1)·spatial_scale − ½ − start``, at least
    0.1, ``bin = extent/P``, ``Δ = trans_std·extent·offset[r, class(c), part(b)]``. `round` is that of C: half away
    from zero. Channel c of bin (ph, pw) is channel ``(c·group_size + gh)·group_size + gw`` of the map with
    ``gh = floor(ph·group_size/P)``; it takes the offsets of part ``floor(ph·part_size/P)``; gw and columns likewise.

    At the edges: a sample outside ``[−½, H − ½] × [−½, W − ½]`` is left out of sum and `count`, others are moved into
    the map, where the derivative in that direction is 0; a bin without any sample is 0. At integer positions the offset
    gradient is the right-sided one. RoIs with a NaN or infinite coordinate and bins with such an offset give 0 and
    gradients 0. No gradient flows into `rois`. Coordinates, weights and sums are float32 (float64 for float64 input).
    Under autocast, input is cast to the low precision, the other tensors are not.

    Args:
        input: (N, C, H, W), the map; group_size² must divide C.
        rois: (R, 5), image index and ``x1 y1 x2 y2`` in pixels of the image; or a list of (n, 4), one per image.
            float32 or input's dtype.
        offset: (R, 2·n, part_size, part_size), channel ``2·class + {0: x, 1: y}``, in extents of the RoI times
            `trans_std`; or None. Each of the n classes owns an equal run of the output's channels.
        output_size: P, bins in each direction.
        spatial_scale: pixels of the map per pixel of the image.
        group_size: groups of channels in each direction, over which the bins are divided: usually P; 1 for none.
        part_size: offsets per class in each direction; None: P.
        sample_per_part: samples per bin in each direction.
        trans_std: factor of the offsets.
        mask: (R, 1, P, P), one factor per bin (DCNv2).
        implementation: "auto", "native" (the compiled kernel or an error) or "reference" (plain PyTorch).

    Returns:
        (R, C/group_size², P, P) in input's dtype, differentiable twice in input, offset and mask.

    Raises:
        TypeError: a dtype is unsupported or not input's; `rois` may always be float32 instead, `offset` and `mask` with
            input in float16 or bfloat16.
        ValueError: a shape does not fit, tensors are on different devices, or (on the CPU, outside of torch.compile)
            an image index is out of range; elsewhere such an RoI gives zeros and no gradient.
        RuntimeError: ``implementation="native"`` where there is no kernel.

    Source: Dai et al., "Deformable Convolutional Networks", ICCV 2017, section 2.2; the definition is that of the
    authors' DeformablePSROIPooling, also MXNet's and OpenVINO's.

    >>> import torch
    >>> x = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 4, 4)
    >>> rois = torch.tensor([[0.0, 0.0, 0.0, 3.0, 3.0]])
    >>> deform_psroi_pool(x, rois, None, 2, group_size=2)[0, 0]
    tensor([[0., 1.],
            [2., 3.]])
    """
    if has_torch_function_variadic(input, rois, offset, mask):
        return _declare.handed_over(deform_psroi_pool, locals())
    rois = checks.boxes(_OP, "rois", rois, input)
    part = output_size if part_size is None else part_size
    _check_sizes(output_size, group_size, part)
    checks.whole(_OP, "sample_per_part", sample_per_part, 1, _check.SAMPLES)
    geometry = (output_size, float(spatial_scale), group_size, part, sample_per_part, float(trans_std))
    return _run(implementation, input, rois, offset, *geometry, mask)


def _check_sizes(P: int, group: int, part: int) -> None:
    for name, value in (("output_size", P), ("group_size", group), ("part_size", part)):
        checks.whole(_OP, name, value, 1)


def _shape(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    P: int,
    scale: float,
    group: int,
    part: int,
    samples: int,
    std: float,
    mask: Tensor | None,
) -> tuple[int, int, int, int]:
    """Raise unless the tensors fit each other; return the shape of the output."""
    checks.check_map(_OP, "rois", input, rois, offset=offset, mask=mask)
    _check_sizes(P, group, part)
    C = input.shape[1]
    if C % (group * group) != 0:
        raise ValueError(f"{_OP}: group_size² = {group * group} must divide the {int(C)} channels of input")
    if offset is not None:
        _check.rank(_OP, "offset", offset, "R 2·classes part_size part_size")
        classes = max(offset.shape[1] // 2, 1)
        expected = (rois.shape[0], 2 * classes, part, part)
        _check.shape(_OP, "offset", offset, "(R, 2·classes, part_size, part_size)", expected)
        if C // (group * group) % classes != 0:
            own = int(C // (group * group))
            raise ValueError(
                f"{_OP}: the {own} channels of the output must be divisible by the {int(classes)} classes of offset"
            )
    checks.check_mask(_OP, mask, rois, P, P)
    return rois.shape[0], C // (group * group), P, P


def _triton() -> ModuleType:
    from pliant.ops.roi.triton import averages as kernels

    return kernels


_run = _declare.declare(
    _OP,
    "Tensor input, Tensor rois, Tensor? offset, SymInt output_size, float spatial_scale, SymInt group_size, "
    "SymInt part_size, SymInt sample_per_part, float trans_std, Tensor? mask",
    _shape,
    averages.deform_psroi_pool,
    _triton,
    gradients=("input", "offset", "mask"),
)
