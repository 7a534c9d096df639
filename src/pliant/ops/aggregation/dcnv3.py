"""DCNv3, the operator of InternImage: the public function, its checks, and its declaration."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor
from torch.overrides import has_torch_function_variadic

from pliant import _check
from pliant.ops import _declare
from pliant.ops.aggregation import checks, reference

_OP = "dcnv3"


def dcnv3(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    *,
    implementation: str = "auto",
) -> Tensor:
    """Add the masked samples of every tap, each moved by its own offset, per group of channels: DCNv3.

    ``y[n,p,g] = Σ_k mask[n,p,g,k] · x[n,g](p·stride − padding + c + offset_scale·(tap_k·dilation − c + Δ))`` with
    ``Δ = offset[n,p,g,k]``,
    with ``c = ⌊dilation·(kernel_size − 1)/2⌋``, the window's centre, and x sampled bilinearly. `offset_scale` scales
    the grid of taps about the centre too. There is no weight: every sample is multiplied by one number.

    At the edges: pixels outside the map are 0 and a sample counts when −1 < y < H and −1 < x < W. A NaN or infinite
    coordinate samples nothing. At integer positions the offset gradient is the right-sided one, at −1 too, where
    padding 1 and zero offsets start; the original gives 0 there. Coordinates, bilinear weights and sums are float32
    (float64 for float64 input), whatever the storage type. Under autocast, input is cast to the low precision, offset
    and mask are not.

    Args:
        input: (N, H, W, C), the map, channels last; group g owns channels ``[g·C/G, (g + 1)·C/G)``.
        offset: (N, Ho, Wo, G·K·2), in pixels of the input; channel ``(g·K + k)·2 + {0: x, 1: y}``. Columns of taps
            come first: ``k = i·Kh + j`` is the tap in column i and row j.
        mask: (N, Ho, Wo, G·K), factor of every sample, used as given; channel ``g·K + k``.
        kernel_size: Kh, Kw; ``K = Kh·Kw``.
        stride: distance between adjacent outputs in input pixels, at least 1.
        padding: rows and columns added around the map, at least 0.
        dilation: distance between adjacent taps in input pixels, at least 1.
        groups: G, divides C.
        offset_scale: factor of offsets and taps.
        remove_center: leave out the tap in column ``⌊Kw/2⌋`` and row ``⌊Kh/2⌋``; later taps move up, and K is one less.
        implementation: "auto", "native" (the compiled kernel or an error) or "reference" (plain PyTorch).

    Returns:
        (N, Ho, Wo, C) in input's dtype, contiguous, with ``Ho = (H + 2·padding − dilation·(Kh − 1) − 1)//stride + 1``.
        Differentiable twice in input, offset and mask; the backward is deterministic bit for bit.

    Raises:
        TypeError: a dtype is unsupported or not input's; only `offset` and `mask` may be float32 instead, with input in
            float16 or bfloat16.
        ValueError: a shape does not fit, tensors are on different devices, the output would be empty.
        RuntimeError: ``implementation="native"`` where there is no kernel.

    Source: Wang et al., "InternImage", CVPR 2023, equation 2.

    >>> import torch
    >>> x = torch.arange(9.0).view(1, 3, 3, 1)
    >>> offset, mask = torch.full((1, 3, 3, 18), 0.5), torch.ones(1, 3, 3, 9)
    >>> dcnv3(x, offset, mask, 3, padding=1)[0, :, :, 0]
    tensor([[20.0000, 22.5000, 15.2500],
            [27.5000, 30.0000, 19.7500],
            [21.7500, 23.2500, 15.0000]])
    """
    if has_torch_function_variadic(input, offset, mask):
        return _declare.handed_over(dcnv3, locals())
    geometry = checks.geometry(_OP, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center)
    return _run(implementation, input, offset, mask, *geometry)


def _shape(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
) -> tuple[int, int, int, int]:
    """Raise unless the tensors fit each other; return the shape of the output."""
    K = checks.samples(_OP, kernel_size, remove_center)
    size = checks.output_size(
        _OP, input, kernel_size, stride, padding, dilation, groups, offset=offset, mask=mask
    )  # fmt: skip
    N, Ho, Wo, _ = size
    for name, tensor, letters, channels in (("offset", offset, "G·K·2", 2), ("mask", mask, "G·K", 1)):
        _check.shape(_OP, name, tensor, f"(N, Ho, Wo, {letters})", (N, Ho, Wo, groups * K * channels))
    return size


def _triton() -> ModuleType:
    from pliant.ops.aggregation import triton

    return triton


_run = _declare.declare(
    _OP,
    "Tensor input, Tensor offset, Tensor mask, int[] kernel_size, int[] stride, SymInt[] padding, int[] dilation, "
    "int groups, float offset_scale, bool remove_center",
    _shape,
    reference.dcnv3,
    _triton,
    gradients=("input", "offset", "mask"),
    contiguous=True,
)
