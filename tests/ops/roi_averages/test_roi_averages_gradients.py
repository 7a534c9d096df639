"""The gradients of the RoI averages: right, only those asked for, differentiable again, reproducible."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from pliant import _native, ops
from pliant.testing import PS_ROI_CASES, ROI_CASES, TOLERANCE, RoICase, error

GRID, PARTS = ("deform_roi_pool", "roi_align"), ("deform_psroi_pool", "ps_roi_align")
OPERATORS = pytest.mark.parametrize("op", [*GRID, *PARTS])
BY_NAME = {
    **{(op, c.name): c for op in GRID for c in ROI_CASES},
    **{(op, c.name): c for op in PARTS for c in PS_ROI_CASES},
}
EVERY = pytest.mark.parametrize(
    ("op", "case"), [(op, c) for (op, _), c in BY_NAME.items()], ids=lambda x: getattr(x, "name", x)
)
LEAVES = ("input", "offset", "mask")


def _leaves(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().requires_grad_(name in LEAVES) for name, t in tensors.items()}


def _above(output: Tensor) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randn(output.shape, generator=random, dtype=torch.float64).to(output.dtype)


def _gradients(call: Callable[..., Tensor], op: str, case: RoICase, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradient of every tensor that has one, and under "output" the output; the one above it is drawn."""
    leaves = _leaves(tensors)
    output = call(**leaves, **case.arguments(op))
    wanted = {name: t for name, t in leaves.items() if t.requires_grad}
    found = torch.autograd.grad(output, list(wanted.values()), _above(output))
    return {"output": output.detach(), **dict(zip(wanted, found, strict=True))}


@functools.cache
def _expected(op: str, name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    case = BY_NAME[op, name]
    tensors = {k: t.double() for k, t in case.tensors(op, dtype).items()}
    leaves = _leaves(tensors)
    output = getattr(ops, op)(**leaves, **case.arguments(op), implementation="reference")
    wanted = {name: t for name, t in leaves.items() if t.requires_grad}
    # In low precision the gradient above is rounded too: the same rounded one for everybody.
    found = torch.autograd.grad(output, list(wanted.values()), _above(output.to(dtype)).double())
    return {"output": output.detach(), **dict(zip(wanted, found, strict=True))}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@EVERY
def test_match_the_float64_reference(of: SimpleNamespace, op: str, case: RoICase, dtype: torch.dtype) -> None:
    found = _gradients(getattr(of, op), op, case, case.tensors(op, dtype))
    for name, expected in _expected(op, case.name, dtype).items():
        assert found[name].dtype == dtype
        assert error(found[name], expected) < TOLERANCE[dtype], name


def _sliced(t: Tensor) -> Tensor:
    """Return the same values at every second place of larger memory, dimensions in another order."""
    room = t.new_full([2 * n + 1 for n in reversed(t.shape)], torch.nan)
    view = room.permute(*reversed(range(t.dim())))[tuple(slice(1, None, 2) for _ in t.shape)]
    return view.copy_(t)


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


LAYOUTS: dict[str, Callable[[str, Tensor], Tensor]] = {
    "channels_last": lambda name, t: _channels_last(t) if name == "input" else t,
    "all channels_last": lambda name, t: _channels_last(t),
    "sliced": lambda name, t: _sliced(t),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@EVERY
def test_match_in_every_layout(of: SimpleNamespace, op: str, case: RoICase, dtype: torch.dtype, layout: str) -> None:
    tensors = {name: LAYOUTS[layout](name, t) for name, t in case.tensors(op, dtype).items()}
    leaves = _leaves(tensors)
    output = getattr(of, op)(**leaves, **case.arguments(op))
    wanted = {name: t for name, t in leaves.items() if t.requires_grad}
    above = LAYOUTS[layout]("input", _above(output))
    found = dict(zip(wanted, torch.autograd.grad(output, list(wanted.values()), above), strict=True))
    for name, expected in _expected(op, case.name, dtype).items():
        assert error({"output": output, **found}[name], expected) < TOLERANCE[dtype], name


@pytest.mark.parametrize("op", ["deform_roi_pool", "deform_psroi_pool"])
@pytest.mark.parametrize("wide", [("offset",), ("mask",), ("offset", "mask")], ids="+".join)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_gradient_has_its_own_tensors_dtype(
    of: SimpleNamespace, op: str, dtype: torch.dtype, wide: tuple[str, ...]
) -> None:
    case = BY_NAME[op, "crooked"]
    exact = case.tensors(op)
    tensors = {name: t if name in ("rois", *wide) else t.to(dtype) for name, t in exact.items()}
    found = _gradients(getattr(of, op), op, case, tensors)
    reference = functools.partial(getattr(ops, op), implementation="reference")
    expected = _gradients(reference, op, case, {name: t.double() for name, t in tensors.items()})
    for name in LEAVES:
        assert found[name].dtype == tensors[name].dtype
        # The gradient above is rounded in one and not in the other.
        assert error(found[name], expected[name]) < 2 * TOLERANCE[dtype], name


@pytest.mark.parametrize(
    "asked", [("input",), ("offset",), ("mask",), ("input", "mask"), ("offset", "mask")], ids="+".join
)
@pytest.mark.parametrize("op", ["deform_roi_pool", "deform_psroi_pool"])
def test_only_those_asked_for(of: SimpleNamespace, op: str, asked: tuple[str, ...]) -> None:
    case = BY_NAME[op, "crooked"]
    tensors = case.tensors(op)
    every = _gradients(getattr(of, op), op, case, tensors)
    leaves = {name: t.detach().requires_grad_(name in asked) for name, t in tensors.items()}
    output = getattr(of, op)(**leaves, **case.arguments(op))
    output.backward(_above(output))
    for name, t in leaves.items():
        if name in asked:
            assert error(t.grad, every[name]) < 1e-6, name
        else:
            assert t.grad is None


@pytest.mark.parametrize("wanted", range(1, 8))
@pytest.mark.parametrize("op", ["deform_roi_pool", "deform_psroi_pool"])
def test_the_kernel_computes_only_what_the_bits_ask_for(op: str, wanted: int) -> None:
    case = BY_NAME[op, "plain"]
    t = case.tensors(op)
    output = getattr(ops, op)(**t, **case.arguments(op))
    geometry = ((3, 3), 0.5, 2, 0.1) if op == "deform_roi_pool" else (3, 0.5, 3, 3, 4, 0.1)
    backward = getattr(torch.ops.pliant, f"{op}_backward")
    found = backward(torch.ones_like(output), t["input"], t["rois"], t["offset"], *geometry, t["mask"], wanted)
    for i, (name, gradient) in enumerate(zip(LEAVES, found, strict=True)):
        assert gradient.shape == (t[name].shape if wanted >> i & 1 else (0,)), name
        assert gradient.isfinite().all(), name


@OPERATORS
def test_no_gradient_flows_into_boxes(of: SimpleNamespace, op: str) -> None:
    case = BY_NAME[op, "plain"]
    tensors = case.tensors(op)
    name = "rois" if "rois" in tensors else "boxes"
    leaves = {**_leaves(tensors), name: tensors[name].requires_grad_()}
    getattr(of, op)(**leaves, **case.arguments(op)).sum().backward()
    assert leaves[name].grad is None
    assert leaves["input"].grad.abs().max() > 0


@OPERATORS
def test_nothing_is_kept_for_backward_without_gradients(of: SimpleNamespace, op: str) -> None:
    case = BY_NAME[op, "plain"]
    tensors = case.tensors(op)
    assert getattr(of, op)(**tensors, **case.arguments(op)).grad_fn is None
    with torch.no_grad():
        assert not getattr(of, op)(**_leaves(tensors), **case.arguments(op)).requires_grad


# Finite differences. Offsets are drawn: none puts a sample as near to a kink, at a whole number, as the step of these
# checks is long.

CHECKED = [
    ("deform_roi_pool", RoICase("fixed", (2, 2, 5, 6), 3, (2, 3), 0.5, 2)),
    ("deform_roi_pool", RoICase("adaptive", (1, 3, 6, 5), 2, (2, 1), 0.5, 0)),
    ("roi_align", RoICase("adaptive", (2, 2, 5, 6), 3, (2, 3), 0.5, 0)),
    ("deform_psroi_pool", RoICase("groups", (2, 8, 5, 6), 3, (2, 2), 0.5, 2, 2, 2, 3, 2)),
    ("deform_psroi_pool", RoICase("parts", (1, 2, 5, 6), 3, (3, 3), 0.5, 2, 1, 2, 2, 1)),
    ("ps_roi_align", RoICase("fixed", (2, 8, 5, 6), 3, (2, 2), 0.5, 2)),
]
SMALL = pytest.mark.parametrize(("op", "case"), CHECKED, ids=lambda x: getattr(x, "name", x))


def _bound(
    call: Callable[..., Tensor], op: str, case: RoICase, *fixed: str
) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """Return the operator as a function of its differentiable tensors but `fixed`, and these tensors."""
    tensors = case.tensors(op, torch.float64)
    free = {name: t.requires_grad_() for name, t in tensors.items() if name in LEAVES and name not in fixed}

    def function(*values: Tensor) -> Tensor:
        return call(**{**tensors, **dict(zip(free, values, strict=True))}, **case.arguments(op))

    return function, list(free.values())


@SMALL
def test_gradcheck(of: SimpleNamespace, op: str, case: RoICase) -> None:
    assert gradcheck(*_bound(getattr(of, op), op, case))


@SMALL
def test_gradgradcheck(of: SimpleNamespace, op: str, case: RoICase) -> None:
    assert gradgradcheck(*_bound(getattr(of, op), op, case), fast_mode=True)


@pytest.mark.parametrize("fixed", LEAVES)
@pytest.mark.parametrize("op", ["deform_roi_pool", "deform_psroi_pool"])
def test_gradgradcheck_with_one_tensor_fixed(of: SimpleNamespace, op: str, fixed: str) -> None:
    case = next(c for name, c in CHECKED if name == op)
    assert gradgradcheck(*_bound(getattr(of, op), op, case, fixed), fast_mode=True)


@SMALL
def test_third_derivative(of: SimpleNamespace, op: str, case: RoICase) -> None:
    def third(call: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        function, leaves = _bound(call, op, case)
        (first,) = torch.autograd.grad((function(*leaves) ** 4).sum(), leaves[0], create_graph=True)
        (second,) = torch.autograd.grad((first**2).sum(), leaves[-1], create_graph=True)
        return torch.autograd.grad(second.square().sum(), leaves)

    reference = functools.partial(getattr(ops, op), implementation="reference")
    for actual, expected in zip(third(getattr(of, op)), third(reference), strict=True):
        assert expected.abs().max() > 0
        assert error(actual, expected) < 1e-10


# The same bits every time, and on any number of threads.


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


BUSY = {
    "deform_roi_pool": RoICase("busy", (2, 70, 12, 15), 40, (3, 2), 0.5, 2),
    "roi_align": RoICase("busy", (2, 70, 12, 15), 40, (3, 2), 0.5, 0),
    "deform_psroi_pool": RoICase("busy", (2, 280, 12, 15), 40, (3, 3), 0.5, 2, 2, 2, 3, 7),
    "ps_roi_align": RoICase("busy", (2, 280, 12, 15), 40, (2, 2), 0.5, 2),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@OPERATORS
def test_the_number_of_threads_does_not_change_a_bit(
    op: str, dtype: torch.dtype, layout: torch.memory_format, threads: Callable[[int], None]
) -> None:
    case = BUSY[op]
    call = functools.partial(getattr(ops, op), implementation="native")
    tensors = case.tensors(op, dtype, channels_last=layout == torch.channels_last)
    threads(1)
    first = _gradients(call, op, case, tensors)
    for count in (1, 2, 2, 5):
        threads(count)
        again = _gradients(call, op, case, tensors)
        for what, value in first.items():
            assert torch.equal(value, again[what]), what


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@OPERATORS
def test_an_image_alone_gives_the_bits_it_gives_in_a_batch(op: str, dtype: torch.dtype) -> None:
    case = BUSY[op]
    call = functools.partial(getattr(ops, op), implementation="native")
    tensors = case.tensors(op, dtype)
    boxes = "rois" if "rois" in tensors else "boxes"
    together = _gradients(call, op, case, tensors)
    for n in range(case.input[0]):
        mine = tensors[boxes][:, 0] == n
        alone = {name: t[n : n + 1] if name == "input" else t[mine] for name, t in tensors.items()}
        alone[boxes] = torch.cat([torch.zeros_like(alone[boxes][:, :1]), alone[boxes][:, 1:]], 1)
        leaves = _leaves(alone)
        output = call(**leaves, **case.arguments(op))
        assert torch.equal(output, together["output"][mine])
        output.backward(_above(together["output"])[mine])
        for name in LEAVES:
            if name in leaves:
                expected = together[name][n : n + 1] if name == "input" else together[name][mine]
                assert torch.equal(leaves[name].grad, expected), name


# Where torch wants what a kernel does not have.


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own
@OPERATORS
def test_forward_mode_and_transforms_run_on_the_reference(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "_warned", set())
    case = next(c for name, c in CHECKED if name == op)
    function, leaves = _bound(getattr(ops, op), op, case)
    values = [t.detach() for t in leaves]
    ways = [torch.randn(t.shape, generator=torch.Generator().manual_seed(3), dtype=t.dtype) for t in values]
    with pytest.warns(RuntimeWarning, match=f"^{op}: runs on the slow reference, the kernels have no forward-mode"):
        _, tangent = torch.func.jvp(function, tuple(values), tuple(ways))
    h = 1e-6
    step = [function(*(v + s * h * d for v, d in zip(values, ways, strict=True))) for s in (1, -1)]
    assert error(tangent, (step[0] - step[1]) / (2 * h)) < 1e-6

    def loss(input: Tensor) -> Tensor:
        return function(input, *values[1:]).square().sum()

    with pytest.warns(RuntimeWarning, match=f"^{op}: runs on the slow reference, torch.func does not see through"):
        found = torch.func.grad(loss)(values[0])
    (expected,) = torch.autograd.grad(loss(leaves[0]), leaves[0])
    assert error(found, expected) < 1e-12


# The derivative is that of the formula: right-sided at integers, 0 where a coordinate is moved into the map.


@pytest.mark.parametrize(
    ("op", "position", "slope"),
    [
        # One sample a bin: at start + bin/2 for deform_roi_pool, at start for the other. Pixel x of the map has x².
        ("deform_roi_pool", 1.0, 3.0),  # at an integer: the next pixel minus this one
        ("deform_roi_pool", 1.25, 3.0),
        ("deform_roi_pool", 0.0, 1.0),
        ("deform_roi_pool", -0.25, 0.0),  # moved to 0
        ("deform_roi_pool", -1.0, 0.0),
        ("deform_roi_pool", -1.25, 0.0),  # outside
        ("deform_roi_pool", 4.0, 0.0),  # the last pixel: there is no next one
        ("deform_roi_pool", 4.75, 0.0),
        ("deform_psroi_pool", 2.0, 5.0),
        ("deform_psroi_pool", 0.0, 1.0),
        ("deform_psroi_pool", -0.25, 0.0),
        ("deform_psroi_pool", -0.75, 0.0),
        ("deform_psroi_pool", 4.0, 0.0),
        ("deform_psroi_pool", 4.25, 0.0),
    ],
)
@pytest.mark.parametrize("axis", ["x", "y"])
def test_offset_gradient_at_kinks_and_borders(
    of: SimpleNamespace, op: str, position: float, slope: float, axis: str
) -> None:
    ramp = torch.arange(5.0, dtype=torch.float64).square()
    # The other direction lies beyond the last pixel, where it is moved: that does not stop this one.
    x = ramp.expand(5, 5) if axis == "x" else ramp.view(5, 1).expand(5, 5)
    if op == "deform_roi_pool":
        ends = (position + 0.5 - 1, position + 0.5 + 1)  # 2 pixels wide, the sample in the middle
        other = (4.75 + 0.5 - 1, 4.75 + 0.5 + 1)
        options = {"sampling_ratio": 1, "gamma": 0.5}
    else:
        # Boxes of whole pixels: their start is the position at a scale of 1/4, 8 of them are 2 pixels wide.
        ends, other = ((4 * (p + 0.5), 4 * (p + 0.5) + 7) for p in (position, 4.25))
        options = {"sample_per_part": 1, "trans_std": 0.5, "spatial_scale": 0.25}
    (x1, x2), (y1, y2) = (ends, other) if axis == "x" else (other, ends)
    rois = torch.tensor([[0.0, x1, y1, x2, y2]], dtype=torch.float64)
    offset = torch.zeros(1, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    getattr(of, op)(x[None, None], rois, offset, 1, **options).sum().backward()
    expected = torch.tensor([slope, 0.0] if axis == "x" else [0.0, slope], dtype=torch.float64)
    assert torch.equal(offset.grad.flatten(), expected)


@OPERATORS
def test_second_derivative_at_integers_is_finite(of: SimpleNamespace, op: str) -> None:
    case = next(c for name, c in CHECKED if name == op)
    tensors = case.tensors(op, torch.float64)
    if "offset" in tensors:
        tensors["offset"] = torch.zeros_like(tensors["offset"])
    boxes = "rois" if "rois" in tensors else "boxes"
    tensors[boxes][:, 1:] = torch.tensor([1.0, 1, 9, 9], dtype=torch.float64)
    leaves = _leaves(tensors)
    wanted = [t for t in leaves.values() if t.requires_grad]
    output = getattr(of, op)(**leaves, **case.arguments(op))
    first = torch.autograd.grad(output.square().sum(), wanted, create_graph=True)
    for gradient in torch.autograd.grad(sum(g.square().sum() for g in first), wanted):
        assert gradient.isfinite().all()
