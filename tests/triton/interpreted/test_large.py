"""Beyond 2³¹ elements the kernels count in 64 bits: on tensors of 4 GB, of which a few pages are ever touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from pliant.ops.conv import reference
from pliant.ops.conv import triton as convolution
from pliant.ops.local_response_norm import triton as normalization
from pliant.ops.roi.reference import averages as align
from pliant.ops.roi.triton import averages, bins
from pliant.testing import TOLERANCE, error

# A row of pixels, each of so many channels that the last two lie past 2³¹; what is computed reads none but these.
C, W = 512, 2**22 + 2
PIXELS = [0, 1, W - 2, W - 1]


@pytest.fixture(autouse=True)
def _checked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The interpreter asserts that no sum, difference or product of integers leaves its bits; no memory is filled."""
    builder = interpreter.interpreter_builder
    monkeypatch.setattr(builder, "options", dataclasses.replace(builder.options, debug=True))
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(True)


def _zeros(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return zeros that take no memory before they are written."""
    size = torch.empty((), dtype=dtype).element_size()
    return torch.from_numpy(np.zeros(int(np.prod(shape)) * size, np.uint8)).view(dtype).view(shape)


@pytest.fixture(scope="module")
def row() -> Tensor:
    """(1, C, 1, W), channels_last."""
    x = _zeros(1, 1, W, C)
    x[0, 0, PIXELS] = torch.randn(4, C, generator=torch.Generator().manual_seed(0)).bfloat16()
    return x.permute(0, 3, 1, 2)


def test_deform_conv2d(row: Tensor) -> None:
    random = torch.Generator().manual_seed(1)
    weight, grad = torch.randn(16, C, 1, 1, generator=random).bfloat16(), torch.randn(1, 16, 1, 2, generator=random)
    # Two positions, at the first pixel and at the last but one.
    offset, mask = torch.full((1, 2, 1, 2), 0.5), torch.rand(1, 1, 1, 2, generator=random)
    geometry = ((1, W - 2), (0, 0), (1, 1))
    exact = [t.double().requires_grad_() for t in (row[..., PIXELS], offset, weight, mask)]
    y = reference.deform_conv(*exact[:3], None, (1, 2), (0, 0), (1, 1), exact[3], False)
    assert error(convolution.deform_conv2d(row, offset, weight, None, *geometry, mask, False), y) < TOLERANCE[row.dtype]
    expected = torch.autograd.grad(y, exact, grad.bfloat16().double())
    grad = grad.bfloat16().contiguous(memory_format=torch.channels_last)
    arguments = (grad, row, offset, weight, *geometry, mask, False)
    _, *found = convolution.deform_conv2d_backward(*arguments, 0b1110)
    for actual, e in zip(found, expected[1:], strict=True):
        assert error(actual, e) < TOLERANCE[row.dtype]
    # The input's gradient as it is added up, before it is rounded, which would write all of it.
    sums, none = _zeros(1, 1, W, C, dtype=torch.float32), row.new_empty(0)
    shape = convolution.Shape(row, offset, weight, mask, (1, W - 2, 0, 0, 1, 1), False)
    convolution.samples_launch(shape, grad, sums, None, none, none).run(row.device)
    assert error(sums[0, 0, PIXELS].mT[None, :, None], expected[0]) < TOLERANCE[row.dtype]


def test_roi_align(row: Tensor) -> None:
    def boxes(last: int) -> Tensor:
        return torch.tensor([[0, 0.0, 0, 1, 1], [0, last, 0, last + 1, 1]])

    few = row[..., PIXELS].double().requires_grad_()
    # One sample a bin, between the pixels.
    y = align.roi_align(few, boxes(2).double(), (1, 1), 1.0, 1, False)
    assert error(averages.forward("roi_align", row, boxes(W - 2), (1, 1), 1.0, 1, False), y) < TOLERANCE[row.dtype]
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    (expected,) = torch.autograd.grad(y, few, grad.double())
    sums = _zeros(1, 1, W, 1, C, dtype=torch.float32)
    pool = averages.POOLS["roi_align"](row, boxes(W - 2), (1, 1), 1.0, 1, False)
    averages.backward_launch(pool, grad, sums, None, None, None).run(row.device)
    assert error(sums[0, 0, PIXELS, 0].mT[None, :, None], expected) < TOLERANCE[row.dtype]


def test_bins_of_whole_pixels(row: Tensor) -> None:
    boxes = torch.tensor([[0, W - 2.0, 0, W - 1.0, 0]])
    y, taken = bins.roi_pool(row, boxes, (1, 1), 1.0)
    last = row[0, :, 0, PIXELS[2:]]
    assert torch.equal(y[0, :, 0, 0], last.amax(1))
    assert torch.equal(taken[0, :, 0, 0].long(), W - 2 + last.argmax(1))
    means = bins.ps_roi_pool(row, boxes + torch.tensor([0, 0, 0, 1, 1]), (1, 1), 1.0)
    assert error(means[0, :, 0, 0], last.double().mean(1)) < 4e-3
    sums = _zeros(1, 1, W, C, dtype=torch.float32).permute(0, 3, 1, 2)
    bins.back_launch(y, boxes, taken, sums, True, None).run(row.device)
    found = sums[0, :, 0, W - 2 :]
    assert torch.equal(found.sum(1), y[0, :, 0, 0].float())
    assert torch.equal(found.abs().argmax(1), last.argmax(1))


def test_local_response_norm() -> None:
    # Places of one line lie far apart.
    D, inner = 5, 2**29
    x, y = _zeros(1, D, inner), _zeros(1, D, inner)
    x[0, :, :2] = torch.randn(D, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    few = x[..., :2].double().requires_grad_()
    window = (1, 2, 1, False, 0.5, 0.75, 2.0)
    S = 2.0 + 0.5 * sum(torch.nn.functional.pad(few.square(), (0, 0, 2, 1))[:, i : i + D] for i in range(4))
    exact = few * S**-0.75
    (expected,) = torch.autograd.grad(exact, few, few.detach())
    for grad, e in ((None, exact), (x, expected)):
        (launch,) = normalization.launches(grad, x, y, *window)
        assert launch.arguments["INDEX"] == tl.int64
        # The first of very many programs.
        launch._replace(grid=(1, 1, 1)).run(x.device)
        assert error(y[..., :2], e) < TOLERANCE[x.dtype]


def test_lines_that_are_long_and_several_to_a_block() -> None:
    for lines, index in ((2, tl.int32), (8, tl.int64)):
        x = torch.empty(lines, 2**29, device="meta", dtype=torch.bfloat16)
        (launch,) = normalization.launches(None, x, x, 1, 2, 2, False, 1.0, 0.75, 1.0)
        assert launch.arguments["INDEX"] == index
