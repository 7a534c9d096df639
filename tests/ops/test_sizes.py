"""Sizes whose products overflow: raw operators refuse them, or memory is not enough; no process ends.

Expanded tensors have as many elements as 64 bits count in the memory of one, and tensors without images may have any
other sizes.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pliant import _native, ops

pytestmark = pytest.mark.skipif(_native.path is None, reason="there are no kernels")
assert ops  # which declares the raw operators

RAW = torch.ops.pliant
K, M, G = 1 << 10, 1 << 20, 1 << 30
BOXES = torch.zeros(1, 5)


def of(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros([min(n, 1) for n in shape], dtype=dtype).expand(shape)


def conv(name: str, input: Tensor, offset: Tensor, weight: Tensor, stride: int = 1, padding: int = 0) -> None:
    each = input.dim() - 2
    getattr(RAW, name)(input, offset, weight, None, [stride] * each, [padding] * each, [1] * each, None, False)


def transposed_backward(grad: Tensor, input: Tensor, offset: Tensor, weight: Tensor, groups: int) -> None:
    one, none = [1, 1], [0, 0]
    RAW.deform_conv_transpose2d_backward(grad, input, offset, weight, one, none, none, one, None, groups, False, 1)


def dcn(*tensors: Tensor, kernel: int, padding: int, groups: int = 1) -> None:
    call = RAW.dcnv3 if len(tensors) == 3 else RAW.dcnv4
    call(*tensors, [kernel] * 2, [1, 1], [padding] * 2, [1, 1], groups, 1.0, False)


# What is called, and the argument that does not fit.
REFUSED: dict[str, tuple[str, Callable[[], None]]] = {
    # The bytes of an image are 0 modulo 2⁶⁴; the images that are read at a time were divided by them.
    "line": ("input", lambda: conv("deform_conv1d", of(1, 2 * G, G), of(1, 1, 1), of(1, 2 * G, 1), stride=G)),
    "volume": (
        "input",
        lambda: conv("deform_conv3d", of(1, 16, M, M, M // 4), of(1, 3, 1, 1, 1), of(1, 16, 1, 1, 1), stride=G),
    ),
    "groups × weight": (
        "input",
        lambda: transposed_backward(of(1, G * G, 2, 2), of(1, G, 2, 2), of(1, 2, 2, 2), of(G, G, 1, 1), G),
    ),
    "filters": ("weight", lambda: conv("deform_conv2d", of(0, G, 2, 2), of(0, 2, 2, 2), of(2 * G, G, 1, 1))),
    "offset groups × positions": (
        "offset",
        lambda: conv("deform_conv2d", of(0, G, 1, 1), of(0, 2 * G, K - 1, K - 1), of(1, G, 1, 1), padding=K // 2 - 1),
    ),
    "roi_pool of no image": (
        "input_size",
        lambda: RAW.roi_pool_backward(
            of(0, 1, 1, 1), [0, 1, 2 * G, 2 * G], False, BOXES[:0], [1, 1], 1.0, of(0, 1, 1, 1, dtype=torch.int32)
        ),
    ),
    "ps_roi_pool of no image": (
        "input_size",
        lambda: RAW.ps_roi_pool_backward(of(0, 4 * G * G, 1, 1), [0, 4 * G * G, 1, 1], False, BOXES[:0], [1, 1], 1.0),
    ),
    "roi_align of no image": ("input", lambda: RAW.roi_align(of(0, G, G, G), BOXES, [1, 1], 1.0, 0, True)),
    "bins": ("output_size", lambda: RAW.roi_align(of(1, G, 1, 1), BOXES[:0], [G, G], 1.0, 0, True)),
    # Refused before anything is stored for each tap.
    "taps of dcnv3": (
        "kernel_size",
        lambda: dcn(of(1, 1, 1, 1), of(1, 2, 2, 2), of(1, 2, 2, 1), kernel=4 * K, padding=2 * K),
    ),
    "taps of dcnv4": ("kernel_size", lambda: dcn(of(1, 1, 1, 1), of(1, 2, 2, 8), kernel=4 * K, padding=2 * K)),
    "groups × taps of dcnv3": (
        "offset",
        lambda: dcn(
            of(0, 1, 1, G), of(0, K - 1, K - 1, 2 * G), of(0, K - 1, K - 1, G), kernel=1, padding=K // 2 - 1, groups=G
        ),
    ),
    "groups × taps of dcnv4": (
        "offset_mask",
        lambda: dcn(of(0, 1, 1, G), of(0, K - 1, K - 1, 3 * G), kernel=1, padding=K // 2 - 1, groups=G),
    ),
    "heads": (
        "value",
        lambda: RAW.ms_deform_attn(
            of(0, 1, 2 * G, 2 * G), [1, 1], [0], of(0, 1, 2 * G, 1, 1, 2), of(0, 1, 2 * G, 1, 1), [], False
        ),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_sizes_beyond_all_memory_are_refused(name: str) -> None:
    named, call = REFUSED[name]
    with pytest.raises(RuntimeError, match=f": {named} does not fit the other arguments"):
        call()


@pytest.mark.parametrize("operator", ["roi_align", "ps_roi_align", "deform_roi_pool", "roi_pool", "ps_roi_pool"])
def test_a_copy_beyond_all_memory_is_an_error(operator: str) -> None:
    # The copy of 2⁶¹ values of eight bytes would have 0 bytes.
    given = [of(1 << 61, 1, 1, 1, dtype=torch.float64), BOXES.double(), *([None] * (operator == "deform_roi_pool"))]
    more = {"roi_align": (0, True), "ps_roi_align": (0,), "deform_roi_pool": (0, 0.1, None)}.get(operator, ())
    with pytest.raises(MemoryError):
        getattr(RAW, operator)(*given, [1, 1], 1.0, *more)
