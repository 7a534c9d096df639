"""RoI pooling over bins of whole pixels inside torch's machinery: schema, fake tensors, torch.compile, torch.export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.optests import opcheck

from pliant import ops
from pliant.testing import PS_ROI_CASES, ROI_CASES, TOLERANCE, RoICase, error

NAMES = ("roi_pool", "ps_roi_pool")
named = pytest.mark.parametrize("name", NAMES)
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])


def _case(name: str, which: str = "plain") -> RoICase:
    return next(case for case in (ROI_CASES if name == "roi_pool" else PS_ROI_CASES) if case.name == which)


def _backward_arguments(name: str, t: dict[str, Tensor], arguments: tuple[Any, ...], last: bool) -> tuple[Any, ...]:
    found = getattr(torch.ops.pliant, name)(*arguments)
    output, *taken = found if name == "roi_pool" else (found,)
    return (torch.randn_like(output), t["input"].shape, last, *arguments[1:], *taken)


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("which", ["plain", "pixel", "none"])
@named
def test_opcheck(name: str, which: str, dtype: torch.dtype, channels_last: bool) -> None:
    case = _case(name, which)
    t = case.tensors("roi_pool", dtype, channels_last=channels_last)
    arguments = (t["input"].requires_grad_(), t["boxes"], case.output_size, case.spatial_scale)
    opcheck(getattr(torch.ops.pliant, name).default, arguments, atol=1e-2, rtol=1e-2)
    backward = _backward_arguments(name, t, arguments, channels_last)
    backward[0].requires_grad_()
    opcheck(getattr(torch.ops.pliant, f"{name}_backward").default, backward, atol=1e-2, rtol=1e-2)


@LAYOUTS
@pytest.mark.parametrize("shape", [(2, 8, 4, 5), (2, 4, 4, 5), (2, 4, 1, 1), (1, 4, 6, 1)])
@named
def test_fake_strides_are_the_kernels(name: str, shape: tuple[int, int, int, int], channels_last: bool) -> None:
    # Shapes of which the layout is ambiguous too: inductor lays out memory by what the fake kernel says.
    for size in ((2, 2), (1, 4), (1, 1)):
        case = RoICase("ambiguous", shape, 3, size)
        t = case.tensors("roi_pool", channels_last=channels_last)
        arguments = (t["input"], t["boxes"], size, 0.5)
        for op, values in (
            (getattr(torch.ops.pliant, name), arguments),
            (
                getattr(torch.ops.pliant, f"{name}_backward"),
                _backward_arguments(name, t, arguments, channels_last),
            ),
        ):
            real = op(*values)
            with FakeTensorMode() as mode:
                fake = op(*[mode.from_tensor(v) if isinstance(v, Tensor) else v for v in values])
            pairs = zip(real, fake, strict=True) if isinstance(real, tuple) else [(real, fake)]
            for r, f in pairs:
                assert (f.shape, f.dtype) == (r.shape, r.dtype)
                assert f.stride() == r.stride() or not r.numel()


def _step(name: str, t: dict[str, Tensor], call: Callable[..., Tensor], case: RoICase) -> list[Tensor]:
    leaf = t["input"].detach().clone().requires_grad_()
    y = call(leaf, t["boxes"], case.output_size)
    y.square().mean().backward()
    return [y.detach(), leaf.grad]


def _network(name: str) -> Callable[..., Tensor]:
    pool = getattr(ops, name)

    # A number with a fraction is a constant for torch.compile: as an argument it would be traced twice.
    def network(x: Tensor, rois: Tensor, size: tuple[int, int]) -> Tensor:
        return pool(x.tanh(), rois, size, 0.5) * 2

    return network


@named
def test_compiles_whole_and_dynamic(name: str) -> None:
    torch._dynamo.reset()
    seen = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        seen.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    network = _network(name)
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend=backend)
    # Sizes that are equal by chance are not equal by necessity.
    with torch.fx.experimental._config.patch(use_duck_shape=False):
        for n, extra, rois in ((2, 0, 5), (3, 4, 9), (5, 7, 2)):
            _, C, H, W = _case(name).input
            case = RoICase("", (n, C, H + extra, W + extra), rois)
            t = case.tensors("roi_pool")
            for actual, expected in zip(_step(name, t, compiled, case), _step(name, t, network, case), strict=True):
                assert error(actual, expected) < TOLERANCE[torch.float32]
    assert len(seen) == 1, "other sizes must not be compiled anew"


# Importing inductor makes torch warn about itself.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@named
def test_inductor(name: str) -> None:
    torch._dynamo.reset()
    case = _case(name)
    t = case.tensors("roi_pool", channels_last=True)
    network = _network(name)
    compiled = torch.compile(network, fullgraph=True, dynamic=True)
    for actual, expected in zip(_step(name, t, compiled, case), _step(name, t, network, case), strict=True):
        assert error(actual, expected) < TOLERANCE[torch.float32]


@named
def test_compiles_under_autocast(name: str) -> None:
    torch._dynamo.reset()
    network = _network(name)

    def low(*arguments: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return network(*arguments)

    case = _case(name)
    t = case.tensors("roi_pool")
    compiled = torch.compile(low, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(_step(name, t, compiled, case), _step(name, t, low, case), strict=True):
        assert actual.dtype == expected.dtype
        assert error(actual, expected) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("strict", [False, True])
@named
def test_export_keeps_one_node_and_any_number_of_boxes(name: str, strict: bool) -> None:
    class Pool(torch.nn.Module):
        def forward(self, x: Tensor, rois: Tensor) -> Tensor:
            return getattr(ops, name)(x, rois, 3, 0.5)

    case = _case(name)
    t = case.tensors("roi_pool")
    free = ({0: torch.export.Dim("batch", max=64)}, {0: torch.export.Dim("boxes", max=4096)})
    program = torch.export.export(Pool(), (t["input"], t["boxes"]), dynamic_shapes=free, strict=strict)
    nodes = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert nodes.count(getattr(torch.ops.pliant, name).default) == 1
    other = RoICase("", (4, *case.input[1:]), 17).tensors("roi_pool")
    assert torch.equal(program.module()(other["input"], other["boxes"]), Pool()(other["input"], other["boxes"]))


@named
def test_kernels_refuse_what_does_not_fit(name: str) -> None:
    # Reached past the public function, as from an exported program.
    op, back = getattr(torch.ops.pliant, name), getattr(torch.ops.pliant, f"{name}_backward")
    x, rois = torch.zeros(2, 8, 5, 5), torch.zeros(3, 5)
    for wrong in (
        (x[0], rois, (2, 2), 1.0),
        (x.int(), rois, (2, 2), 1.0),
        (x, rois[:, 1:], (2, 2), 1.0),
        (x, rois.long(), (2, 2), 1.0),
        (x, rois, (0, 2), 1.0),
        (x[..., :0], rois, (2, 2), 1.0),
    ):
        with pytest.raises(RuntimeError, match=f"{name}: the arguments do not fit each other"):
            op(*wrong)
    right = _backward_arguments(name, {"input": x, "boxes": rois}, (x, rois, (2, 2), 1.0), False)
    with pytest.raises(RuntimeError, match=f"{name}: the arguments do not fit each other"):
        back(right[0][:2], *right[1:])


def test_pixels_that_are_none_are_not_written() -> None:
    taken = torch.tensor([[[[99, -7], [2**31 - 1, 3]]]], dtype=torch.int32)
    grad = torch.ones(1, 1, 2, 2)
    found = torch.ops.pliant.roi_pool_backward(grad, (1, 1, 2, 2), False, torch.zeros(1, 5), (2, 2), 1.0, taken)
    assert found.tolist() == [[[[0, 0], [0, 1]]]]
