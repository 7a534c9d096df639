"""Deformable convolution as mmcv, detectron2 and the DCNv2 forks call it: with numbers of groups beside the shapes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pliant.ops import deform_conv2d

Pair = int | Sequence[int]


def pair(value: Pair) -> tuple[int, int]:
    """Return `value` as (vertical, horizontal).

    Raises:
        ValueError: it is neither an int nor a pair of ints, such as ``padding="same"``.
    """
    both = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(both) != 2 or any(isinstance(one, str) for one in both):
        raise ValueError(f"kernel_size, stride, padding and dilation must be an int or a pair of ints, got {value!r}")
    return both


def convolve(
    name: str,
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    deform_groups: int,
) -> Tensor:
    """Run :func:`pliant.ops.deform_conv2d` after checking what these libraries check.

    Raises:
        ValueError: `input` is not a map with batch, or the output would be empty.
        RuntimeError: a shape does not fit; the sentence starts with `name`.
    """
    if input.dim() != 4:
        raise ValueError(f"Expected 4D tensor as input, got {input.dim()}D tensor instead.")
    (N, C, H, W), (O, Cg, Kh, Kw) = input.shape, weight.shape
    step, pad, reach = pair(stride), pair(padding), pair(dilation)
    sizes = [
        (n + 2 * p - (d * (k - 1) + 1)) // s + 1
        for n, k, s, p, d in zip((H, W), (Kh, Kw), step, pad, reach, strict=True)
    ]
    if min(sizes) < 1:
        size = "x".join(map(str, (N, O, *sizes)))
        raise ValueError(f"convolution input is too small (output would be {size})")
    if Cg * groups != C or O % groups:
        raise RuntimeError(f"{name}: invalid number of input planes, expected: {Cg * groups}, but got: {C}")
    if deform_groups < 1 or C % deform_groups:
        raise RuntimeError(f"{name}: input channels must divide deformable group size, got {C} and {deform_groups}")
    for what, tensor, count in (("offset", offset, 2), ("mask", mask, 1)):
        if tensor is None:
            continue
        if tensor.dim() != 4 or tensor.shape[1] != count * deform_groups * Kh * Kw:
            got = tuple(int(n) for n in tensor.shape)
            expected = count * deform_groups * Kh * Kw
            raise RuntimeError(f"{name}: invalid number of channels of {what}, expected: {expected}, got shape {got}")
        if list(tensor.shape[2:]) != sizes:
            raise RuntimeError(
                f"{name}: invalid spatial size of {what}, expected height: {sizes[0]} width: {sizes[1]}, but got "
                f"height: {tensor.shape[2]} width: {tensor.shape[3]}"
            )
        if tensor.shape[0] != N:
            raise RuntimeError(f"{name}: invalid batch size of {what}, expected: {N}, but got: {tensor.shape[0]}")
    try:
        return deform_conv2d(input, offset, weight, bias, step, pad, reach, mask)
    except (ValueError, TypeError) as error:
        raise RuntimeError(f"{name}: {str(error).partition(': ')[2] or error}") from error
