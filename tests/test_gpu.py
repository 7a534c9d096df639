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
from torch.utils._python_dispatch import TorchDispatchMode

from pliant import _native
from pliant.ops import deform_conv2d, local_response_norm
from pliant.ops.table import OPERATORS, Operator
from pliant.testing import DEFORM_CONV_CASES

CONV = next(case for case in DEFORM_CONV_CASES if case.name == "crooked")


def _on(t: Tensor, device: str) -> Tensor:
    return t if device == "cpu" else torch.empty_like(t, device=device)


def _call(operator: Operator, dtype: torch.dtype, device: str, **options: Any) -> Tensor:
    """Call an operator on the case that `pliant doctor` checks."""
    case = next(case for case in operator.cases if case.name == operator.checked)
    t = {name: _on(x, device) for name, x in operator.tensors(case, dtype).items()}
    return operator.function(**t, **operator.settings(case), **options)


CALLS: dict[str, Callable[..., Tensor]] = {o.name: functools.partial(_call, o) for o in OPERATORS}
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
    assert (torch.ops.pliant.deform_conv2d.default in seen) == (not why)


# What a call does besides its kernels, on fake tensors: they have no values, so reading one is an error.


class Calls(TorchDispatchMode):
    """Records the calls of pliant's operators, forward and backward, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "pliant":
            self.made.append((func, args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "deterministic"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("operator", [o for o in OPERATORS if o.gradients], ids=lambda o: o.name)
def test_no_value_is_read_and_strides_are_those_of_the_fake_kernel(
    monkeypatch: pytest.MonkeyPatch, operator: Operator, channels_last: bool, deterministic: bool
) -> None:
    """Otherwise a CUDA graph could not record the call, and compiled code would read the wrong layout."""
    pytest.importorskip("triton")
    from pliant.ops.gpu.launch import Launch

    launched: list[Launch] = []
    monkeypatch.setattr(Launch, "run", lambda launch, device: launched.append(launch))
    kernels = importlib.import_module(operator.function.__module__)._triton()
    case = operator.cases[0]
    t = operator.tensors(case, torch.bfloat16, channels_last=channels_last)
    torch.use_deterministic_algorithms(deterministic)
    with FakeTensorMode(), Calls() as calls:
        t = {n: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype) for n, x in t.items()}
        for name in operator.gradients:
            t[name].requires_grad_()
        operator.function(**t, **operator.settings(case)).sum().backward()
        forward, backward = list(calls.made)
        for op, arguments in (forward, backward):
            arguments = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
            promised = op(*arguments)
            launched.clear()
            found = getattr(kernels, op._schema.name.removeprefix("pliant::"))(*arguments)
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
