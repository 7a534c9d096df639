"""Find and load the compiled kernels; say clearly what is missing."""

from __future__ import annotations

import functools
import importlib.util
import warnings

import torch
from torch import Tensor

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
    why = reason if path is None else f"there is no {kind} kernel"
    if path is not None and kind in ("cpu", "meta"):
        return True
    if implementation == "native":
        raise RuntimeError(f'{op}: implementation="native" is not possible here, {why}')
    _warn_once(op, why)
    return False


@functools.cache
def _warn_once(op: str, why: str) -> None:
    warnings.warn(f"{op}: runs on the slow reference, {why}", RuntimeWarning, stacklevel=4)
