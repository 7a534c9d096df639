"""The RoI averages inside torch's machinery: schema, fake tensors, torch.compile, torch.export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.optests import opcheck

from pliant import ops
from pliant.testing import PS_ROI_CASES, ROI_CASES, TOLERANCE, RoICase, error

NAMES = ("deform_roi_pool", "roi_align", "deform_psroi_pool", "ps_roi_align")
OPERATORS = pytest.mark.parametrize("op", NAMES)
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
CASES = {op: {c.name: c for c in (PS_ROI_CASES if "ps" in op else ROI_CASES)} for op in NAMES}


def _arguments(op: str, case: RoICase, t: dict[str, Tensor]) -> tuple[Any, ...]:
    """Return the arguments of the operator itself."""
    size, scale, ratio = case.output_size, case.spatial_scale, case.sampling_ratio
    geometry = {
        "deform_roi_pool": (size, scale, ratio, 0.1),
        "roi_align": (size, scale, ratio, False),
        "deform_psroi_pool": (size[0], scale, case.group_size, case.part_size, case.samples, 0.1),
        "ps_roi_align": (size, scale, ratio),
    }
    boxes = t["rois"] if "rois" in t else t["boxes"]
    if op.startswith("deform"):
        return (t["input"], boxes, t.get("offset"), *geometry[op], t.get("mask"))
    return (t["input"], boxes, *geometry[op])


@LAYOUTS
@pytest.mark.parametrize("optional", ["offset and mask", "neither"])
@pytest.mark.parametrize("name", ["plain", "pixel", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@OPERATORS
def test_opcheck(op: str, name: str, dtype: torch.dtype, optional: str, channels_last: bool) -> None:
    case = CASES[op][name]
    tensors = case.tensors(op, dtype, channels_last=channels_last)
    if optional == "neither":
        if "mask" not in tensors:
            pytest.skip("it has neither")
        del tensors["offset"], tensors["mask"]
    leaves = {k: t.requires_grad_(k not in ("rois", "boxes")) for k, t in tensors.items()}
    arguments = _arguments(op, case, leaves)
    opcheck(getattr(torch.ops.pliant, op).default, arguments, atol=1e-2, rtol=1e-2)

    plain = [t.detach() if isinstance(t, Tensor) else t for t in arguments]
    above = torch.ones_like(getattr(torch.ops.pliant, op)(*plain))
    wanted = (0b111 if "mask" in tensors else 0b001,) if op.startswith("deform") else ()
    opcheck(getattr(torch.ops.pliant, f"{op}_backward").default, (above, *plain, *wanted), atol=1e-2, rtol=1e-2)


@LAYOUTS
@pytest.mark.parametrize("shape", [(2, 4, 4, 5), (2, 4, 1, 1), (2, 4, 6, 1), (1, 4, 1, 5)])
@pytest.mark.parametrize("bins", [(2, 2), (1, 1)])
@OPERATORS
def test_fake_strides_are_the_kernels(
    op: str, bins: tuple[int, int], shape: tuple[int, int, int, int], channels_last: bool
) -> None:
    # Shapes of which the layout is ambiguous too: inductor lays out memory by what the fake kernel says.
    case = RoICase("ambiguous", shape, 3, bins, group_size=bins[0], part_size=2)
    arguments = _arguments(op, case, case.tensors(op, channels_last=channels_last))
    y = getattr(torch.ops.pliant, op)(*arguments)
    wanted = (7,) if op.startswith("deform") else ()
    backward = getattr(torch.ops.pliant, f"{op}_backward")
    found = backward(torch.ones_like(y), *arguments, *wanted)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in arguments]
        z = getattr(torch.ops.pliant, op)(*fake)
        assert (z.shape, z.dtype, z.stride()) == (y.shape, y.dtype, y.stride())
        claimed = backward(torch.ones_like(z), *fake, *wanted)
    pairs = zip(found, claimed, strict=True) if wanted else [(found, claimed)]
    for real, claim in pairs:
        assert (claim.shape, claim.dtype, claim.stride()) == (real.shape, real.dtype, real.stride())


def _network(op: str, t: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
    return getattr(ops, op)(**{**t, "input": t["input"].relu()}, **options).tanh()


def _step(op: str, t: dict[str, Tensor], call: Any, options: dict[str, Any]) -> list[Tensor]:
    leaves = {k: x.detach().clone().requires_grad_(k not in ("rois", "boxes")) for k, x in t.items()}
    y = call(op, leaves, options)
    y.square().sum().backward()
    return [y.detach(), *[x.grad for x in leaves.values() if x.requires_grad]]


@pytest.mark.parametrize("ratio", [0, 2])
@OPERATORS
def test_compiles_whole_and_dynamic(op: str, ratio: int) -> None:
    if op == "deform_psroi_pool" and ratio == 0:
        pytest.skip("it has no adaptive grid")
    torch._dynamo.reset()
    seen = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        seen.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(_network, fullgraph=True, dynamic=True, backend=backend)
    # Sizes that are equal by chance (two images, two bins) are not equal by necessity; the scale is a constant.
    free, fixed = (
        torch.fx.experimental._config.patch(use_duck_shape=False),
        torch._dynamo.config.patch(specialize_float=True),
    )
    with free, fixed:
        for n, extra, rois in ((2, 0, 5), (3, 4, 9), (5, 7, 2)):
            _, C, H, W = CASES[op]["plain"].input
            case = RoICase(
                **{
                    **CASES[op]["plain"].__dict__,
                    "input": (n, C, H + extra, W + extra),
                    "rois": rois,
                    "sampling_ratio": ratio,
                }
            )
            t, options = case.tensors(op), case.arguments(op)
            for actual, expected in zip(_step(op, t, compiled, options), _step(op, t, _network, options), strict=True):
                assert error(actual, expected) < TOLERANCE[torch.float32]
    assert len(seen) == 1, "other sizes must not be compiled anew"


@OPERATORS
def test_the_reference_compiles_too(op: str) -> None:
    torch._dynamo.reset()

    def network(op: str, t: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
        return getattr(ops, op)(**t, **options, implementation="reference")

    case = CASES[op]["plain"]
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    t, options = case.tensors(op), case.arguments(op)
    for actual, expected in zip(_step(op, t, compiled, options), _step(op, t, network, options), strict=True):
        assert error(actual, expected) < TOLERANCE[torch.float32]


# Importing inductor makes torch warn about itself.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_inductor() -> None:
    torch._dynamo.reset()
    op = "deform_roi_pool"
    case = CASES[op]["plain"]
    t, options = case.tensors(op, channels_last=True), case.arguments(op)
    compiled = torch.compile(_network, fullgraph=True, dynamic=True)
    for actual, expected in zip(_step(op, t, compiled, options), _step(op, t, _network, options), strict=True):
        assert error(actual, expected) < TOLERANCE[torch.float32]


@OPERATORS
def test_compiles_under_autocast(op: str) -> None:
    torch._dynamo.reset()
    case = CASES[op]["plain"]

    def network(*arguments: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return _network(*arguments)

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    t, options = case.tensors(op), case.arguments(op)
    for actual, expected in zip(_step(op, t, compiled, options), _step(op, t, network, options), strict=True):
        assert actual.dtype == expected.dtype
        assert error(actual, expected) < TOLERANCE[torch.bfloat16]


class _Exported(nn.Module):
    def __init__(self, op: str, options: dict[str, Any]) -> None:
        super().__init__()
        self.op, self.options = op, options

    def forward(self, *tensors: Tensor) -> Tensor:
        names = ("input", "rois", "offset", "mask") if len(tensors) == 4 else ("input", "boxes")
        return getattr(ops, self.op)(**dict(zip(names, tensors, strict=True)), **self.options)


@pytest.mark.parametrize("strict", [False, True])
@OPERATORS
def test_export_keeps_one_node_and_a_free_number_of_boxes(op: str, strict: bool) -> None:
    case = CASES[op]["plain"]
    module = _Exported(op, case.arguments(op))
    free = {0: torch.export.Dim("boxes", max=4096)}
    tensors = case.tensors(op)
    shapes = tuple(None if name == "input" else free for name in tensors)
    program = torch.export.export(module, tuple(tensors.values()), dynamic_shapes=(shapes,), strict=strict)
    nodes = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert nodes.count(getattr(torch.ops.pliant, op).default) == 1
    other = RoICase(**{**case.__dict__, "rois": 17}).tensors(op)
    assert torch.equal(program.module()(*other.values()), module(*other.values()))


@OPERATORS
def test_a_list_of_boxes_compiles(op: str) -> None:
    torch._dynamo.reset()
    case = CASES[op]["plain"]
    t = case.tensors(op)
    name = "rois" if "rois" in t else "boxes"
    boxes = t[name][:, 1:]
    t[name] = [boxes[:2], boxes[2:]]
    compiled = torch.compile(lambda t: getattr(ops, op)(**t, **case.arguments(op)), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(t), getattr(ops, op)(**t, **case.arguments(op)))
