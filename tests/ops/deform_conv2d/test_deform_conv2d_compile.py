"""Deformable convolution inside torch's machinery: schema, fake tensors, torch.compile, torch.export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.optests import opcheck

from pliant.ops import deform_conv2d
from pliant.testing import DEFORM_CONV_CASES, TOLERANCE, DeformConvCase, error

BY_NAME = {case.name: case for case in DEFORM_CONV_CASES}
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])


def _arguments(case: DeformConvCase, t: dict[str, Tensor], clamp: bool = False) -> tuple[Any, ...]:
    geometry = (case.stride, case.padding, case.dilation)
    return (t["input"], t["offset"], t["weight"], t.get("bias"), *geometry, t.get("mask"), clamp)


@LAYOUTS
@pytest.mark.parametrize("optional", ["bias and mask", "neither"])
@pytest.mark.parametrize("name", ["crooked", "one_pixel", "pointwise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(name: str, dtype: torch.dtype, optional: str, channels_last: bool) -> None:
    case = BY_NAME[name]
    tensors = case.tensors(dtype, channels_last=channels_last)
    if optional == "neither":
        del tensors["bias"], tensors["mask"]
    arguments = _arguments(case, {k: t.requires_grad_() for k, t in tensors.items()})
    opcheck(torch.ops.pliant.deform_conv2d.default, arguments, atol=1e-2, rtol=1e-2)

    backward = [t.detach() if isinstance(t, Tensor) else t for t in arguments]
    above = torch.ones(case.input[0], case.out_channels, *case.output, dtype=dtype)
    del backward[3]
    wanted = 0b1111 if "mask" in tensors else 0b0111
    opcheck(torch.ops.pliant.deform_conv2d_backward.default, (above, *backward, wanted), atol=1e-2, rtol=1e-2)


@LAYOUTS
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1), (2, 1, 1, 1), (1, 4, 6, 1), (0, 3, 4, 5)])
def test_fake_strides_are_the_kernels(shape: tuple[int, int, int, int], channels_last: bool) -> None:
    # Shapes of which the layout is ambiguous too: inductor lays out memory by what the fake kernel says.
    case = DeformConvCase("ambiguous", shape, 2)
    t = case.tensors(channels_last=channels_last)
    if not channels_last:
        t["input"] = t["input"].contiguous()
    arguments = _arguments(case, t)
    y = torch.ops.pliant.deform_conv2d(*arguments)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in arguments]
        assert torch.ops.pliant.deform_conv2d(*fake).stride() == y.stride()
    backward = (torch.ones_like(y), *arguments[:3], *arguments[4:], 0b1111)
    found = torch.ops.pliant.deform_conv2d_backward(*backward)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in backward]
        for real, claimed in zip(found, torch.ops.pliant.deform_conv2d_backward(*fake), strict=True):
            assert claimed.shape == real.shape
            assert claimed.dtype == real.dtype
            if real.numel():
                assert claimed.stride() == real.stride()


def _step(t: dict[str, Tensor], call: Any, case: DeformConvCase) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in t.values()]
    y = call(*leaves, case.geometry)
    y.square().mean().backward()
    return [y.detach(), *[x.grad for x in leaves]]


def _network(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor, geometry: Any) -> Tensor:
    return deform_conv2d(x.relu(), offset, weight, bias, **geometry, mask=mask).tanh()


@pytest.mark.parametrize("name", ["crooked", "depthwise", "wide"])
def test_compiles_whole_and_dynamic(name: str) -> None:
    torch._dynamo.reset()
    seen = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        seen.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(_network, fullgraph=True, dynamic=True, backend=backend)
    # Sizes that are equal by chance (a batch of 2, a kernel of 2) are not equal by necessity.
    with torch.fx.experimental._config.patch(use_duck_shape=False):
        for n, extra in ((2, 0), (3, 4), (5, 7)):
            _, C, H, W = BY_NAME[name].input
            case = DeformConvCase(**{**BY_NAME[name].__dict__, "input": (n, C, H + extra, W + extra)})
            t = case.tensors()
            for actual, expected in zip(_step(t, compiled, case), _step(t, _network, case), strict=True):
                assert error(actual, expected) < TOLERANCE[torch.float32]
    assert len(seen) == 1, "other sizes must not be compiled anew"


def test_the_reference_compiles_too() -> None:
    torch._dynamo.reset()

    def network(*tensors: Any) -> Tensor:
        x, offset, weight, bias, mask, geometry = tensors
        return deform_conv2d(x, offset, weight, bias, **geometry, mask=mask, implementation="reference")

    case = BY_NAME["crooked"]
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    t = case.tensors()
    for actual, expected in zip(_step(t, compiled, case), _step(t, network, case), strict=True):
        assert error(actual, expected) < TOLERANCE[torch.float32]


# Importing inductor makes torch warn about itself.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_inductor() -> None:
    torch._dynamo.reset()
    case = BY_NAME["plain"]
    t = case.tensors(channels_last=True)
    compiled = torch.compile(_network, fullgraph=True, dynamic=True)
    for actual, expected in zip(_step(t, compiled, case), _step(t, _network, case), strict=True):
        assert error(actual, expected) < TOLERANCE[torch.float32]


def test_compiles_under_autocast() -> None:
    torch._dynamo.reset()
    case = BY_NAME["plain"]

    def network(*tensors: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return _network(*tensors)

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    t = case.tensors()
    for actual, expected in zip(_step(t, compiled, case), _step(t, network, case), strict=True):
        assert actual.dtype == expected.dtype
        assert error(actual, expected) < TOLERANCE[torch.bfloat16]


class _Exported(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return deform_conv2d(x, offset, self.weight, padding=1, mask=mask)


@pytest.mark.parametrize("strict", [False, True])
def test_export_keeps_one_node_and_a_free_batch(strict: bool) -> None:
    case = BY_NAME["plain"]
    t = case.tensors()
    module = _Exported(t["weight"])
    free = {0: torch.export.Dim("batch", max=64)}
    program = torch.export.export(
        module, (t["input"], t["offset"], t["mask"]), dynamic_shapes=(free, free, free), strict=strict
    )
    nodes = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert nodes.count(torch.ops.pliant.deform_conv2d.default) == 1
    other = DeformConvCase(**{**case.__dict__, "input": (7, *case.input[1:])}).tensors()
    call = (other["input"], other["offset"], other["mask"])
    assert torch.equal(program.module()(*call), module(*call))


def test_fake_tensors_have_the_eager_shapes_and_dtypes() -> None:
    for case in DEFORM_CONV_CASES:
        t = case.tensors(torch.bfloat16)
        t["offset"] = t["offset"].float()
        with FakeTensorMode() as mode:
            y = deform_conv2d(**{k: mode.from_tensor(x) for k, x in t.items()}, **case.geometry)
        assert y.shape == (case.input[0], case.out_channels, *case.output)
        assert y.dtype == torch.bfloat16
