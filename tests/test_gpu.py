"""Which implementation runs on a GPU, and what the user is told where it is not the kernel.

No GPU is needed: tensors are fake, or they are on the CPU, which then stands in for a GPU.
"""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from pliant import _native, ops
from pliant.ops import batched_nms, deform_conv2d, local_response_norm, lrn, nms
from pliant.testing import DEFORM_CONV_CASES, LRN_CASES, NMS_CASES, PS_ROI_CASES, ROI_CASES

CONV = next(case for case in DEFORM_CONV_CASES if case.name == "crooked")
NORM = next(case for case in LRN_CASES if case.name == "alexnet")


def _on(t: Tensor, device: str) -> Tensor:
    return t if device == "cpu" else torch.empty_like(t, device=device)


def _convolve(dtype: torch.dtype, device: str, **options: Any) -> Tensor:
    t = {name: _on(x, device) for name, x in CONV.tensors(dtype).items()}
    return deform_conv2d(**t, **CONV.geometry, **options)


def _normalize(dtype: torch.dtype, device: str, **options: Any) -> Tensor:
    return local_response_norm(_on(NORM.tensors(dtype)["input"], device), **NORM.arguments, **options)


def _tensorflow(dtype: torch.dtype, device: str, **options: Any) -> Tensor:
    return lrn(_on(NORM.tensors(dtype)["input"], device), **options)


def _pool(op: str) -> Callable[..., Tensor]:
    case = (PS_ROI_CASES if "ps" in op else ROI_CASES)[0]

    def call(dtype: torch.dtype, device: str, **options: Any) -> Tensor:
        t = {name: _on(x, device) for name, x in case.tensors(op, dtype).items()}
        result: Tensor = getattr(ops, op)(**t, **case.arguments(op), **options)
        return result

    return call


def _suppress(dtype: torch.dtype, device: str, **options: Any) -> Tensor:
    t = {name: _on(x, device) for name, x in NMS_CASES[2].tensors(dtype).items() if name != "classes"}
    return nms(**t, iou_threshold=0.5, **options)


def _suppress_by_class(dtype: torch.dtype, device: str, **options: Any) -> Tensor:
    t = {name: _on(x, device) for name, x in NMS_CASES[2].tensors(dtype).items()}
    return batched_nms(**t, iou_threshold=0.5, **options)


ROI_OPERATORS = ("roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_roi_pool", "deform_psroi_pool")
CALLS: dict[str, Callable[..., Tensor]] = {
    "deform_conv2d": _convolve,
    "local_response_norm": _normalize,
    "lrn": _tensorflow,
    **{op: _pool(op) for op in ROI_OPERATORS},
    "nms": _suppress,
    "batched_nms": _suppress_by_class,
}
every = pytest.mark.parametrize("name", CALLS)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what is known about devices, and which warnings were given."""
    monkeypatch.setattr(_native, "_warned", set())
    monkeypatch.setattr(_native, "_lacks", {})


def test_every_operator_with_a_gpu_kernel_has_it_registered() -> None:
    assert set(CALLS) <= _native._on_gpu
    for name in _native._on_gpu - {"lrn", "batched_nms"}:
        for key in ("CUDA", "XPU"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"pliant::{name}", key), name


@pytest.mark.parametrize("device", ["cuda", "xpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every
def test_the_kernel_is_chosen(monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, device: str) -> None:
    monkeypatch.setattr(_native, "_look", lambda kind, index: "")
    # The number of boxes kept depends on values, so the mode needs a symbol for it.
    with FakeTensorMode(shape_env=ShapeEnv()):
        y = CALLS[name](dtype, device, implementation="native")
    assert (y.device.type, y.dtype) == (device, torch.int64 if "nms" in name else dtype)


def _says(name: str, why: str, call: Callable[[str], object]) -> None:
    """Assert that "auto" runs the reference, with one warning that names the reason, and that "native" raises."""
    with pytest.warns(RuntimeWarning, match=f"^{name}: runs on the slow reference, {why}$") as said:
        call("auto")
    assert len(said) == 1
    call("auto")
    with pytest.raises(RuntimeError, match=f'^{name}: implementation="native" is not possible here, {why}$'):
        call("native")


# Only the choice is tested: the reference cannot run on fake tensors of devices that this torch was built without.


@pytest.mark.parametrize(
    ("device", "dtype", "why"),
    [
        ("cuda", torch.float32, "torch finds no cuda device"),
        ("cuda", torch.float64, "there is no cuda kernel for float64"),
        ("mps", torch.float32, "there is no mps kernel"),
    ],
)
@every
def test_the_reason_is_said(
    monkeypatch: pytest.MonkeyPatch, name: str, device: str, dtype: torch.dtype, why: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with FakeTensorMode():
        t = torch.empty(1, device=device, dtype=dtype)
        _says(name, why, lambda implementation: not _native.chosen(name, implementation, t))


def test_an_operator_without_a_gpu_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode():
        t = torch.empty(1, device="cuda")
        _says("something", "there is no cuda kernel", lambda i: _native.chosen("something", i, t))


@pytest.fixture
def cpu_as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU stand in for a GPU."""
    monkeypatch.setattr(_native, "GPUS", ("cpu",))


@pytest.mark.usefixtures("cpu_as_gpu")
@every
def test_what_cannot_run_is_computed_by_the_reference(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(_native, "_look", lambda kind, index: "Triton is not installed")
    # With "auto", eager CPU tensors take a short cut, except under autocast.
    with torch.autocast("cpu", enabled=True, dtype=torch.bfloat16):
        low = CALLS[name](torch.float32, "cpu", implementation="reference")
        with pytest.warns(RuntimeWarning, match=f"^{name}: runs on the slow reference, Triton is not installed$"):
            assert torch.equal(CALLS[name](torch.float32, "cpu"), low)
    with pytest.raises(RuntimeError, match="Triton is not installed"):
        CALLS[name](torch.float32, "cpu", implementation="native")


@pytest.mark.parametrize(
    ("capability", "triton", "why"),
    [
        ((7, 5), None, "Triton needs compute capability 8.0, this GPU has 7.5"),
        ((8, 0), None, "Triton is not installed"),
        ((9, 0), "broken", "Triton does not run: Failed to find C compiler."),
        ((12, 0), "whole", ""),
    ],
)
def test_what_triton_lacks(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], triton: str | None, why: str
) -> None:
    def target() -> None:
        if triton == "broken":
            raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

    module = types.SimpleNamespace(get_current_target=target)
    module.runtime = module.driver = module.active = module
    devices = types.SimpleNamespace(
        is_available=lambda: True, get_device_capability=lambda index: capability, device=lambda index: nullcontext()
    )
    monkeypatch.setattr(torch, "get_device_module", lambda kind: devices)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setitem(sys.modules, "triton", module if triton else None)
    assert _native._look("cuda", 0) == why


@pytest.mark.usefixtures("cpu_as_gpu")
@pytest.mark.parametrize("why", ["", "Triton is not installed"])
def test_compiles_whole(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    monkeypatch.setattr(_native, "_look", lambda kind, index: why)
    torch._dynamo.reset()
    seen = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        seen.extend(node.target for node in graph.graph.nodes)
        return graph

    def network(t: dict[str, Tensor]) -> Tensor:
        return local_response_norm(deform_conv2d(**t, **CONV.geometry, implementation=implementation), 5)

    # "native" does not take the short cut of eager CPU tensors.
    implementation = "native" if not why else "auto"
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend=backend)
    t = CONV.tensors()
    if why:
        with pytest.warns(RuntimeWarning, match="runs on the slow reference, Triton is not installed"):
            compiled(t)
    else:
        compiled(t)
    assert (torch.ops.pliant.deform_conv2d in seen) == (not why)


# What a call does besides its kernels, on fake tensors: they have no values, so reading one is an error.


def _kernel(name: str, suffix: str) -> Callable[..., Any]:
    """Return the function that is registered for GPUs."""
    if name in ("roi_align", "ps_roi_align", "deform_roi_pool", "deform_psroi_pool"):
        from pliant.ops.roi.triton import averages as _averaging_triton

        return functools.partial(_averaging_triton.backward if suffix else _averaging_triton.forward, name)
    found: Callable[..., Any] = getattr(importlib.import_module(f"pliant.ops.{name}.op"), f"_on_gpu{suffix}")
    return found


def _gradients(name: str, t: dict[str, Tensor], case: Any) -> tuple[list[Any], list[Any]]:
    """Return the arguments of an operator and of its backward, in the order of their schemas. Runs the forward."""
    op = getattr(torch.ops.pliant, name)
    if name == "deform_conv2d":
        geometry = (*case.stride, *case.padding, *case.dilation, False)
        tensors = [t[n] for n in ("input", "offset", "weight", "bias", "mask")]
        y = op(*tensors, *geometry)
        del tensors[3]
        return [*tensors[:3], t["bias"], tensors[3], *geometry], [torch.empty_like(y), *tensors, *geometry, 0b1111]
    if name == "local_response_norm":
        window = (1, 2, 2, False, 1e-4, 0.75, 2.0)
        return [t["input"], *window], [torch.empty_like(t["input"]), t["input"], *window]
    (Ph, Pw), scale = case.output_size, case.spatial_scale
    N, _, H, W = t["input"].shape
    last = torch._prims_common.suggest_memory_format(t["input"]) == torch.channels_last
    if name == "roi_pool":
        arguments = [t["input"], t["boxes"], Ph, Pw, scale]
        y, taken = op(*arguments)
        return arguments, [torch.empty_like(y), t["boxes"], taken, N, H, W, last]
    if name == "ps_roi_pool":
        arguments = [t["input"], t["boxes"], Ph, Pw, scale]
        return arguments, [torch.empty_like(op(*arguments)), t["boxes"], N, H, W, scale, last]
    geometry = {
        "roi_align": (Ph, Pw, scale, 2, True),
        "ps_roi_align": (Ph, Pw, scale, 2),
        "deform_roi_pool": (Ph, Pw, scale, 2, 0.1),
        "deform_psroi_pool": (Ph, scale, case.group_size, case.part_size, case.samples, 0.1),
    }[name]
    moved = name.startswith("deform")
    tensors = [t["rois"], t["offset"], t["mask"]] if moved else [t["boxes"]]
    arguments = [t["input"], *tensors, *geometry]
    return arguments, [torch.empty_like(op(*arguments)), *arguments, *([0b111] if moved else [])]


@pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "deterministic"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["deform_conv2d", "local_response_norm", *ROI_OPERATORS])
def test_no_value_is_read_and_strides_are_those_of_the_fake_kernel(
    monkeypatch: pytest.MonkeyPatch, name: str, channels_last: bool, deterministic: bool
) -> None:
    """Otherwise a CUDA graph could not record the call, and compiled code would read the wrong layout."""
    pytest.importorskip("triton")
    from pliant.ops.gpu import launch as _launch

    launched: list[_launch.Launch] = []
    monkeypatch.setattr(_launch.Launch, "run", lambda launch, device: launched.append(launch))
    case: Any = {"deform_conv2d": CONV, "local_response_norm": NORM}.get(name)
    if case is None:
        case = (PS_ROI_CASES if "ps" in name else ROI_CASES)[0]
        t = case.tensors(name, torch.bfloat16, channels_last=channels_last)
    else:
        t = case.tensors(torch.bfloat16, channels_last=channels_last)
    torch.use_deterministic_algorithms(deterministic)
    with FakeTensorMode():
        t = {n: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype) for n, x in t.items()}
        forward, backward = _gradients(name, t, case)
        for suffix, arguments in (("", forward), ("_backward", backward)):
            promised = getattr(torch.ops.pliant, name + suffix)(*arguments)
            launched.clear()
            found = _kernel(name, suffix)(*arguments)
            assert launched
            pairs = [(found, promised)] if isinstance(found, Tensor) else zip(found, promised, strict=True)
            for a, b in pairs:
                assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
                assert a.stride() == b.stride() or not a.numel()
    torch.use_deterministic_algorithms(True)


# The number of boxes kept is a size that export has to name: see tests/ops/nms.
@pytest.mark.parametrize("name", [name for name in CALLS if "nms" not in name])
def test_exports_as_one_node(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(_native, "_look", lambda kind, index: "")

    class Network(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            # The tensors are those of the case, so the graph holds the operator alone.
            return CALLS[name](torch.float32, "cuda", implementation="native") + x

    with FakeTensorMode():
        program = torch.export.export(Network(), (torch.empty(1, device="cuda"),))
    nodes = [node.target for node in program.graph.nodes if "pliant" in str(node.target)]
    assert [str(target).split(".")[1] for target in nodes] == [name.replace("lrn", "local_response_norm")]


@every
def test_autocast_runs_in_low_precision(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(_native, "_look", lambda kind, index: "")
    # torch.autocast("cuda") itself does nothing where there is no GPU.
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with FakeTensorMode(shape_env=ShapeEnv()):
            y = CALLS[name](torch.float32, "cuda", implementation="native")
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)
    assert y.dtype == (torch.int64 if "nms" in name else torch.bfloat16)


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_what_pytorchs_own_products_are_allowed(allowed: bool) -> None:
    pytest.importorskip("triton")
    from pliant.ops.conv.triton.shape import precision

    matmul = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision(), matmul.fp32_precision
    try:
        for ask in (
            lambda: setattr(matmul, "allow_tf32", allowed),
            lambda: setattr(matmul, "fp32_precision", "tf32" if allowed else "ieee"),
            lambda: torch.set_float32_matmul_precision("high" if allowed else "highest"),
        ):
            ask()
            assert precision(torch.empty(1)) == ("tf32" if allowed else "ieee")
            assert precision(torch.empty(1, dtype=torch.float16)) == "ieee"
    finally:
        torch.set_float32_matmul_precision(before[0])
        matmul.fp32_precision = before[1]
