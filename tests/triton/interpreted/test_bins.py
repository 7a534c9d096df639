"""The Triton kernels for bins of whole pixels compute the right numbers: run by the interpreter, on CPU tensors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pliant.ops.roi.reference import bins as reference
from pliant.ops.roi.triton import bins as triton
from pliant.testing import ROI_CASES, TOLERANCE, RoICase, error

# NumPy's word for what a GPU does without a word.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")

BY_NAME = {case.name: case for case in ROI_CASES}
AVERAGED = RoICase("averaged", (2, 12, 7, 8), 4, (2, 3), 0.5)


def _run(op: str, t: dict[str, Tensor], case: RoICase, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output and the gradient of the input."""
    size = t["input"].shape
    last = torch._prims_common.suggest_memory_format(t["input"]) == torch.channels_last
    geometry = (case.output_size, case.spatial_scale)
    if op == "roi_pool":
        y, taken = triton.roi_pool(t["input"], t["boxes"], *geometry)
        return y, triton.roi_pool_backward(grad, size, last, t["boxes"], *geometry, taken)
    y = triton.ps_roi_pool(t["input"], t["boxes"], *geometry)
    return y, triton.ps_roi_pool_backward(grad, size, last, t["boxes"], *geometry)


def _check(op: str, t: dict[str, Tensor], case: RoICase) -> None:
    x = t["input"].double().requires_grad_()
    # Boxes are placed in float32, which the reference does with a map of float32.
    y = getattr(reference, op)(x, t["boxes"].double(), case.output_size, case.spatial_scale)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(t["input"].dtype)
    (expected,) = torch.autograd.grad(y, x, grad.double())
    output, found = _run(op, t, case, grad)
    format = torch._prims_common.suggest_memory_format(t["input"])
    for actual, exact in ((output, y), (found, expected)):
        assert actual.dtype == t["input"].dtype
        assert actual.is_contiguous(memory_format=format)
        assert error(actual, exact) < TOLERANCE[actual.dtype]


@pytest.mark.parametrize("name", ["plain", "row", "pixel", "many_bins", "none"])
def test_maxima(name: str) -> None:
    _check("roi_pool", BY_NAME[name].tensors("roi_pool"), BY_NAME[name])


@pytest.mark.parametrize("deterministic", [True, False])
def test_averages(deterministic: bool) -> None:
    torch.use_deterministic_algorithms(deterministic)
    _check("ps_roi_pool", AVERAGED.tensors("ps_roi_pool"), AVERAGED)
    torch.use_deterministic_algorithms(True)


@pytest.mark.parametrize("op", ["roi_pool", "ps_roi_pool"])
def test_low_precision_and_channels_last(op: str) -> None:
    _check(op, AVERAGED.tensors(op, torch.bfloat16, channels_last=True), AVERAGED)


@pytest.mark.parametrize("op", ["roi_pool", "ps_roi_pool"])
def test_boxes_that_are_nowhere_read_nothing(op: str) -> None:
    case = RoICase("nowhere", (2, 4, 5, 6), 7, (2, 2), 0.5)
    t = case.tensors(op)
    t["boxes"][0, 1], t["boxes"][1, 4], t["boxes"][2, 3] = math.nan, math.inf, 3e38
    t["boxes"][3, 0], t["boxes"][4, 0] = -1, 2
    t["boxes"][5, 1:] = t["boxes"][5, [3, 4, 1, 2]]
    _check(op, t, case)


def test_nan_is_the_maximum_and_of_equals_the_first_is_taken() -> None:
    x = torch.zeros(1, 2, 3, 3)
    x[0, 0, 1, 1] = math.nan
    y, taken = triton.roi_pool(x, torch.tensor([[0.0, 0, 0, 2, 2]]), (1, 1), 1.0)
    assert y.isnan().flatten().tolist() == [True, False]
    assert taken.flatten().tolist() == [4, 0]


@pytest.mark.parametrize("op", ["roi_pool", "ps_roi_pool"])
def test_no_image_and_tensors_with_gaps(op: str) -> None:
    # Boxes, and no image that they could be in.
    t = {"input": torch.empty(0, 12, 5, 6), "boxes": torch.zeros(3, 5)}
    y, gradient = _run(op, t, AVERAGED, torch.ones(3, 12 if op == "roi_pool" else 2, 2, 3))
    assert not y.any()
    assert gradient.shape == (0, 12, 5, 6)
    t = AVERAGED.tensors(op)
    y, gradient = _run(op, t, AVERAGED, torch.ones(4, 12 if op == "roi_pool" else 2, 2, 3))
    gaps = {name: torch.stack([x, x], -1)[..., 0] for name, x in t.items()}
    again, other = _run(op, gaps, AVERAGED, torch.ones(()).expand(y.shape))
    assert torch.equal(y, again) and torch.equal(gradient, other)


@pytest.mark.parametrize("op", ["roi_pool", "ps_roi_pool"])
def test_deterministic_whatever_program_runs_first(op: str, reversed_grid: Callable[[], None]) -> None:
    # Many boxes meet in every pixel, in several programs.
    case = RoICase("many", (1, 128, 2, 3), 12, (2, 2), 0.5)
    t = case.tensors(op)
    grad = torch.randn(12, 128 if op == "roi_pool" else 32, 2, 2, generator=torch.Generator().manual_seed(1))
    ordered = _run(op, t, case, grad)[1]
    torch.use_deterministic_algorithms(False)
    atomic = _run(op, t, case, grad)[1]
    reversed_grid()
    other = _run(op, t, case, grad)[1]
    torch.use_deterministic_algorithms(True)
    assert torch.equal(ordered, _run(op, t, case, grad)[1])
    # The test sees what it is about: added atomically, the order shows.
    assert not torch.equal(atomic, other)


@pytest.mark.parametrize("op", ["roi_pool", "ps_roi_pool"])
@pytest.mark.parametrize("size", [1e-30, 1e30, math.inf])
def test_integers_fit_gradients_of_any_size(op: str, size: float) -> None:
    t = AVERAGED.tensors(op)
    grad = torch.randn(4, 12 if op == "roi_pool" else 2, 2, 3, generator=torch.Generator().manual_seed(1))
    expected = _run(op, t, AVERAGED, grad)[1]
    found = _run(op, t, AVERAGED, size * grad)[1]
    if math.isinf(size):
        assert found.isnan().all()
    else:
        assert error(found, size * expected.double()) < TOLERANCE[torch.float32]
