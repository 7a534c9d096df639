"""``pliant doctor``: what is installed, what is missing, and whether every operator agrees with its reference."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import textwrap
from typing import Any

import torch
from torch import Tensor

import pliant
from pliant import _native, testing
from pliant.app import trace
from pliant.ops.table import OPERATORS, Operator

# Outputs; first and second derivatives; all of them where samples lie at whole pixels.
KINDS = ("forward", "backward", "second", "integers")


def errors(operator: Operator) -> dict[str, float]:
    """Return the errors of an operator's kernel against the float64 reference, each the largest of several tensors.

    They are those of ``forward``; of the first and ``second`` derivatives, where the operator has some; and of both,
    with the output, where all samples lie at whole pixels (``integers``), where derivatives are one-sided. The case is
    the one that the table of operators names.

    Raises:
        RuntimeError: there is no kernel.
    """
    case = next(case for case in operator.cases if case.name == operator.checked)
    found = _compared(operator, operator.tensors(case, torch.float64), operator.settings(case))
    if operator.integers is not None:
        tensors, settings = operator.integers()
        settings_of = ({**settings, **variant} for variant in operator.variants)
        found["integers"] = max(max(_compared(operator, tensors, more).values()) for more in settings_of)
    return found


def _compared(operator: Operator, tensors: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, float]:
    # Both are given the same values, those in float32.
    tensors = {name: _as(tensor, torch.float32) for name, tensor in tensors.items()}
    expected = _run(operator, tensors, settings, "reference", torch.float64)
    actual = _run(operator, tensors, settings, "native", torch.float32)
    return {
        name: max(testing.error(a, e) for a, e in zip(actual[name], wanted, strict=True))
        for name, wanted in expected.items()
    }


def _run(
    operator: Operator, tensors: dict[str, Tensor], settings: dict[str, Any], implementation: str, dtype: torch.dtype
) -> dict[str, tuple[Tensor, ...]]:
    """Return the output and the derivatives along fixed directions."""
    tensors = {name: _as(tensor, dtype).detach().clone() for name, tensor in tensors.items()}
    leaves = [tensors[name].requires_grad_() for name in operator.gradients]
    output = operator.function(**tensors, **settings, implementation=implementation)
    if not leaves:
        return {"forward": (output,)}
    # The derivative in this direction is the operator's own linear part, which no second derivative lacks.
    gradient = _direction(output).requires_grad_()
    first = torch.autograd.grad(output, leaves, gradient, create_graph=True)
    total = torch.stack([(g * _direction(g)).sum() for g in first]).sum()
    second = torch.autograd.grad(total, [*leaves, gradient], materialize_grads=True)
    return {"forward": (output,), "backward": first, "second": second}


def _direction(tensor: Tensor) -> Tensor:
    return torch.linspace(-1, 1, tensor.numel(), dtype=tensor.dtype).view(tensor.shape)


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
    width = max(len(operator.name) for operator in OPERATORS)
    agree = [_report(operator, limit, width) for operator in OPERATORS]
    return 0 if all(agree) else 1


def _report(operator: Operator, limit: float, width: int) -> bool:
    """Print one line about an operator; return whether it agrees with its reference."""
    name = operator.name
    try:
        found = errors(operator)
    except Exception as error:
        # Whatever went wrong, the other operators are checked too.
        trace(error)
        print(f"{name:<{width}}  failed: {textwrap.shorten(str(error), 160)}")
        return False
    # Written so that a NaN fails.
    agrees = all(value <= limit for value in found.values())
    columns = [f"{kind} {f'{found[kind]:.0e}' if kind in found else 'none':>5}" for kind in KINDS]
    print("  ".join([f"{name:<{width}}", *columns, "ok" if agrees else "failed"]))
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
