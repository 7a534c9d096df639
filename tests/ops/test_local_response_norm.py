"""Local response normalization: every implementation against independent ones, known values, properties, edges."""

from __future__ import annotations

import copy
import doctest
import importlib
import math
import pickle
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode

from pliant import _native
from pliant.nn import LocalResponseNorm
from pliant.ops import local_response_norm, lrn
from pliant.testing import LRN_CASES, TOLERANCE, LRNCase, error

IMPLEMENTATIONS = ("native", "reference")
DTYPES = tuple(TOLERANCE)
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
case_of = pytest.mark.parametrize("case", LRN_CASES, ids=lambda case: case.name)
every = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


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


@every
@case_of
def test_matches_one_value_at_a_time(case: LRNCase, implementation: str) -> None:
    x = case.tensors(torch.float64)["input"]
    expected = spatial_oracle(x, case) if case.region == "spatial" else oracle(x, case)
    assert error(local_response_norm(x, implementation=implementation, **case.arguments), expected) < 1e-12


@every
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


@every
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


@every
def test_alexnet_in_both_conventions(implementation: str) -> None:
    x = 30 * torch.randn(2, 5, 6, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    last = lrn(x, 2, 2.0, 1e-4, 0.75, implementation=implementation)
    first = local_response_norm(x.movedim(-1, 1), 5, 5e-4, 0.75, 2.0, implementation=implementation)
    assert error(last.movedim(-1, 1), first) < 1e-15


@every
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


# Kernel against reference: dtypes, layouts, gradients


@case_of
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("channels_last", [False, True])
def test_kernel_matches_reference(case: LRNCase, dtype: torch.dtype, channels_last: bool) -> None:
    if channels_last and len(case.input) not in CHANNELS_LAST:
        channels_last = False
    t = case.tensors(dtype, channels_last=channels_last)
    output, grad = both(local_response_norm, t["input"], t["grad"], implementation="native", **case.arguments)
    exact = both(
        local_response_norm, t["input"].double(), t["grad"].double(), implementation="reference", **case.arguments
    )
    assert output.dtype == grad.dtype == dtype
    assert error(output, exact[0]) < TOLERANCE[dtype]
    assert error(grad, exact[1]) < TOLERANCE[dtype]
    if channels_last:
        assert output.stride() == grad.stride() == t["input"].stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_reference_matches_itself_in_float64(dtype: torch.dtype) -> None:
    for case in LRN_CASES:
        t = case.tensors(dtype)
        output, grad = both(local_response_norm, **t, implementation="reference", **case.arguments)
        wide = {name: x.double() for name, x in t.items()}
        exact = both(local_response_norm, **wide, implementation="reference", **case.arguments)
        assert output.dtype == dtype
        assert error(output, exact[0]) < TOLERANCE[dtype]
        assert error(grad, exact[1]) < TOLERANCE[dtype]


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


# Derivatives


@every
@case_of
def test_gradcheck(case: LRNCase, implementation: str) -> None:
    shape = tuple(min(n, most) for n, most in zip(case.input, (2, 6, 3, 3, 2), strict=False))
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    function = partial(local_response_norm, implementation=implementation, **case.arguments)
    assert torch.autograd.gradcheck(function, (x,))


@every
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


@every
def test_lrn_gradients(implementation: str) -> None:
    x = torch.randn(2, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(6)).requires_grad_()
    function = partial(lrn, implementation=implementation)
    assert torch.autograd.gradcheck(lambda x: function(x, 2, 1.0, 0.5, 0.6), (x,))
    assert torch.autograd.gradgradcheck(lambda x: function(x, 2, 1.0, 0.5, 0.6), (x,))


def test_no_gradient_where_none_is_asked_for() -> None:
    assert not local_response_norm(torch.randn(1, 4, 2, 2), 3).requires_grad


# Properties


@case_of
@pytest.mark.parametrize("channels_last", [False, True])
def test_same_bits_every_time_in_every_batch_with_any_threads(case: LRNCase, channels_last: bool) -> None:
    if channels_last and len(case.input) not in CHANNELS_LAST:
        channels_last = False
    N = 40
    wide = LRNCase("", (N, *case.input[1:]))
    t = wide.tensors(torch.float32, channels_last=channels_last)
    function = partial(local_response_norm, implementation="native", **case.arguments)
    torch.set_num_threads(1)
    expected = both(function, **t)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(both(function, **t), expected, strict=True))
    for n in (0, 1, N - 1):
        one = {name: x[n : n + 1] for name, x in t.items()}
        if channels_last:
            one = {name: x.contiguous(memory_format=CHANNELS_LAST[x.dim()]) for name, x in one.items()}
        assert all(torch.equal(a, b[n : n + 1]) for a, b in zip(both(function, **one), expected, strict=True))


@every
def test_scale_invariance_without_bias(implementation: str) -> None:
    """With k = 0 and beta = 0.5 the output does not depend on the input's scale: a full window is RMSNorm."""
    x = torch.randn(3, 8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    function = partial(local_response_norm, beta=0.5, k=0.0, implementation=implementation)
    assert error(function(1000 * x, 3, 1.0), function(x, 3, 1.0)) < 1e-14
    rms = lrn(x, 8, 1e-8, 1 / 5, 0.5, implementation=implementation)
    assert error(rms, F.rms_norm(x, (5,), eps=1e-8)) < 1e-12


# Edges


@every
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (0, 0), (2, 3, 4, 0)])
def test_empty(shape: tuple[int, ...], implementation: str) -> None:
    for region in ("channel", "spatial") if len(shape) > 2 else ("channel",):
        x = torch.empty(shape, requires_grad=True)
        y = local_response_norm(x, 3, region=region, implementation=implementation)
        (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        if first.requires_grad:
            first.sum().backward()
        assert y.shape == first.shape == shape


@every
@pytest.mark.parametrize("beta", [0.5, 0.6, 0.75, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_zero_over_zero_is_nan(dtype: torch.dtype, beta: float, implementation: str) -> None:
    x = torch.zeros(1, 40, dtype=dtype)
    x[0, 7] = 2
    y = lrn(x, 2, 0.0, 1.0, beta, implementation=implementation)[0]
    inside = torch.arange(40).sub(7).abs() <= 2
    assert torch.equal(y.isnan(), ~inside)
    assert (y[inside & (torch.arange(40) != 7)] == 0).all()
    assert math.isclose(float(y[7]), 2 ** (1 - 2 * beta), rel_tol=4e-3)


@every
@pytest.mark.parametrize("beta", [0.5, 0.6, 0.75, 1.0])
@pytest.mark.parametrize("channels_last", [False, True])
def test_nan_and_infinity_stay_in_their_windows(beta: float, channels_last: bool, implementation: str) -> None:
    x = torch.randn(1, 24, 5, 5)
    x[0, 6, 2, 2], x[0, 17, 2, 2] = math.nan, math.inf
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    clean = torch.where(x.isfinite(), x, 0)
    function = partial(local_response_norm, size=5, beta=beta, implementation=implementation)
    y, expected = function(x), function(clean)
    channel = torch.arange(24)
    touched = (channel - 6).abs() <= 2
    flooded = (channel - 17).abs() <= 2
    column = y[0, :, 2, 2]
    assert column[touched].isnan().all()
    # S is infinite: what is finite becomes 0, infinity over infinity is NaN.
    assert (column[flooded & (channel != 17)] == 0).all()
    assert column[17].isnan()
    expected[0, touched | flooded, 2, 2] = column[touched | flooded]
    assert torch.equal(y.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("beta", [0.5, 0.6, 0.75, 1.0, 2.0])
@pytest.mark.parametrize("k", [-2.0, 0.0, 1e-42, 1e38])
def test_kernel_follows_ieee_where_the_reference_does(beta: float, k: float) -> None:
    """Negative, zero, denormal and overflowing divisors: the same NaNs and infinities, the same numbers between."""
    x = torch.tensor([0.0, -0.0, 1e-30, 1e-19, 1.0, -3.0, 1e18, -1e25, 3e38], dtype=torch.float32)
    x = x.repeat(30).view(1, -1, 1)
    y = local_response_norm(x, 1, 1.0, beta, k, implementation="native")
    expected = local_response_norm(x, 1, 1.0, beta, k, implementation="reference")
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.allclose(y.nan_to_num(), expected.nan_to_num(), rtol=1e-5, atol=1e-44)


@every
def test_float16_does_not_overflow(implementation: str) -> None:
    x = torch.full((1, 5, 2, 2), 1000.0, dtype=torch.float16)
    y = local_response_norm(x, 5, 1e-4, 0.75, 1.0, implementation=implementation)
    # Window sums of 3, 4, 5, 4, 3 squares of 10⁶.
    expected = torch.tensor([1000 / (1 + 1e-4 / 5 * n * 1e6) ** 0.75 for n in (3, 4, 5, 4, 3)], dtype=torch.float64)
    assert error(y[0, :, 0, 0], expected) < TOLERANCE[torch.float16]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own
def test_forward_mode_runs_on_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "_warned", set())
    x, d, small = *torch.randn(2, 3, 8, dtype=torch.float64), 1e-6
    with pytest.warns(RuntimeWarning, match="^lrn: runs on the slow reference, the kernels have no forward-mode"):
        _, tangent = torch.func.jvp(lrn, (x,), (d,))
    assert error(tangent, (lrn(x + small * d) - lrn(x - small * d)) / (2 * small)) < 1e-6


def test_large_values_do_not_leak() -> None:
    """A running sum would carry the rounding error of one huge value through all later channels."""
    x = torch.ones(1, 200, 3, 3)
    x[:, 3] = 1e12
    y = local_response_norm(x, 5, 1.0, 0.5, 0.0)
    assert torch.equal(y[:, 6:198], torch.ones(1, 192, 3, 3))


def test_beyond_two_billion_elements_on_meta() -> None:
    x = torch.empty(3, 96, 4096, 4096, device="meta", requires_grad=True)
    y = local_response_norm(x, 5)
    y.sum().backward()
    assert y.shape == x.shape
    assert x.grad is not None
    assert x.grad.shape == x.shape


# Inside torch


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


# Bad input

IMAGE = torch.zeros(2, 6, 5, 4)
ERRORS: list[tuple[Callable[..., Tensor], dict[str, Any], type[Exception], str]] = [
    (
        local_response_norm,
        {"input": torch.zeros(5), "size": 3},
        ValueError,
        "local_response_norm: input must have shape (N, C, ...), got (5,)",
    ),
    (
        local_response_norm,
        {"input": torch.zeros(2, 6, 5), "size": 3, "region": "spatial"},
        ValueError,
        "local_response_norm: input must have shape (N, C, ..., H, W), got (2, 6, 5)",
    ),
    (
        local_response_norm,
        {"input": IMAGE, "size": 0},
        ValueError,
        "local_response_norm: size must be at least 1, got 0",
    ),
    (
        local_response_norm,
        {"input": IMAGE, "size": 4, "region": "spatial"},
        ValueError,
        "local_response_norm: size must be odd with region='spatial', got 4",
    ),
    (
        local_response_norm,
        {"input": IMAGE, "size": 3, "region": "within"},
        ValueError,
        "local_response_norm: region must be one of ('channel', 'spatial'), got 'within'",
    ),
    (
        local_response_norm,
        {"input": IMAGE, "size": 3, "even": "both"},
        ValueError,
        "local_response_norm: even must be one of ('left', 'right'), got 'both'",
    ),
    (
        local_response_norm,
        {"input": IMAGE, "size": 3, "implementation": "fast"},
        ValueError,
        "local_response_norm: implementation must be one of ('auto', 'native', 'reference'), got 'fast'",
    ),
    (
        local_response_norm,
        {"input": IMAGE.int(), "size": 3},
        TypeError,
        "local_response_norm: input must be float32 or float64 or bfloat16 or float16, got int32",
    ),
    (
        local_response_norm,
        {"input": IMAGE, "size": 2.5},
        TypeError,
        "local_response_norm: size must be an int, got 2.5",
    ),
    (
        local_response_norm,
        {"input": IMAGE, "size": 3, "beta": "steep"},
        TypeError,
        "local_response_norm: beta must be a number, got 'steep'",
    ),
    (lrn, {"input": torch.zeros(())}, ValueError, "lrn: input must have shape (..., C), got ()"),
    (lrn, {"input": IMAGE, "depth_radius": -1}, ValueError, "lrn: depth_radius must be at least 0, got -1"),
    (lrn, {"input": IMAGE, "depth_radius": "2"}, TypeError, "lrn: depth_radius must be an int, got '2'"),
    (lrn, {"input": IMAGE, "alpha": None}, TypeError, "lrn: alpha must be a number, got None"),
    (
        lrn,
        {"input": IMAGE.bool()},
        TypeError,
        "lrn: input must be float32 or float64 or bfloat16 or float16, got bool",
    ),
]
bad = pytest.mark.parametrize(("function", "arguments", "kind", "sentence"), ERRORS, ids=[e[3][:60] for e in ERRORS])


@bad
def test_error_sentences(
    function: Callable[..., Tensor], arguments: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind) as eager:
        function(**arguments)
    assert str(eager.value) == sentence

    with FakeTensorMode() as mode, pytest.raises(kind) as fake:
        function(**{name: mode.from_tensor(a) if isinstance(a, Tensor) else a for name, a in arguments.items()})
    assert str(fake.value) == sentence

    torch._dynamo.reset()
    compiled = torch.compile(function, backend="eager", dynamic=True)
    with pytest.raises(kind) as traced:
        compiled(**arguments)
    assert str(traced.value) == sentence


def test_what_is_not_a_tensor() -> None:
    with pytest.raises(TypeError, match=r"^local_response_norm: input must be a tensor, got list$"):
        local_response_norm([1.0], 3)  # type: ignore[arg-type]


# The layer


def test_layer() -> None:
    layer = LocalResponseNorm(3, 0.5, 0.6, 2.0, region="spatial", even="right")
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(layer(x), local_response_norm(x, 3, 0.5, 0.6, 2.0, region="spatial"))
    assert repr(layer) == "LocalResponseNorm(3, alpha=0.5, beta=0.6, k=2.0, region='spatial', even='right')"
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    assert not list(layer.parameters())
    assert not layer.state_dict()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"size": 0}, "LocalResponseNorm: size must be at least 1, got 0"),
        ({"size": 4, "region": "spatial"}, "LocalResponseNorm: size must be odd with region='spatial', got 4"),
        ({"size": 3, "region": "sp"}, "LocalResponseNorm: region must be one of"),
        ({"size": 4, "even": "up"}, "LocalResponseNorm: even must be one of"),
    ],
)
def test_the_layer_checks_when_it_is_made(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        LocalResponseNorm(**arguments)


@pytest.mark.parametrize("module", ["op", "module"])
def test_docstrings(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"pliant.ops.local_response_norm.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
