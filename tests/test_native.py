"""The short cut to the kernels: taken when it should be, and the same result as the long way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pliant import _check, _native
from pliant.ops import deform_conv2d, local_response_norm, lrn

pytestmark = pytest.mark.skipif(_native.path is None, reason="there are no kernels")


@pytest.fixture
def tensors() -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = ((1, 4, 5, 6), (1, 18, 5, 6), (3, 4, 3, 3))
    return [torch.randn(shape, generator=random).requires_grad_() for shape in shapes]


@pytest.fixture
def no_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("went the long way")

    monkeypatch.setattr(_native, "chosen", refuse)


@pytest.mark.usefixtures("no_long_way")
def test_eager_calls_take_it(tensors: list[Tensor]) -> None:
    x, offset, weight = tensors
    y = deform_conv2d(x, offset, weight, padding=1)
    assert all(g is not None for g in torch.autograd.grad(y.sum(), tensors))
    assert local_response_norm(x, 3).requires_grad and lrn(x).requires_grad
    with torch.no_grad():
        assert not deform_conv2d(x, offset, weight, padding=1).requires_grad
        assert not local_response_norm(x, 3).requires_grad
    with torch.inference_mode():
        assert deform_conv2d(x, offset, weight, padding=1).is_inference()


@pytest.mark.usefixtures("no_long_way")
def test_autocast_and_transforms_do_not(tensors: list[Tensor]) -> None:
    x, offset, weight = tensors
    with torch.autocast("cpu"), pytest.raises(AssertionError, match="long way"):
        deform_conv2d(x, offset, weight, padding=1)
    with pytest.raises(AssertionError, match="long way"):
        torch.func.grad(lambda t: local_response_norm(t, 3).sum())(x)
    with pytest.raises(AssertionError, match="long way"):
        deform_conv2d(x, offset, weight, padding=1, implementation="native")
    with pytest.raises(AssertionError, match="long way"), FakeTensorMode():
        deform_conv2d(torch.zeros(1, 4, 5, 6), torch.zeros(1, 18, 5, 6), torch.zeros(3, 4, 3, 3), padding=1)
    with pytest.raises(AssertionError, match="long way"):
        deform_conv2d(*(t.to("meta") for t in tensors), padding=1)


def test_both_ways_give_the_same_bits_in_every_derivative(tensors: list[Tensor]) -> None:
    def derivatives(implementation: str) -> list[Tensor]:
        y = deform_conv2d(*tensors, padding=1, implementation=implementation)
        y = local_response_norm(y, 3, implementation=implementation)
        first = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), tensors)
        return [y, *first, *second]

    for a, b in zip(derivatives("auto"), derivatives("native"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("no_long_way")
def test_what_the_kernel_refuses_goes_to_the_checks(tensors: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(_check, "rank", lambda *arguments: asked.append(arguments))
    with pytest.raises((ValueError, AssertionError)):
        deform_conv2d(tensors[0], tensors[1][:, :9], tensors[2], padding=1)
    assert asked


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
def test_a_trace_holds_the_operator_itself(tensors: list[Tensor]) -> None:
    traced = torch.jit.trace(lambda *t: deform_conv2d(*t, padding=1), tuple(t.detach() for t in tensors))
    assert "pliant::deform_conv2d" in str(traced.graph)
    assert torch.equal(traced(*tensors), deform_conv2d(*tensors, padding=1))
