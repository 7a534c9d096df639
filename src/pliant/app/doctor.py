"""``pliant doctor``: what is installed, what is missing, and whether every operator agrees with its reference."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import textwrap

import torch
from torch import Tensor

import pliant
from pliant import _native, testing
from pliant.ops.table import OPERATORS, Operator


def errors(operator: Operator) -> tuple[float, float | None]:
    """Return the error of an operator's kernel against the float64 reference, forward and the largest of the backward.

    The latter is None where the operator has no gradient. The case is the one that the table of operators names.

    Raises:
        RuntimeError: there is no kernel.
    """
    expected, expected_gradients = _run(operator, "reference", torch.float64)
    actual, gradients = _run(operator, "native", torch.float32)
    pairs = zip(gradients, expected_gradients, strict=True)
    return testing.error(actual, expected), max((testing.error(a, e) for a, e in pairs), default=None)


def _run(operator: Operator, implementation: str, dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
    case = next(case for case in operator.cases if case.name == operator.checked)
    tensors = {name: _as(t, dtype) for name, t in operator.tensors(case).items()}
    leaves = [tensors[name].requires_grad_() for name in operator.gradients]
    output = operator.function(**tensors, **operator.settings(case), implementation=implementation)
    if not leaves:
        return output, ()
    gradient = torch.linspace(-1, 1, output.numel(), dtype=dtype).view(output.shape)
    return output, torch.autograd.grad(output, leaves, gradient)


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in another dtype; labels stay as they are."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print what is installed and check every operator; return 1 if one failed."""
    level = _native.instruction_level()
    for title, text in (
        ("pliant", pliant.__version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", torch.__version__),
        ("kernels", f"{_native.path}, {level}" if _native.path else f"none: {_native.reason}"),
        ("threads", f"{torch.get_num_threads()} of torch, {os.cpu_count()} cores"),
        ("triton", _triton()),
        ("gpu", _gpu()),
    ):
        print(f"{title:<8} {text}")
    limit = testing.TOLERANCE[torch.float32]
    print(f"\nkernels against their references, float32, largest relative error (limit {limit:.0e})")
    agree = [_report(operator, limit) for operator in OPERATORS]
    return 0 if all(agree) else 1


def _report(operator: Operator, limit: float) -> bool:
    """Print one line about an operator; return whether it agrees with its reference."""
    name = operator.name
    try:
        forward, backward = errors(operator)
    except Exception as error:
        # Whatever went wrong, the other operators are checked too.
        print(f"{name:<20} failed: {textwrap.shorten(str(error), 160)}")
        return False
    # Written so that a NaN fails.
    agrees = forward <= limit and (backward is None or backward <= limit)
    second = "none" if backward is None else f"{backward:.0e}"
    print(f"{name:<20} forward {forward:.0e}  backward {second:>5}  {'ok' if agrees else 'failed'}")
    return agrees


def _triton() -> str:
    try:
        # Imported, not looked up by distribution: torch's builds for other devices distribute it under other names.
        return str(importlib.import_module("triton").__version__)
    except ModuleNotFoundError as error:
        return "not installed" if error.name == "triton" else f"does not load: {error}"
    except Exception as error:
        return f"does not load: {textwrap.shorten(str(error), 160)}"


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names)
