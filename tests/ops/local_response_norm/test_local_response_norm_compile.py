"""Local response normalization inside torch's machinery: schema, fake tensors, torch.compile, autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from pliant.ops import local_response_norm, lrn
from pliant.testing import LRN_CASES, error


def both(function: Callable[..., Tensor], input: Tensor, grad: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:
    """Return the output and the input's gradient."""
    input = input.detach().requires_grad_()
    output = function(input, **arguments)
    output.backward(grad)
    assert input.grad is not None
    return output.detach(), input.grad


@pytest.mark.parametrize(
    ("name", "channels_last"), [("alexnet", False), ("even_right", True), ("spatial", False), ("general", True)]
)
def test_opcheck(name: str, channels_last: bool) -> None:
    (case,) = (case for case in LRN_CASES if case.name == name)
    t = case.tensors(torch.float64, channels_last=channels_last)
    x, grad = t["input"].requires_grad_(), t["grad"].requires_grad_()
    before, after = case.size // 2, (case.size - 1) // 2
    window = (1, before, after, case.region == "spatial", 0.1, case.beta, case.k)
    torch.library.opcheck(torch.ops.pliant.local_response_norm, (x, *window))
    torch.library.opcheck(torch.ops.pliant.local_response_norm_backward, (grad, x, *window))


def test_fake_kernels_know_the_strides_of_every_layout() -> None:
    x = torch.randn(2, 4, 5, 6)
    for change in (lambda x: x[..., ::2], lambda x: x[:, :3], lambda x: x.mT, lambda x: x.permute(2, 3, 0, 1)):
        view = change(x)
        with FakeTensorMode() as mode:
            fake = local_response_norm(mode.from_tensor(view), 3)
        assert fake.stride() == local_response_norm(view, 3).stride()


def _network(x: Tensor) -> Tensor:
    y = local_response_norm(x.relu(), 5, 5e-4, 0.75, 2.0) + local_response_norm(x, 3, region="spatial", even="right")
    return lrn(y, 2, alpha=0.5) * 2


def test_compiles_whole_and_dynamic() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(_network, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 6, 5, 4), (3, 9, 7, 8)):
        x = torch.randn(shape, dtype=torch.float64)
        grad = torch.randn(shape, dtype=torch.float64)
        with torch._dynamo.config.patch(error_on_recompile=shape[0] == 3):
            got = both(compiled, x, grad)
        assert all(error(a, b) < 1e-12 for a, b in zip(got, both(_network, x, grad), strict=True))


def test_arguments_may_change_under_compile() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(local_response_norm, fullgraph=True, dynamic=True, backend="aot_eager")
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    for size, alpha, beta, k in ((3, 0.5, 0.75, 1.0), (4, 0.25, 0.5, 2.0), (5, 0.125, 0.6, 3.0)):
        assert error(compiled(x, size, alpha, beta, k), local_response_norm(x, size, alpha, beta, k)) < 1e-12


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_compiles_with_inductor() -> None:
    torch._dynamo.reset()
    x, grad = torch.randn(2, 6, 5, 4), torch.randn(2, 6, 5, 4)
    got = both(torch.compile(_network, fullgraph=True), x, grad)
    assert all(error(a, b) < 1e-5 for a, b in zip(got, both(_network, x, grad), strict=True))


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_runs_in_the_low_precision(low: torch.dtype) -> None:
    x = torch.randn(2, 6, 5, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=low):
        y = local_response_norm(x, 5, 0.5)
        z = lrn(x, 2, alpha=0.5)
        assert local_response_norm(x.detach().double(), 5).dtype == torch.float64
    assert y.dtype == z.dtype == low
    assert torch.equal(y, local_response_norm(x.to(low), 5, 0.5))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
