"""``pliant doctor``: what is installed, what is missing, and whether every operator agrees with its reference."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import pliant
from pliant import _native, testing
from pliant.ops import (
    batched_nms,
    deform_conv2d,
    deform_psroi_pool,
    deform_roi_pool,
    local_response_norm,
    lrn,
    nms,
    ps_roi_align,
    ps_roi_pool,
    roi_align,
    roi_pool,
)


@dataclass(frozen=True)
class Check:
    """One operator on one small float32 case; `tensors` are differentiated if it has a gradient, `options` are not."""

    operator: Callable[..., Tensor]
    tensors: dict[str, Tensor]
    options: dict[str, object] = field(default_factory=dict)

    def errors(self) -> tuple[float, float | None]:
        """Return the kernel's error against the float64 reference, forward and the largest of the backward.

        The latter is None where the operator has no gradient.

        Raises:
            RuntimeError: there is no kernel.
        """
        expected, expected_gradients = self._run("reference", torch.float64)
        actual, gradients = self._run("native", torch.float32)
        pairs = zip(gradients, expected_gradients, strict=True)
        return testing.error(actual, expected), max((testing.error(a, e) for a, e in pairs), default=None)

    def _run(self, implementation: str, dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
        tensors = {name: t.detach().to(dtype).requires_grad_() for name, t in self.tensors.items()}
        output = self.operator(**tensors, **self.options, implementation=implementation)
        if not output.is_floating_point():
            return output, ()
        gradient = torch.linspace(-1, 1, output.numel(), dtype=dtype).view(output.shape)
        return output, torch.autograd.grad(output, list(tensors.values()), gradient)


def checks() -> list[Check]:
    """Return one check per operator of :mod:`pliant.ops`."""
    moved = next(case for case in testing.DEFORM_CONV_CASES if case.name == "crooked")
    normed = next(case for case in testing.LRN_CASES if case.name == "alexnet")
    activations = {"input": normed.tensors()["input"]}
    found = next(case for case in testing.NMS_CASES if case.name == "dense").tensors()
    classes = {"classes": found.pop("classes")}
    return [
        Check(deform_conv2d, moved.tensors(), {**moved.geometry}),
        Check(nms, found, {"iou_threshold": 0.5}),
        Check(batched_nms, found, {"iou_threshold": 0.5, **classes}),
        *_pools(),
        Check(local_response_norm, activations, {**normed.arguments}),
        Check(lrn, activations),
    ]


def _pools() -> list[Check]:
    grid = next(case for case in testing.ROI_CASES if case.name == "adaptive")
    parts = next(case for case in testing.PS_ROI_CASES if case.name == "classes")
    found = []
    for operator, case, boxes in (
        (deform_roi_pool, grid, "rois"),
        (roi_align, grid, "boxes"),
        (deform_psroi_pool, parts, "rois"),
        (ps_roi_align, parts, "boxes"),
        (roi_pool, grid, "boxes"),
        (ps_roi_pool, parts, "boxes"),
    ):
        tensors = case.tensors(operator.__name__)
        # Boxes have no gradient.
        options = {boxes: tensors.pop(boxes), **case.arguments(operator.__name__)}
        found.append(Check(operator, tensors, options))
    return found


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
    agree = [_report(check, limit) for check in checks()]
    return 0 if all(agree) else 1


def _report(check: Check, limit: float) -> bool:
    """Print one line about an operator; return whether it agrees with its reference."""
    name = check.operator.__name__
    try:
        forward, backward = check.errors()
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
