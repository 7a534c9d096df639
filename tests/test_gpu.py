"""Which implementation runs on a GPU, and what is said where it is not the kernel.

No GPU is needed: tensors are fake, or live on the CPU, which then counts as one.
"""

from __future__ import annotations

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


POOLS = ("roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_roi_pool", "deform_psroi_pool")
CALLS: dict[str, Callable[..., Tensor]] = {
    "deform_conv2d": _convolve,
    "local_response_norm": _normalize,
    "lrn": _tensorflow,
    **{op: _pool(op) for op in POOLS},
    "nms": _suppress,
    "batched_nms": _suppress_by_class,
}
every = pytest.mark.parametrize("name", CALLS)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known about any device, nothing was said."""
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
    # How many boxes are kept is a number that the mode has to name.
    with FakeTensorMode(shape_env=ShapeEnv()):
        y = CALLS[name](dtype, device, implementation="native")
    assert (y.device.type, y.dtype) == (device, torch.int64 if "nms" in name else dtype)


def _says(name: str, why: str, call: Callable[[str], object]) -> None:
    """Assert that "auto" is the reference with one warning that names the reason, and that "native" is refused."""
    with pytest.warns(RuntimeWarning, match=f"^{name}: runs on the slow reference, {why}$") as said:
        call("auto")
    assert len(said) == 1
    call("auto")
    with pytest.raises(RuntimeError, match=f'^{name}: implementation="native" is not possible here, {why}$'):
        call("native")


# The reference itself cannot run on fake tensors of devices that this torch was built without.


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
    """The CPU counts as a GPU."""
    monkeypatch.setattr(_native, "GPUS", ("cpu",))


@pytest.mark.usefixtures("cpu_as_gpu")
@every
def test_what_cannot_run_is_computed_by_the_reference(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(_native, "_look", lambda kind, index: "Triton is not installed")
    # Eager CPU tensors take a short cut with "auto", but under autocast.
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

    # Without the short cut of eager CPU tensors.
    implementation = "native" if not why else "auto"
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend=backend)
    t = CONV.tensors()
    if why:
        with pytest.warns(RuntimeWarning, match="runs on the slow reference, Triton is not installed"):
            compiled(t)
    else:
        compiled(t)
    assert (torch.ops.pliant.deform_conv2d in seen) == (not why)
