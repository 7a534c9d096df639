"""The gradients of RoI pooling over bins of whole pixels: finite differences, any number of times, only where asked."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from pliant import _native, ops
from pliant.testing import PS_ROI_CASES, ROI_CASES, TOLERANCE, RoICase, error

Operator = Callable[..., Tensor]
NAMES = ("roi_pool", "ps_roi_pool")
CASES = (
    RoICase("plain", (2, 8, 5, 4), 5, (2, 2)),
    RoICase("crooked", (1, 6, 4, 7), 4, (2, 3), 0.25),
    RoICase("larger", (2, 4, 3, 3), 3, (4, 1), 1.0),
)
case_of = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def _inputs(case: RoICase) -> tuple[Tensor, tuple[object, ...]]:
    t = case.tensors("roi_pool", torch.float64)
    # Values of N(0, 1) are further apart than the step of finite differences: no maximum changes hands.
    return t["input"].requires_grad_(), (t["boxes"], case.output_size, case.spatial_scale)


@case_of
def test_gradcheck(pool: Operator, case: RoICase) -> None:
    x, arguments = _inputs(case)
    assert gradcheck(lambda x: pool(x, *arguments), (x,))


@case_of
def test_gradgradcheck(pool: Operator, case: RoICase) -> None:
    x, arguments = _inputs(case)
    assert gradgradcheck(lambda x: pool(x, *arguments) ** 2, (x,))


@case_of
@pytest.mark.parametrize("name", NAMES)
def test_third_derivative(name: str, case: RoICase) -> None:
    def third(implementation: str) -> Tensor:
        x, arguments = _inputs(case)
        y = getattr(ops, name)(x, *arguments, implementation=implementation)
        (first,) = torch.autograd.grad((y**4).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((first**2).sum(), x, create_graph=True)
        (found,) = torch.autograd.grad(second.square().sum(), x)
        return found

    expected = third("reference")
    assert expected.any()
    assert error(third("native"), expected) < 1e-10


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_second_derivative_in_every_dtype(name: str, dtype: torch.dtype) -> None:
    case = PS_ROI_CASES[0]

    t = case.tensors("roi_pool", dtype)
    wanted = torch.randn(case.input, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)

    def second(implementation: str, work: torch.dtype) -> Tensor:
        x = t["input"].to(work).requires_grad_()
        y = getattr(ops, name)(x, t["boxes"], case.output_size, case.spatial_scale, implementation=implementation)
        above = torch.ones_like(y).requires_grad_()
        (first,) = torch.autograd.grad(y, x, above, create_graph=True)
        (found,) = torch.autograd.grad(first, above, wanted.to(work))
        return found

    found = second("native", dtype)
    assert found.dtype == dtype
    expected = second("reference", torch.float64 if dtype == torch.float64 else torch.float32)
    assert expected.any()
    assert error(found, expected) < TOLERANCE[dtype]


def test_no_gradient_where_none_is_asked_for(pool: Operator) -> None:
    x, arguments = _inputs(CASES[0])
    assert pool(x.detach(), *arguments).grad_fn is None
    with torch.no_grad():
        assert not pool(x, *arguments).requires_grad
    boxes = arguments[0].detach().requires_grad_()
    y = pool(x, boxes, *arguments[1:])
    y.sum().backward()
    assert boxes.grad is None or not boxes.grad.any()


def test_expanded_and_strided_gradients(pool: Operator) -> None:
    case = PS_ROI_CASES[0]
    t = case.tensors("roi_pool", torch.float64)
    x = t["input"].requires_grad_()
    y = pool(x, t["boxes"], case.output_size, case.spatial_scale)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    (expected,) = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
    for above in (
        one.expand_as(y),
        torch.ones_like(y).transpose(1, 3).contiguous().transpose(1, 3),
        torch.ones(*y.shape, 2, dtype=torch.float64)[..., 0],
        torch.ones_like(y, memory_format=torch.channels_last),
    ):
        (gradient,) = torch.autograd.grad(y, x, above, retain_graph=True)
        assert error(gradient, expected) < 1e-14


def test_the_map_may_change_after_the_forward() -> None:
    # It is not kept: memory for a batch of maps is saved, and nothing is read of it again.
    for name in NAMES:
        x, arguments = _inputs(CASES[0])
        y = getattr(ops, name)(x * 1, *arguments, implementation="native")
        (expected,) = torch.autograd.grad(y.sum(), x)
        held = x * 1
        y = getattr(ops, name)(held, *arguments, implementation="native")
        held.data.zero_()
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(gradient, expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("name", NAMES)
def test_forward_mode_and_torch_func_run_on_the_reference(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(_native, "_warned", set())
    case = ROI_CASES[0] if name == "roi_pool" else PS_ROI_CASES[0]
    t = case.tensors("roi_pool", torch.float64)
    of = functools.partial(
        getattr(ops, name), boxes=t["boxes"], output_size=case.output_size, spatial_scale=case.spatial_scale
    )
    x, d, small = t["input"], torch.randn_like(t["input"]), 1e-6
    with pytest.warns(RuntimeWarning, match=f"^{name}: runs on the slow reference, the kernels have no forward-mode"):
        _, tangent = torch.func.jvp(of, (x,), (d,))
    assert error(tangent, (of(x + small * d) - of(x - small * d)) / (2 * small)) < 1e-6
    with pytest.warns(RuntimeWarning, match=rf"^{name}: runs on the slow reference, torch\.func does not see"):
        found = torch.func.grad(lambda x: of(x).square().sum())(x)
    leaf = x.detach().requires_grad_()
    (expected,) = torch.autograd.grad(of(leaf).square().sum(), leaf)
    assert error(found, expected) < 1e-12
