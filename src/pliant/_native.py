"""Find and load the compiled kernels; say clearly what is missing."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

IMPLEMENTATIONS = ("auto", "native", "reference")
# Devices that Triton's kernels run on; ROCm's are called cuda too.
GPUS = ("cuda", "xpu")

# Operators are declared in Python (schema, fake, autograd) and implemented in C++, for GPUs in Triton.
library = torch.library.Library("pliant", "DEF")
library.define("instruction_level() -> int")


def _load() -> tuple[str | None, str]:
    spec = importlib.util.find_spec("pliant._C")
    if spec is None or spec.origin is None:
        return None, "pliant/_C.so is not installed beside the Python files"
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:
        return None, f"{spec.origin} does not load: {str(error).splitlines()[0]}"
    return spec.origin, ""


# Where the kernels were loaded from (None: not loaded), and why not.
path, reason = _load()


def instruction_level() -> str:
    """Return the instruction level the kernels chose on this machine, such as ``"x86-64-v3"``."""
    if path is None:
        return "none"
    return {0: "baseline", 3: "x86-64-v3", 4: "x86-64-v4"}[torch.ops.pliant.instruction_level()]


def on_gpu(name: str, kernel: Callable[..., Any], *others: str) -> None:
    """Register the kernel of an operator for GPUs: a call that imports Triton when it is made.

    `others` are more names under which :func:`chosen` is asked about it.
    """
    for kind in GPUS:
        library.impl(name, kernel, kind.upper())
    _on_gpu.update((name, *others))


_on_gpu: set[str] = set()


def chosen(op: str, implementation: str, tensor: Tensor) -> bool:
    """Return True where `op` runs on its kernel, False where it runs on the reference.

    ``"auto"`` takes the kernel where there is one, else the reference with one warning naming the reason;
    ``"native"`` raises RuntimeError where there is none.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"{op}: implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}")
    if implementation == "reference":
        return False
    kind = tensor.device.type
    if kind in GPUS and op in _on_gpu:
        # Graphics cards compute in float64 at a crawl, or not at all.
        low = tensor.dtype != torch.float64
        why = _lacking(kind, tensor.device.index) if low else f"there is no {kind} kernel for float64"
    elif kind in ("cpu", "meta"):
        why = reason if path is None else ""
    else:
        why = f"there is no {kind} kernel"
    if why:
        pass
    elif forward_ad._current_level >= 0:
        why = "the kernels have no forward-mode derivative"
    elif torch._C._are_functorch_transforms_active():
        why = "torch.func does not see through the kernels"
    else:
        return True
    if implementation == "native":
        raise RuntimeError(f'{op}: implementation="native" is not possible here, {why}')
    _warn_once(op, why)
    return False


def eager(
    op: Any, setup_context: Callable[..., None], backward: Callable[..., tuple[Tensor | None, ...]]
) -> Callable[..., Tensor | None]:
    """Return a short cut to a kernel: `op` on eager CPU tensors, at a third of what a call costs otherwise.

    The call returns None where this is not the way (traced, other devices, autocast, torch.func), and where the
    kernel refuses what it is given: it checks everything itself, the operator's own checks then find the words.
    `setup_context` and `backward` are those of `torch.library.register_autograd`, whose cost is what is saved.
    """

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Tensor:
            with torch._C._AutoDispatchBelowAutograd():
                output: Tensor = op(*inputs)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            if torch.is_grad_enabled():
                return backward(ctx, grad)
            with torch._C._AutoDispatchBelowAutograd():
                return backward(ctx, grad)

    # Here every line is paid for by every call of a small network: no generators, no names looked up twice.
    compiling, tracing = torch.compiler.is_compiling, torch._C._get_tracing_state
    modes, transforms = torch._C._len_torch_dispatch_stack, torch._C._are_functorch_transforms_active
    autocast, recording, below = torch.is_autocast_enabled, torch.is_grad_enabled, torch._C._AutoDispatchBelowAutograd

    def call(*inputs: Any) -> Tensor | None:
        if (
            path is None
            or compiling()
            or tracing() is not None
            or modes() > 0
            or forward_ad._current_level >= 0
            or transforms()
            or autocast("cpu")
        ):
            return None
        differentiable = False
        for t in inputs:
            if isinstance(t, Tensor):
                if (type(t) is not Tensor and type(t) is not Parameter) or not t.is_cpu:
                    return None
                differentiable |= t.requires_grad
        output: Tensor
        try:
            if differentiable and recording():
                output = Recorded.apply(*inputs)  # type: ignore[no-untyped-call]
            else:
                with below():
                    output = op(*inputs)
        except Exception:
            return None
        return output

    return call


# torch.compile calls these two while it traces, instead of breaking the graph.
@torch.compiler.assume_constant_result
def _lacking(kind: str, index: int | None) -> str:
    """Return why Triton does not run on a GPU, in words, or nothing where it does."""
    if (kind, index) not in _lacks:
        _lacks[kind, index] = _look(kind, index)
    return _lacks[kind, index]


_lacks: dict[tuple[str, int | None], str] = {}


def _look(kind: str, index: int | None) -> str:
    devices = torch.get_device_module(kind)
    if not devices.is_available():
        return f"torch finds no {kind} device"
    if kind == "cuda" and torch.version.hip is None:
        capability = devices.get_device_capability(index)
        if capability < (8, 0):
            return "Triton needs compute capability 8.0, this GPU has {}.{}".format(*capability)
    try:
        triton = importlib.import_module("triton")
    except ModuleNotFoundError as error:
        return "Triton is not installed" if error.name == "triton" else f"Triton does not load: {error}"
    except Exception as error:
        return f"Triton does not load: {_first_line(error)}"
    try:
        # It builds a small extension module: without a C compiler or Python's headers this is where that shows.
        with devices.device(index):
            triton.runtime.driver.active.get_current_target()
    except Exception as error:
        return f"Triton does not run: {_first_line(error)}"
    return ""


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@torch.compiler.assume_constant_result
def _warn_once(op: str, why: str) -> None:
    if (op, why) not in _warned:
        _warned.add((op, why))
        warnings.warn(f"{op}: runs on the slow reference, {why}", RuntimeWarning, stacklevel=4)


_warned: set[tuple[str, str]] = set()
