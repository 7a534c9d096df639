"""Find and load the compiled kernels; say clearly what is missing."""

from __future__ import annotations

import importlib.util
import warnings

import torch
from torch import Tensor
from torch.autograd import forward_ad

IMPLEMENTATIONS = ("auto", "native", "reference")

# Operators are declared in Python (schema, fake, autograd) and implemented in C++.
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
    if path is None:
        why = reason
    elif forward_ad._current_level >= 0:
        why = "the kernels have no forward-mode derivative"
    elif torch._C._are_functorch_transforms_active():
        why = "torch.func does not see through the kernels"
    elif kind in ("cpu", "meta"):
        return True
    else:
        why = f"there is no {kind} kernel"
    if implementation == "native":
        raise RuntimeError(f'{op}: implementation="native" is not possible here, {why}')
    _warn_once(op, why)
    return False


# torch.compile calls it while it traces, instead of breaking the graph.
@torch.compiler.assume_constant_result
def _warn_once(op: str, why: str) -> None:
    if (op, why) not in _warned:
        _warned.add((op, why))
        warnings.warn(f"{op}: runs on the slow reference, {why}", RuntimeWarning, stacklevel=4)


_warned: set[tuple[str, str]] = set()
