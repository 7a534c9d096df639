"""DCNv4, the operator of FlashInternImage: the public function, its checks, and its declaration."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor
from torch.overrides import has_torch_function_variadic

from pliant import _check
from pliant.ops import _declare
from pliant.ops.aggregation import checks, reference

_OP = "dcnv4"


def dcnv4(
    input: Tensor,
    offset_mask: Tensor,
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
    """Run :func:`dcnv3` on offsets and masks that are packed into one tensor: DCNv4.

    ``y[n,p,g] = Σ_k mask[n,p,g,k] · x[n,g](p·stride − padding + c + offset_scale·(tap_k·dilation − c + Δ))`` with
    ``Δ = offset[n,p,g,k]``,
    with ``c = ⌊dilation·(kernel_size − 1)/2⌋`` and x sampled bilinearly. Masks are any numbers, there is no softmax.

    Edges and precision are those of :func:`dcnv3`. Channels of `offset_mask` past ``G·3·K`` are not read, and their
    gradient is 0.

    Args:
        input: (N, H, W, C), the map, channels last; group g owns channels ``[g·C/G, (g + 1)·C/G)``.
        offset_mask: (N, Ho, Wo, Cp), ``Cp = ⌈G·3·K/8⌉·8``. Group g has channels ``[g·3·K, (g + 1)·3·K)``: 2·K offsets
            in pixels of the input, ``2·k + {0: x, 1: y}``, then K masks. ``k = i·Kh + j`` is the tap in column i and
            row j.
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
        Differentiable twice in input and offset_mask; the backward is deterministic bit for bit.

    Raises:
        TypeError: a dtype is unsupported or not input's; only `offset_mask` may be float32 instead, with input in
            float16 or bfloat16.
        ValueError: a shape does not fit, tensors are on different devices, the output would be empty.
        RuntimeError: ``implementation="native"`` where there is no kernel.

    Source: Xiong et al., "Efficient Deformable ConvNets", CVPR 2024, section 3.

    >>> import torch
    >>> x = torch.arange(9.0).view(1, 3, 3, 1)
    >>> packed = torch.cat([torch.full((1, 3, 3, 18), 0.5), torch.ones(1, 3, 3, 9), torch.zeros(1, 3, 3, 5)], -1)
    >>> dcnv4(x, packed, 3, padding=1)[0, :, :, 0]
    tensor([[20.0000, 22.5000, 15.2500],
            [27.5000, 30.0000, 19.7500],
            [21.7500, 23.2500, 15.0000]])
    """
    if has_torch_function_variadic(input, offset_mask):
        return _declare.handed_over(dcnv4, locals())
    geometry = checks.geometry(_OP, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center)
    return _run(implementation, input, offset_mask, *geometry)


def _shape(
    input: Tensor,
    offset_mask: Tensor,
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
        _OP, input, kernel_size, stride, padding, dilation, groups, offset_mask=offset_mask
    )  # fmt: skip
    N, Ho, Wo, _ = size
    used = groups * 3 * K
    hint = "Its channels are padded to a multiple of 8." if offset_mask.shape[-1] == used and used % 8 else ""
    _check.shape(_OP, "offset_mask", offset_mask, "(N, Ho, Wo, ⌈G·3·K/8⌉·8)", (N, Ho, Wo, -(-used // 8) * 8), hint)
    return size


def _triton() -> ModuleType:
    from pliant.ops.aggregation import triton

    return triton


_run = _declare.declare(
    _OP,
    "Tensor input, Tensor offset_mask, int[] kernel_size, int[] stride, SymInt[] padding, int[] dilation, "
    "int groups, float offset_scale, bool remove_center",
    _shape,
    reference.dcnv4,
    _triton,
    gradients=("input", "offset_mask"),
    contiguous=True,
)
