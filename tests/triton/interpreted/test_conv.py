"""The Triton kernels of deformable convolution compute the right numbers: run by the interpreter, on CPU tensors."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import triton.language as tl
from torch import Tensor

from pliant.ops.conv import reference, triton
from pliant.testing import DEFORM_CONV_CASES, TOLERANCE, DeformConvCase, error

# NumPy's word for what a GPU does without a word.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

BY_NAME = {case.name: case for case in DEFORM_CONV_CASES}
SLOW = pytest.mark.slow
NAMES = ("input", "offset", "weight", "mask")


def _geometry(case: DeformConvCase) -> tuple[int, ...]:
    """Return the geometry as one call's shape takes it."""
    return (*case.stride, *case.padding, *case.dilation)


def _forward(case: DeformConvCase, t: dict[str, Tensor], clamp: bool = False) -> Tensor:
    tensors = (t["input"], t["offset"], t["weight"], t.get("bias"))
    return triton.deform_conv2d(*tensors, case.stride, case.padding, case.dilation, t.get("mask"), clamp)


def _backward(
    case: DeformConvCase, t: dict[str, Tensor], grad: Tensor, clamp: bool = False, wanted: int = 0b1111
) -> dict[str, Tensor]:
    tensors = (grad, t["input"], t["offset"], t["weight"])
    geometry = (case.stride, case.padding, case.dilation)
    found = triton.deform_conv2d_backward(*tensors, *geometry, t.get("mask"), clamp, wanted)
    return dict(zip(NAMES, found, strict=True))


def _expected(case: DeformConvCase, t: dict[str, Tensor], clamp: bool = False) -> tuple[Tensor, Tensor, dict]:
    """Return the float64 output, a gradient to send back (rounded like the input), and what comes back."""
    exact = {name: x.double().requires_grad_() for name, x in t.items()}
    tensors = (exact["input"], exact["offset"], exact["weight"], exact.get("bias"), exact.get("mask"))
    y = reference.deform_conv(*tensors[:4], case.stride, case.padding, case.dilation, tensors[4], clamp)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(t["input"].dtype)
    leaves = [name for name in NAMES if name in exact]
    found = torch.autograd.grad(y, [exact[name] for name in leaves], grad.double())
    return y, grad, dict(zip(leaves, found, strict=True))


# The interpreter takes a while for every program: what needs many of them runs in the workflows only. Here there is one
# case more, of channels for two blocks and few positions.
BY_NAME["channels"] = DeformConvCase("channels", (1, 40, 3, 5), 20)
# And one of several outputs a channel.
BY_NAME["times"] = DeformConvCase("times", (1, 4, 3, 4), 8, (1, 2), padding=(0, 0), groups=4, offset_groups=2)
SMALL = [name for name in BY_NAME if name not in ("wide", "tiles", "multiplier")]
LOW = [("plain", torch.bfloat16), pytest.param("plain", torch.float16, marks=SLOW)]


def _matrix(quick: Sequence[str]) -> list[Any]:
    rows = [(name, torch.float32) for name in BY_NAME] + [("depthwise", torch.bfloat16)]
    slow = {row for row in rows if row[0] not in quick or row[1] != torch.float32}
    return [pytest.param(*row, marks=SLOW if row in slow else ()) for row in rows]


@pytest.mark.parametrize(("name", "dtype"), [*LOW, *_matrix(SMALL)], ids=str)
def test_forward(name: str, dtype: torch.dtype) -> None:
    _check_forward(name, dtype, False)


@pytest.mark.parametrize(("name", "dtype"), _matrix(["plain", "crooked", "one_pixel"]), ids=str)
def test_forward_with_clamp(name: str, dtype: torch.dtype) -> None:
    _check_forward(name, dtype, True)


def _check_forward(name: str, dtype: torch.dtype, clamp: bool) -> None:
    case = BY_NAME[name]
    t = case.tensors(dtype)
    y, _, _ = _expected(case, t, clamp)
    found = _forward(case, t, clamp)
    assert found.dtype == dtype
    assert found.stride() == t["input"].new_empty(y.shape).stride()
    assert error(found, y) < TOLERANCE[dtype]


def _check_backward(name: str, dtype: torch.dtype, clamp: bool) -> None:
    case = BY_NAME[name]
    t = case.tensors(dtype)
    _, grad, expected = _expected(case, t, clamp)
    for what, found in _backward(case, t, grad, clamp).items():
        assert found.dtype == dtype
        assert error(found, expected[what]) < TOLERANCE[dtype], what


@pytest.mark.usefixtures("atomic")
@pytest.mark.parametrize(
    ("name", "dtype"), [*LOW, *_matrix([n for n in SMALL if n not in ("depthwise", "plain")])], ids=str
)
def test_backward(name: str, dtype: torch.dtype) -> None:
    _check_backward(name, dtype, False)


@pytest.mark.usefixtures("atomic")
@pytest.mark.parametrize(("name", "dtype"), _matrix(["crooked"]), ids=str)
def test_backward_with_clamp(name: str, dtype: torch.dtype) -> None:
    _check_backward(name, dtype, True)


@pytest.mark.parametrize(("name", "dtype"), _matrix(["crooked", "times"]), ids=str)
def test_backward_in_integers(name: str, dtype: torch.dtype) -> None:
    _check_backward(name, dtype, False)


@pytest.mark.parametrize("size", [1e30, pytest.param(1e-30, marks=SLOW)])
def test_integers_fit_gradients_of_any_size(size: float) -> None:
    case = BY_NAME["plain"]
    t = case.tensors()
    _, grad, expected = _expected(case, t)
    found = _backward(case, t, size * grad, wanted=0b0001)["input"]
    assert error(found, size * expected["input"]) < TOLERANCE[torch.float32]
    assert not _backward(case, t, 0 * grad, wanted=0b0001)["input"].any()
    grad[0, 0, 3, 3] = math.inf
    assert _backward(case, t, grad, wanted=0b0001)["input"].isnan().all()


@pytest.mark.parametrize("name", ["plain", "one_pixel", pytest.param("depthwise", marks=SLOW)])
def test_channels_last(name: str) -> None:
    case = BY_NAME[name]
    t = {k: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for k, x in case.tensors().items()}
    y, grad, expected = _expected(case, t)
    found = _forward(case, t)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, y) < TOLERANCE[torch.float32]
    grads = _backward(case, t, grad.contiguous(memory_format=torch.channels_last))
    assert grads["input"].is_contiguous(memory_format=torch.channels_last)
    for what, found in grads.items():
        assert error(found, expected[what]) < TOLERANCE[torch.float32], what


def test_strided_and_expanded_tensors() -> None:
    case = DeformConvCase("few", (2, 4, 5, 4), 4, stride=(2, 1), groups=2, offset_groups=2)
    t = {name: torch.stack([x, x], -1)[..., 0] for name, x in case.tensors().items()}
    t["offset"] = t["offset"][:1].expand_as(t["offset"])
    y, grad, expected = _expected(case, {k: x.contiguous() for k, x in t.items()})
    assert error(_forward(case, t), y) < TOLERANCE[torch.float32]
    for what, found in _backward(case, t, grad[:, :1].expand_as(grad)).items():
        assert found.is_contiguous() or what == "input"
    for what, found in _backward(case, t, torch.stack([grad, grad], -1)[..., 0]).items():
        assert error(found, expected[what]) < TOLERANCE[torch.float32], what


def test_without_mask_and_bias_and_with_float32_offsets() -> None:
    case = BY_NAME["plain"]
    t = case.tensors(torch.bfloat16)
    t["offset"] = case.tensors()["offset"]
    del t["mask"], t["bias"]
    y, grad, expected = _expected(case, t)
    assert error(_forward(case, t), y) < TOLERANCE[torch.bfloat16]
    found = _backward(case, t, grad)
    assert found.pop("mask").numel() == 0
    assert found["offset"].dtype == torch.float32
    for what, gradient in found.items():
        assert error(gradient, expected[what]) < TOLERANCE[torch.bfloat16], what


@pytest.mark.parametrize(
    "wanted", [pytest.param(n, marks=() if n in (1, 2, 4, 8, 11, 14) else SLOW) for n in range(1, 16)]
)
def test_only_those_asked_for(wanted: int) -> None:
    case = DeformConvCase("small", (1, 2, 3, 4), 3)
    t = case.tensors()
    _, grad, expected = _expected(case, t)
    torch.use_deterministic_algorithms(wanted % 2 == 0)
    found = _backward(case, t, grad, wanted=wanted)
    torch.use_deterministic_algorithms(True)
    for i, name in enumerate(NAMES):
        if wanted >> i & 1:
            assert error(found[name], expected[name]) < TOLERANCE[torch.float32], name
        else:
            assert found[name].shape == (0,)


def test_an_empty_batch() -> None:
    case = DeformConvCase("empty", (0, 4, 5, 6), 3)
    t = case.tensors()
    y = _forward(case, t)
    assert y.shape == (0, 3, 5, 6)
    found = _backward(case, t, y)
    assert {name: x.shape for name, x in found.items()} == {name: t[name].shape for name in NAMES}
    assert not found["weight"].any()


@pytest.mark.parametrize("clamp", [False, pytest.param(True, marks=SLOW)], ids=["zeros", "clamp"])
def test_coordinates_that_are_nowhere_sample_nothing(clamp: bool) -> None:
    case = BY_NAME["plain"]
    t = case.tensors()
    far = [math.nan, math.inf, -math.inf, 1e30, -1e30, 1e9, 2.0**31, -(2.0**31), 1e5]
    wild = torch.tensor(far).repeat(t["offset"].numel())[: t["offset"].numel()].view_as(t["offset"])
    chosen = torch.arange(t["offset"].numel()).view_as(t["offset"]) % 7 == 0
    lost = chosen[:, 0::2] | chosen[:, 1::2]
    tame = {**t, "mask": t["mask"].masked_fill(lost, 0)}
    y, grad, expected = _expected(case, tame, clamp)
    t["offset"] = torch.where(chosen, wild, t["offset"])
    assert error(_forward(case, t, clamp), y) < TOLERANCE[torch.float32]
    found = _backward(case, t, grad, clamp)
    expected["mask"] = expected["mask"].masked_fill(lost, 0)
    expected["offset"] = expected["offset"].masked_fill(lost.repeat_interleave(2, 1), 0)
    for what, gradient in found.items():
        assert error(gradient, expected[what]) < TOLERANCE[torch.float32], what


@pytest.mark.usefixtures("atomic")
def test_pixels_and_masks_that_are_nan_stay_where_they_are() -> None:
    case = BY_NAME["plain"]
    t = case.tensors()
    t["offset"].zero_()
    t["input"][0, :, 3, 3] = math.nan
    t["mask"][1, 4, 2, 3] = math.nan
    t["offset"][0] += 0.25
    y, grad, expected = _expected(case, t)
    # A quarter pixel down and right: four of the nine taps' windows meet pixel (3, 3).
    assert 0 < y.isnan().sum() < y.numel() / 2
    assert error(_forward(case, t), y) < TOLERANCE[torch.float32]
    found = _backward(case, t, grad)
    assert error(found["input"], expected["input"]) < TOLERANCE[torch.float32]
    assert torch.equal(found["mask"].isnan(), expected["mask"].isnan())


@pytest.mark.parametrize(("name", "count"), [("channels", 5), pytest.param("crooked", 3, marks=SLOW)])
def test_sums_shared_out_to_several_programs(monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> None:
    # As on a device with more processors than there are tiles.
    monkeypatch.setattr(triton, "processors", lambda device: 64)
    case = BY_NAME[name]
    t = case.tensors()
    shape = triton.Shape(*(t[n] for n in NAMES), _geometry(case), False)
    y, grad, expected = _expected(case, t)
    first, _ = triton.forward_launches(shape, t["bias"], torch.empty_like(y, dtype=torch.float32))
    assert first.grid[2] == count
    assert error(_forward(case, t), y) < TOLERANCE[torch.float32]
    found = _backward(case, t, grad, wanted=0b0100)
    assert error(found["weight"], expected["weight"]) < TOLERANCE[torch.float32]


def test_64_bit_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    case = BY_NAME["crooked"]
    t = case.tensors()
    y, grad, expected = _expected(case, t)
    narrow = triton.Shape.__init__

    @functools.wraps(narrow)
    def wide(self: triton.Shape, *arguments: object) -> None:
        narrow(self, *arguments)
        assert self.arguments["INDEX"] == tl.int32
        self.arguments["INDEX"] = tl.int64

    monkeypatch.setattr(triton.Shape, "__init__", wide)
    assert error(_forward(case, t), y) < TOLERANCE[torch.float32]
    for what, found in _backward(case, t, grad).items():
        assert error(found, expected[what]) < TOLERANCE[torch.float32], what


@pytest.mark.parametrize("name", ["input", "offset", "mask"])
def test_64_bit_indices_where_they_are_needed(name: str) -> None:
    large = torch.empty(1, 2**16, 2**8, 2**7 + 1, device="meta")
    t = {
        "input": torch.empty(1, 2, 2**8, 2**7 + 1, device="meta"),
        "offset": torch.empty(1, 2, 2**8, 2**7 + 1, device="meta"),
        "weight": torch.empty(2, 2, 1, 1, device="meta"),
        "mask": torch.empty(1, 1, 2**8, 2**7 + 1, device="meta"),
    }
    small = triton.Shape(*(t[n] for n in NAMES), (1, 1, 0, 0, 1, 1), False)
    assert small.arguments["INDEX"] == tl.int32
    if name == "input":
        t["input"], t["weight"] = large, torch.empty(2, 2**16, 1, 1, device="meta")
    else:
        # A view of a large tensor: few elements, far apart.
        t[name] = large[:, :: 2**15 if name == "offset" else 2**16]
    assert triton.Shape(*(t[n] for n in NAMES), (1, 1, 0, 0, 1, 1), False).arguments["INDEX"] == tl.int64


def _index(offset: Tensor, mask: Tensor, channels: int = 1, outputs: int = 1) -> object:
    """Return what places in an image are counted in, for a kernel of one tap."""
    input = torch.empty(1, channels, *offset.shape[2:], device="meta")
    weight = torch.empty(outputs, channels, 1, 1, device="meta")
    return triton.Shape(input, offset, weight, mask, (1, 1, 0, 0, 1, 1), False).arguments["INDEX"]


def test_64_bit_indices_of_views_and_weights() -> None:
    def view(channels: int, stride: int, step: int) -> Tensor:
        strides = (0, stride, 2**8 * step, step)
        return torch.empty(1, device="meta").as_strided((1, channels, 2**8, 2**8), strides)

    mask = view(2**14, 0, 0)
    assert _index(view(2**15 - 2, 0, 0), mask) == tl.int32
    # One number in memory, its gradient has 2³¹.
    assert _index(view(2**15, 0, 0), mask) == tl.int64
    # Gaps between channels and between positions, each of 2³⁰ elements.
    assert _index(view(2, 2**28, 2**13), view(1, 0, 1)) == tl.int32
    assert _index(view(2, 2**29, 2**14), view(1, 0, 1)) == tl.int64
    few = torch.empty(1, 2, 3, 4, device="meta")
    assert _index(few, few[:, :1], 2**14, 2**16) == tl.int32
    assert _index(few, few[:, :1], 2**15, 2**16) == tl.int64


def test_more_positions_than_are_counted() -> None:
    with pytest.raises(ValueError, match=r"^deform_conv2d: on a GPU an output map must have at most 2147482624 posi"):
        _index(*(torch.empty(1, 1, 1, 1, device="meta").expand(1, n, 2**16, 2**15) for n in (2, 1)))


@pytest.mark.parametrize("groups", [1, 8192])
def test_grids_hold_their_programs(groups: int) -> None:
    # A device takes 2³¹ programs in the first dimension of a grid, 2¹⁶ in the others.
    case = DeformConvCase("many", (1, 8192, 100, 100), 8192, (7, 7), padding=(3, 3), groups=groups, offset_groups=8192)
    N, C, H, W = case.input
    shapes = [(N, C, H, W), (N, 2 * C * 49, H, W), (C, C // groups, 7, 7), (N, C * 49, H, W)]
    tensors = [torch.empty(1, device="meta").expand(shape) for shape in shapes]
    shape = triton.Shape(*tensors, _geometry(case), False)
    output = torch.empty(N, C, H, W, device="meta")
    launches = triton.forward_launches(shape, None, output)
    launches += [triton.samples_launch(shape, output, output, None, tensors[1], tensors[3])]
    for launch in [*launches, triton.weight_launch(shape, output)[0]]:
        assert 0 < launch.grid[0] < 2**31
        assert all(0 < n < 2**16 for n in launch.grid[1:])


@pytest.mark.parametrize("name", ["times", pytest.param("plain", marks=SLOW)])
def test_deterministic_whatever_program_runs_first(name: str, reversed_grid: Callable[[], None]) -> None:
    case = BY_NAME[name]
    t = case.tensors()
    _, grad, _ = _expected(case, t)
    torch.use_deterministic_algorithms(False)
    atomic = _backward(case, t, grad)
    torch.use_deterministic_algorithms(True)
    ordered = _backward(case, t, grad)
    reversed_grid()
    again = _backward(case, t, grad)
    for what in NAMES:
        assert torch.equal(ordered[what], again[what]), what
    torch.use_deterministic_algorithms(False)
    other = _backward(case, t, grad)
    torch.use_deterministic_algorithms(True)
    # The test sees what it is about: added atomically, the order shows.
    assert not torch.equal(atomic["input"], other["input"])
    for what in NAMES[1:]:
        assert torch.equal(atomic[what], other[what]), what
