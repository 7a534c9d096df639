"""The Triton kernels of attention, DCNv3 and DCNv4 compute the right numbers: interpreted, on CPU tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pliant.ops.aggregation import reference, triton
from pliant.testing import DCN_CASES, MS_DEFORM_ATTN_CASES, TOLERANCE, DCNCase, MSDeformAttnCase, error

# NumPy's word for what a GPU does without a word.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")

CASES: dict[str, Any] = {case.name: case for case in MS_DEFORM_ATTN_CASES}
MAPS: dict[str, Any] = {case.name: case for case in DCN_CASES}


def _arguments(op: str, case: Any, t: dict[str, Tensor], discrete: bool = False) -> tuple[Any, ...]:
    """Return the arguments of the raw operator."""
    if op == "ms_deform_attn":
        sizes = [n for shape in case.shapes for n in shape]
        ends = [sum(H * W for H, W in case.shapes[:level]) for level in range(len(case.shapes))]
        points = () if isinstance(case.points, int) else case.points
        value, *others = t.values()
        return value, sizes, case.starts or ends, *others, points, discrete
    names = ("stride", "padding", "dilation", "groups", "offset_scale", "remove_center")
    return *t.values(), case.kernel, *(getattr(case, name) for name in names)


def _tensors(op: str, case: Any, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return case.tensors(dtype) if op == "ms_deform_attn" else case.tensors(op, dtype)


def _expected(op: str, case: Any, t: dict[str, Tensor], discrete: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the float64 output, a gradient to send back (rounded like the map), and what comes back."""
    exact = {name: x.double().requires_grad_() for name, x in t.items()}
    y = getattr(reference, op)(*_arguments(op, case, exact, discrete))
    random = torch.Generator().manual_seed(1)
    grad = torch.randn(y.shape, generator=random, dtype=torch.float64).to(next(iter(t.values())).dtype)
    return y.detach(), grad, list(torch.autograd.grad(y, list(exact.values()), grad.double()))


def _check(op: str, case: Any, t: dict[str, Tensor], discrete: bool = False) -> None:
    y, grad, expected = _expected(op, case, t, discrete)
    arguments = _arguments(op, case, t, discrete)
    output = getattr(triton, op)(*arguments)
    assert output.dtype == grad.dtype and output.is_contiguous()
    assert error(output, y) < TOLERANCE[output.dtype]
    everything = (1 << len(t)) - 1
    found = getattr(triton, f"{op}_backward")(grad, *arguments, everything)
    for (name, x), g, right in zip(t.items(), found, expected, strict=True):
        assert g.dtype == x.dtype and g.is_contiguous()
        assert error(g, right) < TOLERANCE[g.dtype], name
    for bit in range(len(t)):
        some = getattr(triton, f"{op}_backward")(grad, *arguments, 1 << bit)
        assert torch.equal(some[bit], found[bit])
        assert all(g.shape == (0,) for i, g in enumerate(some) if i != bit)


# Each rule once; the whole matrix runs in the workflows only.
QUICK = ("ragged", "reordered", "none", "crooked", "one_pixel")


def _every(cases: dict[str, Any]) -> Callable[..., Any]:
    marked = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in cases]
    return pytest.mark.parametrize("name", marked)


@pytest.mark.parametrize("discrete", [False, True])
@_every(CASES)
def test_attention_matches_the_float64_reference(name: str, discrete: bool) -> None:
    _check("ms_deform_attn", CASES[name], _tensors("ms_deform_attn", CASES[name]), discrete)


@pytest.mark.parametrize("op", ["dcnv3", "dcnv4"])
@_every(MAPS)
def test_dcn_matches_the_float64_reference(name: str, op: str) -> None:
    _check(op, MAPS[name], _tensors(op, MAPS[name]))


@pytest.mark.usefixtures("atomic")
@pytest.mark.parametrize(("op", "dtype"), [("ms_deform_attn", torch.bfloat16), ("dcnv3", torch.float16)])
def test_low_precision(op: str, dtype: torch.dtype) -> None:
    case = CASES["pyramid"] if op == "ms_deform_attn" else MAPS["crooked"]
    _check(op, case, _tensors(op, case, dtype))


@pytest.mark.usefixtures("atomic")
def test_float32_locations_beside_bfloat16() -> None:
    case = CASES["reordered"]
    t = case.tensors()
    t["value"] = t["value"].bfloat16()
    _check("ms_deform_attn", case, t)


@pytest.mark.usefixtures("atomic")
@pytest.mark.parametrize("discrete", [False, True])
def test_locations_that_are_nowhere_read_nothing(discrete: bool) -> None:
    case = MSDeformAttnCase("nowhere", (1, 12, 1, 3), 4, ((3, 4),), 2)
    t = case.tensors()
    hostile = [math.nan, math.inf, -math.inf, 1e30, -1e30, 1e19, -1e12, 1e9]
    t["sampling_locations"].view(8, 2)[:, 0] = torch.tensor(hostile)
    _check("ms_deform_attn", case, t, discrete)


@pytest.mark.parametrize("op", ["ms_deform_attn", "dcnv4"])
def test_no_image_and_tensors_with_gaps(op: str) -> None:
    small = MSDeformAttnCase("few", (1, 8, 2, 3), 3, ((2, 3), (1, 2)), 1)
    case: Any = small if op == "ms_deform_attn" else DCNCase("few", (1, 3, 4, 4), 2, (2, 1))
    t = _tensors(op, case)
    gaps = {name: torch.stack([x, x], -1)[..., 0] for name, x in t.items()}
    _check(op, case, gaps)
    _check(op, case.empty(), _tensors(op, case.empty()))


def test_the_order_of_programs_changes_no_bit(reversed_grid: Callable[[], None]) -> None:
    case = MSDeformAttnCase("order", (1, 12, 1, 3), 700, ((3, 4),), 1)
    t = case.tensors()
    arguments = _arguments("ms_deform_attn", case, t)
    grad = torch.randn(1, 700, 3, generator=torch.Generator().manual_seed(1))
    expected = triton.ms_deform_attn_backward(grad, *arguments, 0b111)
    reversed_grid()
    for found, right in zip(triton.ms_deform_attn_backward(grad, *arguments, 0b111), expected, strict=True):
        assert torch.equal(found, right)
