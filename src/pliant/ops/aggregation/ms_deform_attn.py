"""Multi-scale deformable attention: the public function, its checks, and its declaration."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from pliant import _check
from pliant.ops import _declare
from pliant.ops.aggregation import reference

_OP = "ms_deform_attn"
METHODS = ("bilinear", "discrete")


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int] | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    points: Sequence[int] | None = None,
    method: str = "bilinear",
    implementation: str = "auto",
) -> Tensor:
    """Add a few weighted samples of every level of a pyramid, per query and head: multi-scale deformable attention.

    ``y[n,q,m] = Σ_l Σ_p weight[n,q,m,l,p] · x_l[n,m](location[n,q,m,l,p]·(W_l, H_l) − ½)`` with x_l sampled
    bilinearly, where x_l is ``value[n, start_l : start_l + H_l·W_l, m]`` as a map of H_l rows.

    At the edges: pixels outside a level are 0, and a sample counts when its pixel is in −1 < y < H and −1 < x < W
    (grid_sample's "zeros" with ``align_corners=False``). At integer pixels the gradient of the location is the
    right-sided one. With ``method="discrete"`` (RT-DETRv2) a sample is the pixel ``trunc(location·(W_l, H_l) + ½)``,
    each coordinate clamped into the level, and locations have no gradient. A NaN or infinite location samples nothing.
    Locations, bilinear weights and sums are float32 (float64 for float64 value), whatever the storage type. Under
    autocast, value is cast to the low precision, locations and weights are not: a location in bfloat16 is off by more
    than half a pixel on a level 168 wide.

    Args:
        value: (N, S, M, D), the pixels of all levels, D channels for each of M heads.
        spatial_shapes: (H, W) of each of L levels, as pairs of ints, or as an int64 tensor (L, 2), whose values are
            read: on a GPU that waits for the device, and torch.compile and torch.export need pairs.
        level_start_index: L, where each level begins in S, ints or an int64 tensor; None: levels follow each other.
        sampling_locations: (N, Q, M, L, P, 2), x and y in [0, 1] of the level; with `points` (N, Q, M, ΣP, 2).
        attention_weights: (N, Q, M, L, P), factor of every sample, used as given; with `points` (N, Q, M, ΣP).
        points: number of samples of each level, where these differ.
        method: "bilinear" or "discrete".
        implementation: "auto", "native" (the compiled kernel or an error) or "reference" (plain PyTorch).

    Returns:
        (N, Q, M·D) in value's dtype, contiguous, channels of the first head first. Differentiable twice in value,
        locations and weights; the backward is deterministic bit for bit.

    Raises:
        TypeError: a dtype is unsupported or not value's; only locations and weights may be float32 instead, with value
            in float16 or bfloat16.
        ValueError: a shape does not fit, a level leaves value, tensors are on different devices.
        RuntimeError: ``implementation="native"`` where there is no kernel.

    Source: Zhu et al., "Deformable DETR", ICLR 2021, equation 3; Lv et al., "RT-DETRv2", 2024 (discrete sampling).
    Argument order of the original operator, without its im2col_step.

    >>> value = torch.arange(6.0).view(1, 6, 1, 1)
    >>> locations = torch.tensor([[0.5, 0.5], [1.0, 0.5]]).view(1, 1, 1, 1, 2, 2)
    >>> ms_deform_attn(value, [(2, 3)], None, locations, torch.ones(1, 1, 1, 1, 2))
    tensor([[[4.2500]]])
    """
    if has_torch_function_variadic(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
        return _declare.handed_over(ms_deform_attn, locals())
    if method not in METHODS:
        raise ValueError(f"{_OP}: method must be one of {METHODS}, got {method!r}")
    sizes = _sizes(spatial_shapes)
    starts = _starts(level_start_index, sizes)
    each = () if points is None else _points(points, len(starts))
    return _run(
        implementation, value, sizes, starts, sampling_locations, attention_weights, each, method == "discrete"
    )  # fmt: skip


def _sizes(shapes: Tensor | Sequence[Sequence[int]]) -> list[int]:
    """Return H and W of every level, one after the other."""
    if isinstance(shapes, Tensor):
        _integers("spatial_shapes", shapes)
        if shapes.dim() != 2 or shapes.shape[1] != 2:
            got = tuple(int(n) for n in shapes.shape)
            raise ValueError(f"{_OP}: spatial_shapes must have shape (L, 2), got {got}")
        shapes = shapes.tolist()
    elif not isinstance(shapes, Sequence):
        raise TypeError(f"{_OP}: spatial_shapes must be pairs (H, W) or a tensor (L, 2), got {type(shapes).__name__}")
    if len(shapes) == 0:
        raise ValueError(f"{_OP}: spatial_shapes must name one level at least")
    found: list[int] = []
    for shape in shapes:
        found += _check.pair(_OP, "each of spatial_shapes", shape, 1)
    return found


def _starts(given: Tensor | Sequence[int] | None, sizes: Sequence[int]) -> list[int]:
    """Return where each level begins."""
    L = len(sizes) // 2
    if given is None:
        found, end = [], 0
        for H, W in zip(sizes[::2], sizes[1::2], strict=True):
            found.append(end)
            end = end + H * W
        return found
    if isinstance(given, Tensor):
        _integers("level_start_index", given)
        if given.dim() != 1:
            got = tuple(int(n) for n in given.shape)
            raise ValueError(f"{_OP}: level_start_index must have shape (L,) = ({L},), got {got}")
        given = given.tolist()
    elif not isinstance(given, Sequence) or not all(_is_integer(n) for n in given):
        raise TypeError(f"{_OP}: level_start_index must be ints, a tensor (L,) or None, got {given!r}")
    if len(given) != L:
        raise ValueError(f"{_OP}: level_start_index must have shape (L,) = ({L},), got ({len(given)},)")
    return list(given)


def _points(points: Sequence[int], L: int) -> tuple[int, ...]:
    """Return the number of samples of each level."""
    if not isinstance(points, Sequence) or not all(type(n) is int for n in points):
        raise TypeError(f"{_OP}: points must be ints, one for each level, or None, got {points!r}")
    if len(points) != L:
        raise ValueError(f"{_OP}: points must name one number for each of the {L} levels, got {tuple(points)}")
    if min(points) < 1:
        raise ValueError(f"{_OP}: points must be at least 1, got {tuple(points)}")
    return tuple(points)


def _integers(name: str, t: Tensor) -> None:
    _check.dtype(_OP, name, t, (torch.int64, torch.int32))


def _is_integer(n: object) -> bool:
    return isinstance(n, int | torch.SymInt) and not isinstance(n, bool)


def _shape(
    value: Tensor,
    spatial_shapes: Sequence[int],
    level_start_index: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    points: Sequence[int],
    discrete: bool,
) -> tuple[int, int, int]:
    """Raise unless the tensors fit each other; return the shape of the output."""
    _check.rank(_OP, "value", value, "N S M D")
    beside = {"sampling_locations": sampling_locations, "attention_weights": attention_weights}
    _check.device(_OP, "value", value, **beside)
    _check.dtype(_OP, "value", value)
    allowed = (value.dtype, torch.float32) if value.dtype in _check.LOW else (value.dtype,)
    for name, tensor in beside.items():
        _check.dtype(_OP, name, tensor, allowed)
    N, S, M, D = value.shape
    if M < 1 or D < 1:
        raise ValueError(f"{_OP}: value must have heads and channels, got {tuple(int(n) for n in value.shape)}")
    if S >= _check.LIMIT:
        raise ValueError(f"{_OP}: value must have fewer than 2³¹ pixels, got {int(S)}")
    L = len(level_start_index)
    if len(spatial_shapes) != 2 * L:
        raise ValueError(f"{_OP}: spatial_shapes and level_start_index must name the same levels")
    for level, start in enumerate(level_start_index):
        H, W = spatial_shapes[2 * level : 2 * level + 2]
        if H < 1 or W < 1 or start < 0 or start + H * W > S:
            raise ValueError(
                f"{_OP}: level {level} of {int(H)}×{int(W)} pixels from {int(start)} on does not fit into the "
                f"S = {int(S)} pixels of value"
            )
    letters = "N Q M ΣP" if points else "N Q M L P"
    _check.rank(_OP, "sampling_locations", sampling_locations, f"{letters} 2")
    Q = sampling_locations.shape[1]
    samples: tuple[int, ...] = (sum(points),) if points else (L, sampling_locations.shape[4])
    spelled = letters.replace(" ", ", ")
    size = (N, Q, M, *samples)
    _check.shape(_OP, "sampling_locations", sampling_locations, f"({spelled}, 2)", (*size, 2))
    _check.shape(_OP, "attention_weights", attention_weights, f"({spelled})", size)
    return N, Q, M * D


def _triton() -> ModuleType:
    from pliant.ops.aggregation import triton

    return triton


# Sizes of levels depend on the image and are traced where sizes are symbolic.
_run = _declare.declare(
    _OP,
    "Tensor value, SymInt[] spatial_shapes, SymInt[] level_start_index, Tensor sampling_locations, "
    "Tensor attention_weights, int[] points, bool discrete",
    _shape,
    reference.ms_deform_attn,
    _triton,
    gradients=("value", "sampling_locations", "attention_weights"),
    lowered=("value",),
    contiguous=True,
)
