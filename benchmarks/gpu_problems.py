"""What benchmarks/gpu.py times: every operator's contestants, and the exact results that they are checked against."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pliant import ops
from pliant.ops import deform_conv2d, local_response_norm, nms
from pliant.testing import DEFORM_CONV_SPEED, LRN_SPEED, NMS_SPEED, ROI_SPEED, DeformConvCase, LRNCase, NMSCase

# float32 twice: as IEEE has it, and rounded to TF32 where the matrix units read it.
PRECISIONS = ("bfloat16", "float32", "tf32", "float16")
NAMES = ("input", "offset", "mask", "weight", "bias")


@dataclass(frozen=True)
class Contestant:
    """What is timed; `checked` says whether it computes the operator."""

    name: str
    run: Callable[[], Any]
    checked: bool = True


@dataclass(frozen=True)
class Problem:
    """One row of blocks in the table: contestants, and the exact result for the first image."""

    op: str
    case: str
    batch: int
    precision: str
    mode: str
    contestants: Callable[[], Sequence[Contestant]]
    exact: Callable[[], tuple[Tensor, ...]]


def dtype_of(precision: str) -> torch.dtype:
    """Return the dtype of a precision, and let the matrix units round float32 to TF32 or not."""
    mode = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = mode
    torch.backends.cudnn.conv.fp32_precision = mode
    dtype: torch.dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
    return dtype


# Deformable convolution.


@functools.cache
def _drawn(case: DeformConvCase, device: str) -> dict[str, Tensor]:
    """Return the inputs in float32: drawing them takes the processor longer than everything else takes the GPU."""
    return {name: x.to(device) for name, x in case.tensors(channels_last=True).items()}


def conv_tensors(case: DeformConvCase, precision: str, device: str) -> dict[str, Tensor]:
    """Return the inputs channels-last, offsets a little away from integers, where their gradient jumps."""
    dtype = dtype_of(precision)
    t = {name: x.to(dtype, copy=True) for name, x in _drawn(case, device).items()}
    whole = t["offset"].float().floor()
    t["offset"] = (whole + (t["offset"].float() - whole).clamp(0.02, 0.98)).to(dtype)
    return t


def conv_problems(batches: Sequence[int], device: str) -> Iterator[Problem]:
    """Yield S1 to S8, what is promised most about first: bfloat16, large batches."""
    for precision in PRECISIONS:
        for batch in batches:
            for mode in ("forward", "forward + backward"):
                for case in DEFORM_CONV_SPEED:
                    whole = replace(case, input=(case.input[0] * batch, *case.input[1:]))
                    yield conv_problem(whole, case.name, batch, precision, mode, device)


def conv_problem(case: DeformConvCase, name: str, batch: int, precision: str, mode: str, device: str) -> Problem:
    backward = mode != "forward"

    def call(function: Callable[..., Tensor], t: dict[str, Tensor], grad: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        tensors = [t[n].detach().requires_grad_(backward) for n in NAMES]

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (function(*tensors),)

        def both() -> tuple[Tensor, ...]:
            y = function(*tensors)
            found = torch.autograd.grad(y, tensors, grad, allow_unused=True)
            return (y.detach(), *(g for g in found[:3] if g is not None))

        return both if backward else forward

    def own(implementation: str) -> Callable[..., Tensor]:
        def run(input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return deform_conv2d(input, offset, weight, bias, mask=mask, **case.geometry, implementation=implementation)

        return run

    def above(dtype: torch.dtype) -> Tensor:
        random = torch.Generator().manual_seed(1)
        grad = torch.randn(case.input[0], case.out_channels, *case.output, generator=random)
        return grad.to(dtype).to(device).contiguous(memory_format=torch.channels_last)

    def contestants() -> Sequence[Contestant]:
        t = conv_tensors(case, precision, device)
        t["weight"] = t["weight"].contiguous(memory_format=torch.channels_last)
        grad = above(t["input"].dtype)
        nchw = {n: x.contiguous() for n, x in t.items()}

        def plain(input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return F.conv2d(input, weight, bias, case.stride, case.padding, case.dilation, case.groups)

        found = [
            Contestant("copy", lambda: t["input"].clone(), checked=False),
            Contestant("conv2d", call(plain, t, grad), checked=False),
            Contestant("pliant", call(own("native"), t, grad)),
        ]
        if precision == "bfloat16":
            found.append(Contestant("pliant nchw", call(own("native"), nchw, grad.contiguous())))
        if importlib.util.find_spec("torchvision"):
            ops = importlib.import_module("torchvision.ops")

            def torchvision(input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
                return ops.deform_conv2d(input, offset, weight, bias, case.stride, case.padding, case.dilation, mask)

            # It has no bfloat16: who computes in it converts to float32 and back, which is not counted here.
            low = precision == "bfloat16"
            tensors = {n: x.float() for n, x in nchw.items()} if low else nchw
            label = "torchvision float32" if low else "torchvision"
            found.append(Contestant(label, call(torchvision, tensors, grad.float() if low else grad)))
        if importlib.util.find_spec("deformops"):
            module = importlib.import_module("deformops.integrations.torchvision")

            def deformops(input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
                return module.deform_conv2d(input, offset, weight, bias, case.stride, case.padding, case.dilation, mask)

            found.append(Contestant("deformops", call(deformops, nchw, grad)))
        return found

    def exact() -> tuple[Tensor, ...]:
        t = conv_tensors(case, precision, device)
        first = {n: (x[:1] if n in NAMES[:3] else x).double() for n, x in t.items()}
        grad = above(t["input"].dtype)[:1].double()
        return call(own("reference"), first, grad)()

    return Problem("deform_conv2d", name, batch, precision, mode, contestants, exact)


# Local response normalization.


def lrn_problems(device: str) -> Iterator[Problem]:
    """Yield A1 and A2 at batch 256, in both layouts."""
    for precision in ("float32", "bfloat16"):
        for mode in ("forward", "forward + backward"):
            for case in LRN_SPEED[:2]:
                for last in (False, True):
                    yield lrn_problem(replace(case, input=(256, *case.input[1:])), precision, mode, last, device)


def lrn_problem(case: LRNCase, precision: str, mode: str, channels_last: bool, device: str) -> Problem:
    backward = mode != "forward"

    def tensors() -> dict[str, Tensor]:
        few = replace(case, input=(8, *case.input[1:])).tensors(dtype_of(precision), channels_last=channels_last)
        format = torch.channels_last if channels_last else torch.contiguous_format
        return {n: x.to(device).repeat(32, 1, 1, 1).contiguous(memory_format=format) for n, x in few.items()}

    def call(function: Callable[[Tensor], Tensor], t: dict[str, Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        x = t["input"].detach().requires_grad_(backward)

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (function(x),)

        def both() -> tuple[Tensor, ...]:
            y = function(x)
            return (y.detach(), *torch.autograd.grad(y, x, t["grad"]))

        return both if backward else forward

    def contestants() -> Sequence[Contestant]:
        t = tensors()
        target = torch.empty_like(t["input"])

        def copies() -> None:
            # Forward reads and writes once; the backward reads two tensors and writes one.
            target.copy_(t["input"])
            if backward:
                target.copy_(t["input"])
                target[: len(target) // 2].copy_(t["grad"][: len(target) // 2])

        def torchs(x: Tensor) -> Tensor:
            return F.local_response_norm(x, case.size, case.alpha, case.beta, case.k)

        def own(x: Tensor) -> Tensor:
            return local_response_norm(x, **case.arguments, implementation="native")

        return [
            Contestant("copy", copies, checked=False),
            Contestant("pliant", call(own, t)),
            Contestant("torch", call(torchs, t)),
        ]

    def exact() -> tuple[Tensor, ...]:
        first = {n: x[:1].double() for n, x in tensors().items()}
        return call(lambda x: local_response_norm(x, **case.arguments, implementation="reference"), first)()

    layout = " channels_last" if channels_last else " nchw"
    return Problem("local_response_norm", case.name + layout, 256, precision, mode, contestants, exact)


# Boxes.


def box_problems(device: str) -> Iterator[Problem]:
    """Yield RoI pooling on 1000 RoIs, and suppression among 2000 and 20000 boxes."""
    for precision in ("bfloat16", "float32"):
        for mode in ("forward", "forward + backward"):
            for op in ("deform_roi_pool", "roi_align", "roi_pool"):
                yield roi_problem(op, precision, mode, device)
    for case in (NMS_SPEED[0], NMS_SPEED[2]):
        yield nms_problem(case, device)


def roi_problem(op: str, precision: str, mode: str, device: str) -> Problem:
    """Return deformable RoI pooling with offsets and masks, or one of its elders, on a map of 256 channels."""
    case, backward = replace(ROI_SPEED[0], rois=1000), mode != "forward"
    size, names = (case.rois, case.input[1], *case.output_size), ("offset", "mask")

    def call(function: Callable[..., Tensor], t: dict[str, Tensor], grad: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        leaves = {n: x.detach().requires_grad_(backward) for n, x in t.items() if n not in ("rois", "boxes")}
        boxes = t["rois" if "rois" in t else "boxes"]

        def run() -> Tensor:
            return function(leaves["input"], boxes, **{n: leaves[n] for n in names if n in leaves})

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (run(),)

        def both() -> tuple[Tensor, ...]:
            y = run()
            return (y.detach(), *torch.autograd.grad(y, list(leaves.values()), grad))

        return both if backward else forward

    def own(implementation: str) -> Callable[..., Tensor]:
        def run(input: Tensor, boxes: Tensor, offset: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
            options = {**case.arguments(op), "implementation": implementation}
            if op == "deform_roi_pool":
                return ops.deform_roi_pool(input, boxes, offset, mask=mask, **options)
            found: Tensor = getattr(ops, op)(input, boxes, **options)
            return found

        return run

    def tensors() -> tuple[dict[str, Tensor], Tensor]:
        t = {n: x.to(device) for n, x in case.tensors(op, dtype_of(precision), channels_last=True).items()}
        grad = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(device, t["input"].dtype)
        return t, grad

    def contestants() -> Sequence[Contestant]:
        t, grad = tensors()
        found = [
            Contestant("copy of the output", lambda: grad.clone(), checked=False),
            Contestant("pliant", call(own("native"), t, grad)),
        ]
        if importlib.util.find_spec("torchvision"):
            other = "roi_align" if op == "deform_roi_pool" else op
            peer = getattr(importlib.import_module("torchvision.ops"), other)

            def torchvision(input: Tensor, boxes: Tensor, **_: Tensor) -> Tensor:
                return peer(input, boxes.to(input.dtype), **case.arguments(other))

            # It has no deformable form: beside that one it stands as RoIAlign, which moves no bins.
            plain = {"input": t["input"].contiguous(), "boxes": t["rois" if "rois" in t else "boxes"]}
            # Boxes of a low precision are others: the result is not compared.
            checked = op == other and precision == "float32"
            found.append(Contestant(f"torchvision {other}", call(torchvision, plain, grad), checked))
        return found

    def exact() -> tuple[Tensor, ...]:
        t, grad = tensors()
        # Of RoIs the first is compared, of the map all that they add up to.
        found = call(own("reference"), {n: x.double() for n, x in t.items()}, grad.double())()
        return tuple(x[:1] for x in found)

    return Problem(op, "R1, 1000 RoIs", 1, precision, mode, contestants, exact)


def nms_problem(case: NMSCase, device: str) -> Problem:
    def call(function: Callable[..., Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        t = {n: x.to(device) for n, x in case.tensors().items() if n != "classes"}
        # All indices are one row: what is checked is the first of the results.
        return lambda: (function(**t)[None],)

    def own(implementation: str) -> Callable[..., Tensor]:
        return lambda boxes, scores: nms(boxes, scores, 0.5, implementation=implementation)

    def contestants() -> Sequence[Contestant]:
        found = [
            Contestant("sort", call(lambda boxes, scores: scores.argsort(descending=True, stable=True)), checked=False),
            Contestant("pliant", call(own("native"))),
        ]
        if importlib.util.find_spec("torchvision"):
            peer = importlib.import_module("torchvision.ops").nms
            found.append(Contestant("torchvision", call(lambda boxes, scores: peer(boxes, scores, 0.5))))
        return found

    return Problem("nms", case.name, 1, "float32", "forward", contestants, lambda: call(own("reference"))())
