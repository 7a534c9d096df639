"""The gradients of deformable convolution: right, only those asked for, differentiable again, reproducible."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from pliant import _native
from pliant.ops import deform_conv2d
from pliant.testing import DEFORM_CONV_CASES, TOLERANCE, DeformConvCase, error

Operator = Callable[..., Tensor]
NAMES = ("input", "offset", "weight", "bias", "mask")
BY_NAME = {case.name: case for case in DEFORM_CONV_CASES}


def _gradients(deform: Operator, case: DeformConvCase, tensors: dict[str, Tensor], **options: str) -> dict[str, Tensor]:
    """Return the gradient of every tensor, and under "output" the output; the gradient above it is drawn."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    output = deform(**leaves, **case.geometry, **options)
    random = torch.Generator().manual_seed(1)
    above = torch.randn(output.shape, generator=random, dtype=torch.float64).to(output.dtype)
    # In low precision the gradient above is rounded too: the same rounded one for everybody.
    found = torch.autograd.grad(output, list(leaves.values()), above)
    return {"output": output.detach(), **dict(zip(leaves, found, strict=True))}


@functools.cache
def _expected(name: str, dtype: torch.dtype, boundary: str) -> dict[str, Tensor]:
    case = BY_NAME[name]
    leaves = {k: t.double().requires_grad_() for k, t in case.tensors(dtype).items()}
    output = deform_conv2d(**leaves, **case.geometry, boundary=boundary, implementation="reference")
    random = torch.Generator().manual_seed(1)
    above = torch.randn(output.shape, generator=random, dtype=torch.float64).to(dtype).double()
    return dict(zip(leaves, torch.autograd.grad(output, list(leaves.values()), above), strict=True))


@pytest.mark.parametrize("boundary", ["zeros", "clamp"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", DEFORM_CONV_CASES, ids=lambda case: case.name)
def test_match_the_float64_reference(deform: Operator, case: DeformConvCase, dtype: torch.dtype, boundary: str) -> None:
    tensors = case.tensors(dtype)
    found = _gradients(deform, case, tensors, boundary=boundary)
    for name, expected in _expected(case.name, dtype, boundary).items():
        assert found[name].dtype == dtype
        assert error(found[name], expected) < TOLERANCE[dtype], name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", DEFORM_CONV_CASES, ids=lambda case: case.name)
def test_match_in_channels_last(deform: Operator, case: DeformConvCase, dtype: torch.dtype) -> None:
    tensors = {
        name: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t
        for name, t in case.tensors(dtype).items()
    }
    found = _gradients(deform, case, tensors)
    for name, expected in _expected(case.name, dtype, "zeros").items():
        assert error(found[name], expected) < TOLERANCE[dtype], name


def test_match_for_strided_tensors_and_an_expanded_gradient(deform: Operator) -> None:
    case = BY_NAME["crooked"]
    whole = case.tensors(torch.float64)
    strided = {name: torch.stack([t, t], -1)[..., 0] for name, t in whole.items()}
    results = []
    for tensors in (whole, strided):
        leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        deform(**leaves, **case.geometry).sum().backward()
        results.append([t.grad for t in leaves.values()])
    for a, b in zip(*results, strict=True):
        assert error(a, b) < 1e-12


@pytest.mark.parametrize("wide", [("offset",), ("mask",), ("offset", "mask")], ids="+".join)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_gradient_has_its_own_tensors_dtype(deform: Operator, dtype: torch.dtype, wide: tuple[str, ...]) -> None:
    case = BY_NAME["crooked"]
    tensors = {name: t if name in wide else t.to(dtype) for name, t in case.tensors().items()}
    found = _gradients(deform, case, tensors)
    exact = {name: t.double().requires_grad_() for name, t in tensors.items()}
    output = deform_conv2d(**exact, **case.geometry, implementation="reference")
    above = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    above = above.to(dtype).double()
    for name, expected in zip(exact, torch.autograd.grad(output, list(exact.values()), above), strict=True):
        assert found[name].dtype == tensors[name].dtype
        assert error(found[name], expected) < TOLERANCE[dtype], name


@pytest.mark.parametrize("asked", [s for n in (1, 2, 4) for s in combinations(NAMES, n)], ids="+".join)
def test_only_those_asked_for(deform: Operator, asked: tuple[str, ...]) -> None:
    case = BY_NAME["crooked"]
    tensors = case.tensors()
    every = _gradients(deform, case, tensors)
    leaves = {name: t.requires_grad_(name in asked) for name, t in tensors.items()}
    output = deform(**leaves, **case.geometry)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float())
    for name, t in leaves.items():
        if name in asked:
            assert error(t.grad, every[name]) < 1e-6, name
        else:
            assert t.grad is None


@pytest.mark.parametrize("wanted", range(1, 16))
def test_the_kernel_computes_only_what_the_bits_ask_for(wanted: int) -> None:
    case = BY_NAME["plain"]
    t = case.tensors()
    above = torch.ones(case.input[0], case.out_channels, *case.output)
    found = torch.ops.pliant.deform_conv2d_backward(
        above, t["input"], t["offset"], t["weight"], (1, 1), (1, 1), (1, 1), t["mask"], False, wanted
    )
    for i, (name, gradient) in enumerate(zip(("input", "offset", "weight", "mask"), found, strict=True)):
        assert gradient.shape == (t[name].shape if wanted >> i & 1 else (0,)), name
        assert gradient.isfinite().all(), name


def test_nothing_is_kept_for_backward_without_gradients(deform: Operator) -> None:
    tensors = BY_NAME["plain"].tensors()
    assert deform(**tensors, padding=1).grad_fn is None
    with torch.no_grad():
        assert not deform(**{k: t.requires_grad_() for k, t in tensors.items()}, padding=1).requires_grad


# Finite differences, with every sample at least 0.1 pixels away from the kinks at integers.

CHECKED = (
    DeformConvCase("plain", (1, 2, 3, 4), 2),
    DeformConvCase("crooked", (2, 4, 4, 3), 4, (2, 1), (2, 1), (1, 0), (1, 2), groups=2, offset_groups=2),
)


def _away_from_integers(case: DeformConvCase) -> dict[str, Tensor]:
    tensors = case.tensors(torch.float64)
    whole = tensors["offset"].floor()
    tensors["offset"] = whole + 0.1 + 0.8 * (tensors["offset"] - whole)
    return {name: t.requires_grad_() for name, t in tensors.items()}


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("boundary", ["zeros", "clamp"])
@pytest.mark.parametrize("case", CHECKED, ids=lambda case: case.name)
def test_gradcheck(deform: Operator, case: DeformConvCase, boundary: str, modulated: bool) -> None:
    tensors = _away_from_integers(case)
    if not modulated:
        del tensors["mask"]

    def call(*values: Tensor) -> Tensor:
        return deform(**dict(zip(tensors, values, strict=True)), **case.geometry, boundary=boundary)

    assert gradcheck(call, tuple(tensors.values()))


# Every entry of the second derivative where there are few, random projections of it where there are many.
TWICE = (DeformConvCase("tiny", (1, 2, 2, 2), 1, (2, 1), padding=(1, 0)), *CHECKED)


@pytest.mark.parametrize("boundary", ["zeros", "clamp"])
@pytest.mark.parametrize("case", TWICE, ids=lambda case: case.name)
def test_gradgradcheck(deform: Operator, case: DeformConvCase, boundary: str) -> None:
    tensors = _away_from_integers(case)

    def call(*values: Tensor) -> Tensor:
        return deform(**dict(zip(tensors, values, strict=True)), **case.geometry, boundary=boundary)

    assert gradgradcheck(call, tuple(tensors.values()), fast_mode=case.name != "tiny")


@pytest.mark.parametrize("fixed", ["input", "offset", "weight", "mask"])
def test_gradgradcheck_with_one_tensor_fixed(deform: Operator, fixed: str) -> None:
    case = CHECKED[0]
    tensors = _away_from_integers(case)
    del tensors["bias"]
    tensors[fixed].requires_grad_(False)

    def call(*values: Tensor) -> Tensor:
        return deform(**dict(zip(tensors, values, strict=True)), **case.geometry)

    assert gradgradcheck(call, tuple(tensors.values()), fast_mode=True)


def test_third_derivative(deform: Operator) -> None:
    case = CHECKED[0]
    leaves = _away_from_integers(case)

    def third(call: Operator) -> tuple[Tensor, ...]:
        (first,) = torch.autograd.grad((call(**leaves, padding=1) ** 3).sum(), leaves["input"], create_graph=True)
        (second,) = torch.autograd.grad((first**2).sum(), leaves["offset"], create_graph=True)
        return torch.autograd.grad(second.square().sum(), list(leaves.values()))

    reference = functools.partial(deform_conv2d, implementation="reference")
    for actual, expected in zip(third(deform), third(reference), strict=True):
        assert expected.abs().max() > 0
        assert error(actual, expected) < 1e-10


# The same bits every time.


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", ["crooked", "depthwise", "tiles"])
def test_repeats_bit_for_bit(deform: Operator, name: str, layout: torch.memory_format, threads: int) -> None:
    case = BY_NAME[name]
    tensors = case.tensors(channels_last=layout == torch.channels_last)
    first = _gradients(deform, case, tensors)
    for _ in range(3):
        again = _gradients(deform, case, tensors)
        for what, value in first.items():
            assert torch.equal(value, again[what]), what


# So small that an image is one tile, with enough channels that a matrix product would like to have all threads.
ONE_TILE = DeformConvCase("one tile", (1, 91, 10, 1), 16, (5, 5), padding=(2, 2))
# So large that images are converted one after the other, each into the memory of the one before.
ONE_BY_ONE = [
    DeformConvCase("one by one", (1, 64, 194, 194), 3, (2, 2), (8, 8), padding=(0, 0)),
    DeformConvCase("one by one, few channels", (1, 3, 858, 858), 3, (2, 2), (16, 16), padding=(0, 0)),
]


# The reference is one batched matrix product and promises values; the kernel promises the bits too.
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [*DEFORM_CONV_CASES, ONE_TILE, *ONE_BY_ONE], ids=lambda case: case.name)
def test_an_image_alone_gives_the_bits_it_gives_in_a_batch(
    case: DeformConvCase, dtype: torch.dtype, layout: torch.memory_format, threads: int
) -> None:
    deform = functools.partial(deform_conv2d, implementation="native")
    batch = DeformConvCase(**{**case.__dict__, "input": (5, *case.input[1:])})
    tensors = batch.tensors(dtype, channels_last=layout == torch.channels_last)
    together = _gradients(deform, batch, tensors)
    random = torch.Generator().manual_seed(1)
    above = torch.randn(together["output"].shape, generator=random, dtype=torch.float64).to(dtype)
    for n in (0, 3):
        alone = {k: t[n : n + 1] if k in ("input", "offset", "mask") else t for k, t in tensors.items()}
        leaves = {k: t.detach().requires_grad_() for k, t in alone.items()}
        output = deform(**leaves, **case.geometry)
        assert torch.equal(output[0], together["output"][n])
        output.backward(above[n : n + 1])
        for name in ("input", "offset", "mask"):
            assert torch.equal(leaves[name].grad[0], together[name][n]), name


def test_trains_as_a_convolution_does_at_zero_offset(deform: Operator) -> None:
    case = BY_NAME["crooked"]
    t = case.tensors(torch.float64)
    t["offset"], t["mask"] = torch.zeros_like(t["offset"]), torch.ones_like(t["mask"])
    found = _gradients(deform, case, t)
    leaves = {name: t[name].detach().requires_grad_() for name in ("input", "weight", "bias")}
    output = F.conv2d(**leaves, **case.geometry, groups=case.groups)
    above = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for name, expected in zip(leaves, torch.autograd.grad(output, list(leaves.values()), above), strict=True):
        assert error(found[name], expected) < 1e-12, name


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own
def test_forward_mode_runs_on_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    # A kernel without a forward derivative would return tangents of zero and say nothing.
    monkeypatch.setattr(_native, "_warned", set())
    case = BY_NAME["crooked"]
    t = case.tensors(torch.float64)
    small, d = 1e-6, torch.randn_like(t["offset"])

    def of(offset: Tensor, implementation: str = "auto") -> Tensor:
        return deform_conv2d(**{**t, "offset": offset}, **case.geometry, implementation=implementation)

    with pytest.warns(RuntimeWarning, match="^deform_conv2d: runs on the slow reference, the kernels have no forward-"):
        _, tangent = torch.func.jvp(of, (t["offset"],), (d,))
    step = (of(t["offset"] + small * d) - of(t["offset"] - small * d)) / (2 * small)
    assert error(tangent, step) < 1e-6
    with pytest.raises(RuntimeError, match=r"native.* is not possible here, the kernels have no forward-mode"):
        torch.func.jvp(functools.partial(of, implementation="native"), (t["offset"],), (d,))


def test_functional_transforms_run_on_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch refuses to differentiate an operator of a library inside torch.func.grad.
    monkeypatch.setattr(_native, "_warned", set())
    case = BY_NAME["crooked"]
    t = case.tensors()

    def loss(weight: Tensor) -> Tensor:
        return deform_conv2d(**{**t, "weight": weight}, **case.geometry).square().sum()

    with pytest.warns(RuntimeWarning, match=r"^deform_conv2d: runs on the slow reference, torch\.func does not see"):
        found = torch.func.grad(loss)(t["weight"])
    weight = t["weight"].detach().requires_grad_()
    (expected,) = torch.autograd.grad(loss(weight), weight)
    assert error(found, expected) < TOLERANCE[torch.float32]
