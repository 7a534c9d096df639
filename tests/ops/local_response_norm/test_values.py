"""Local response normalization: other implementations, memory of any strides, powers, properties."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode

from pliant.nn import LocalResponseNorm
from pliant.ops import local_response_norm, lrn
from pliant.testing import LRN_CASES, LRNCase, error

case_of = pytest.mark.parametrize("case", LRN_CASES, ids=lambda case: case.name)


def oracle(x: Tensor, case: LRNCase) -> Tensor:
    """Normalize one value at a time along dimension 1, in float64: no code shared with the library."""
    before, after = case.size // 2, (case.size - 1) // 2
    if case.even == "right":
        before, after = after, before
    x, out = x.double(), torch.empty(x.shape, dtype=torch.float64)
    for c in range(x.shape[1]):
        window = x[:, max(0, c - before) : c + after + 1]
        out[:, c] = x[:, c] / (case.k + case.alpha / case.size * (window**2).sum(1)) ** case.beta
    return out


def spatial_oracle(x: Tensor, case: LRNCase) -> Tensor:
    """Normalize one pixel at a time: Caffe's WITHIN_CHANNEL."""
    H, W = x.shape[-2:]
    half = case.size // 2
    x, out = x.double(), torch.empty(x.shape, dtype=torch.float64)
    for h in range(H):
        for w in range(W):
            window = x[..., max(0, h - half) : h + half + 1, max(0, w - half) : w + half + 1]
            energy = case.alpha / case.size**2 * (window**2).sum((-2, -1))
            out[..., h, w] = x[..., h, w] / (case.k + energy) ** case.beta
    return out


def both(function: Callable[..., Tensor], input: Tensor, grad: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:
    """Return the output and the input's gradient."""
    input = input.detach().requires_grad_()
    output = function(input, **arguments)
    output.backward(grad)
    assert input.grad is not None
    return output.detach(), input.grad


# Against independent implementations


@case_of
def test_matches_one_value_at_a_time(case: LRNCase, implementation: str) -> None:
    x = case.tensors(torch.float64)["input"]
    expected = spatial_oracle(x, case) if case.region == "spatial" else oracle(x, case)
    assert error(local_response_norm(x, implementation=implementation, **case.arguments), expected) < 1e-12


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 30])
def test_matches_pytorch(size: int, implementation: str) -> None:
    x = torch.randn(2, 7, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for shape in ((2, 7, 5, 6), (2, 7, 30), (2, 7, 1, 5, 6)):
        view = x.reshape(shape)
        expected = F.local_response_norm(view, size, 0.3, 0.75, 1.5)
        assert error(local_response_norm(view, size, 0.3, 0.75, 1.5, implementation=implementation), expected) < 1e-12


def test_defaults_are_pytorchs() -> None:
    x = 100 * torch.randn(2, 7, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert error(local_response_norm(x, 5), F.local_response_norm(x, 5)) < 1e-12
    assert error(LocalResponseNorm(5)(x), torch.nn.LocalResponseNorm(5)(x)) < 1e-12


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 100])
def test_matches_tensorflows_definition(radius: int, implementation: str) -> None:
    x = torch.randn(3, 2, 4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.empty_like(x)
    for d in range(9):
        squares = x[..., max(0, d - radius) : d + radius + 1] ** 2
        expected[..., d] = x[..., d] / (0.7 + 0.2 * squares.sum(-1)) ** 0.6
    assert error(lrn(x, radius, 0.7, 0.2, 0.6, implementation=implementation), expected) < 1e-12


def test_lrn_defaults_are_tensorflows() -> None:
    x = torch.randn(4, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(lrn(x), lrn(x, depth_radius=5, bias=1.0, alpha=1.0, beta=0.5))


def test_alexnet_in_both_conventions(implementation: str) -> None:
    x = 30 * torch.randn(2, 5, 6, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    last = lrn(x, 2, 2.0, 1e-4, 0.75, implementation=implementation)
    first = local_response_norm(x.movedim(-1, 1), 5, 5e-4, 0.75, 2.0, implementation=implementation)
    assert error(last.movedim(-1, 1), first) < 1e-15


def test_the_notes_own_example(implementation: str) -> None:
    x = torch.arange(1.0, 33.0).view(2, 2, 2, 4)
    y = lrn(x, depth_radius=2, bias=0, alpha=1, beta=1, implementation=implementation)
    assert torch.allclose(y[0, 0, 0], torch.tensor([0.0714286, 0.0666667, 0.1, 0.1379310]), rtol=0, atol=5e-8)
    assert torch.allclose(y[1, 1, 1], torch.tensor([0.0107328, 0.0080515, 0.0083199, 0.0110919]), rtol=0, atol=5e-8)


def test_onnx_is_the_mirror_of_pytorch() -> None:
    x = torch.randn(2, 9, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    mirrored = local_response_norm(x.flip(1), 4, 0.5, even="right").flip(1)
    assert error(mirrored, local_response_norm(x, 4, 0.5)) < 1e-15
    assert error(local_response_norm(x, 4, 0.5, even="right"), local_response_norm(x, 4, 0.5)) > 1e-3


# Memory of any strides, powers, properties


@case_of
def test_any_strides(case: LRNCase) -> None:
    t = case.tensors(torch.float64)
    expected = both(local_response_norm, **t, **case.arguments)
    last = len(case.input) - 1
    layouts: list[Callable[[Tensor], Tensor]] = [
        lambda x: torch.stack([x, x + 1], -1)[..., 0],  # every second element
        lambda x: x.transpose(1, last).contiguous().transpose(1, last),
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: x.transpose(0, last).contiguous().transpose(0, last),
        lambda x: torch.cat([x + 1, x], 1)[:, x.shape[1] :],
    ]
    for change in layouts:
        for other in layouts:
            x = change(t["input"])
            got = both(local_response_norm, x, other(t["grad"]), **case.arguments)
            assert got[0].stride() == torch.empty_like(x).stride()
            assert error(got[0], expected[0]) < 1e-14
            assert error(got[1], expected[1]) < 1e-12


def test_spatial_regions_lie_in_memory_in_any_order() -> None:
    case = LRNCase("", (2, 3, 5, 7), 3, region="spatial")
    t = case.tensors(torch.float64)
    expected = both(local_response_norm, **t, **case.arguments)
    for order in ((0, 1, 3, 2), (0, 3, 2, 1), (2, 0, 1, 3), (3, 1, 2, 0), (2, 3, 0, 1)):
        back = [order.index(d) for d in range(4)]
        x = t["input"].permute(order).contiguous().permute(back)
        got = both(local_response_norm, x, t["grad"], **case.arguments)
        assert got[0].stride() == x.stride()
        assert error(got[0], expected[0]) < 1e-14
        assert error(got[1], expected[1]) < 1e-12


def test_fake_kernels_know_the_strides_of_every_layout() -> None:
    x = torch.randn(2, 4, 5, 6)
    for change in (lambda x: x[..., ::2], lambda x: x[:, :3], lambda x: x.mT, lambda x: x.permute(2, 3, 0, 1)):
        view = change(x)
        with FakeTensorMode() as mode:
            fake = local_response_norm(mode.from_tensor(view), 3)
        assert fake.stride() == local_response_norm(view, 3).stride()


def test_expanded_input_and_gradient() -> None:
    x = torch.randn(1, 6, 1, 1, dtype=torch.float64).requires_grad_()
    local_response_norm(x.expand(2, 6, 4, 5), 3, 0.5).sum().backward()
    grad, x.grad = x.grad, None
    local_response_norm(x.expand(2, 6, 4, 5), 3, 0.5, implementation="reference").sum().backward()
    assert grad is not None
    assert x.grad is not None
    assert error(grad, x.grad) < 1e-12


@pytest.mark.parametrize("beta", [0.1, 0.3, 0.6, 0.9, 1.7, 4.0])
def test_general_powers_are_exact_over_all_magnitudes(beta: float) -> None:
    # One channel, k = 0 and alpha = 1: S = x², y = x·|x|^−2β.
    x = torch.logspace(-18, 18, 20001, dtype=torch.float64).float().view(1, 1, -1)
    exact = x.double() ** (1 - 2 * beta)
    normal = ((x.double() ** (-2 * beta)).log2().abs() < 125) & (exact.log2().abs() < 125)
    y = local_response_norm(x, 1, 1.0, beta, 0.0, implementation="native").double()
    assert normal.sum() > 4000
    assert ((y - exact).abs() / exact)[normal].max() < 1e-6


def test_scale_invariance_without_bias(implementation: str) -> None:
    """With k = 0 and beta = 0.5 the output does not depend on the input's scale: a full window is RMSNorm."""
    x = torch.randn(3, 8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    function = partial(local_response_norm, beta=0.5, k=0.0, implementation=implementation)
    assert error(function(1000 * x, 3, 1.0), function(x, 3, 1.0)) < 1e-14
    rms = lrn(x, 8, 1e-8, 1 / 5, 0.5, implementation=implementation)
    assert error(rms, F.rms_norm(x, (5,), eps=1e-8)) < 1e-12


def test_arguments_may_change_under_compile() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(local_response_norm, fullgraph=True, dynamic=True, backend="aot_eager")
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    for size, alpha, beta, k in ((3, 0.5, 0.75, 1.0), (4, 0.25, 0.5, 2.0), (5, 0.125, 0.6, 3.0)):
        assert error(compiled(x, size, alpha, beta, k), local_response_norm(x, size, alpha, beta, k)) < 1e-12
