"""The gradients of local response normalization: finite differences, any number of times."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from pliant import _native
from pliant.ops import local_response_norm, lrn
from pliant.testing import LRN_CASES, LRNCase, error

case_of = pytest.mark.parametrize("case", LRN_CASES, ids=lambda case: case.name)


@case_of
def test_gradcheck(case: LRNCase, implementation: str) -> None:
    shape = tuple(min(n, most) for n, most in zip(case.input, (2, 6, 3, 3, 2), strict=False))
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    function = partial(local_response_norm, implementation=implementation, **case.arguments)
    assert torch.autograd.gradcheck(function, (x,))


@pytest.mark.parametrize("region", ["channel", "spatial"])
@pytest.mark.parametrize("beta", [0.5, 0.6, 0.75, 1.0])
def test_gradgradcheck(region: str, beta: float, implementation: str) -> None:
    x = torch.randn(1, 5, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
    size = 3 if region == "spatial" else 4
    function = partial(local_response_norm, implementation=implementation, region=region)
    assert torch.autograd.gradgradcheck(lambda x: function(x, size, 0.5, beta, 2.0), (x,))


def test_third_derivative() -> None:
    def third(implementation: str) -> Tensor:
        x = torch.linspace(0.5, 2.0, 6, dtype=torch.float64).requires_grad_()
        y = lrn(x, 1, 1.0, 0.5, 0.75, implementation=implementation)
        for _ in range(3):
            (y,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
        return y

    assert error(third("native"), third("reference")) < 1e-10


def test_lrn_gradients(implementation: str) -> None:
    x = torch.randn(2, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(6)).requires_grad_()
    function = partial(lrn, implementation=implementation)
    assert torch.autograd.gradcheck(lambda x: function(x, 2, 1.0, 0.5, 0.6), (x,))
    assert torch.autograd.gradgradcheck(lambda x: function(x, 2, 1.0, 0.5, 0.6), (x,))


def test_no_gradient_where_none_is_asked_for() -> None:
    assert not local_response_norm(torch.randn(1, 4, 2, 2), 3).requires_grad


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own
def test_forward_mode_runs_on_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "_warned", set())
    x, d, small = *torch.randn(2, 3, 8, dtype=torch.float64), 1e-6
    with pytest.warns(RuntimeWarning, match="^lrn: runs on the slow reference, the kernels have no forward-mode"):
        _, tangent = torch.func.jvp(lrn, (x,), (d,))
    assert error(tangent, (lrn(x + small * d) - lrn(x - small * d)) / (2 * small)) < 1e-6
