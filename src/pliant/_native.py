"""Find and load the compiled kernels, and report clearly what is missing."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

Function = TypeVar("Function", bound=Callable[..., Any])

IMPLEMENTATIONS = ("auto", "native", "reference")
# Devices that the Triton kernels run on; ROCm devices are called cuda too.
GPUS = ("cuda", "xpu")

# Operators are declared in Python (schema, fake kernel, autograd) and implemented in C++ for CPUs, in Triton for GPUs.
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


# The file that the kernels were loaded from, or None and the reason why they were not.
path, reason = _load()


def instruction_level() -> str:
    """Return the instruction level that the kernels run at, such as ``"x86-64-v3"``.

    It is the highest that the processor has, or the one that the environment variable ``PLIANT_LEVEL`` names.
    """
    if path is None:
        return "none"
    return {0: "baseline", 3: "x86-64-v3", 4: "x86-64-v4"}[torch.ops.pliant.instruction_level()]


def _refuse_wrong_level() -> None:
    try:
        instruction_level()
    except RuntimeError as error:
        # The file and the line in C++ stand before the sentence.
        raise ValueError("PLIANT_LEVEL" + str(error).partition("PLIANT_LEVEL")[2]) from None


_refuse_wrong_level()


def on_gpu(name: str, kernel: Callable[..., Any], *others: str) -> None:
    """Register the GPU kernel of an operator, a function that imports Triton when it is called.

    `others` are further names under which :func:`chosen` finds it.
    """
    for kind in GPUS:
        library.impl(name, kernel, kind.upper())
    _on_gpu.update((name, *others))


_on_gpu: set[str] = set()


def chosen(op: str, implementation: str, tensor: Tensor, compiled: bool = True) -> bool:
    """Return True where `op` runs on its kernel, False where it runs on the reference.

    `compiled` says whether the library that was loaded has the operator: an older one may lack it.

    ``"auto"`` takes the kernel where there is one, else the reference with one warning naming the reason;
    ``"native"`` raises RuntimeError where there is none.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"{op}: implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}")
    if implementation == "reference":
        return False
    kind = tensor.device.type
    if kind in GPUS and op in _on_gpu:
        # GPUs compute in float64 very slowly, or not at all.
        low = tensor.dtype != torch.float64
        why = _lacking(kind, tensor.device.index) if low else f"there is no {kind} kernel for float64"
    elif kind in ("cpu", "meta"):
        why = reason if path is None else "" if compiled else f"{path} was compiled without it; run make"
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


def _constant(function: Function) -> Function:
    """Let torch.compile call a function during tracing, instead of tracing it or breaking the graph.

    ``torch.compiler.assume_constant_result`` does the same but imports torch._dynamo, which costs a second per start.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant
def _lacking(kind: str, index: int | None) -> str:
    """Return the reason why Triton does not run on a GPU, or an empty string where it does."""
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
        # Triton builds a small extension module here, which fails without a C compiler or Python's headers.
        with devices.device(index):
            triton.runtime.driver.active.get_current_target()
    except Exception as error:
        return f"Triton does not run: {_first_line(error)}"
    return ""


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@_constant
def _warn_once(op: str, why: str) -> None:
    if (op, why) not in _warned:
        _warned.add((op, why))
        warnings.warn(f"{op}: runs on the slow reference, {why}", RuntimeWarning, stacklevel=_level())


_warned: set[tuple[str, str]] = set()


def _level() -> int:
    """Return the `stacklevel` with which this function's caller warns at the first line outside of pliant."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(_PACKAGE):
        frame, level = frame.f_back, level + 1
    return level


_PACKAGE = Path(__file__).parent
