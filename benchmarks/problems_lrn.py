"""Local response normalization: the limit is a copy, the peer is PyTorch's own function."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import peers as others
from measuring import Call, Problem
from pliant.ops import local_response_norm
from pliant.testing import LRN_SPEED as CASES
from pliant.testing import LRNCase

__all__ = ["CASES", "problem"]


def problem(case: LRNCase, backward: bool, peers: str) -> Problem:
    """Return the contestants for one case: `pliant` in both layouts, two yardsticks, PyTorch."""
    nchw, nhwc = case.tensors(), case.tensors(channels_last=True)
    target = torch.empty_like(nchw["input"])

    def own(x: Tensor) -> Tensor:
        return local_response_norm(x, **case.arguments, implementation="native")

    def torchs(x: Tensor) -> Tensor:
        return F.local_response_norm(x, case.size, case.alpha, case.beta, case.k)

    def exact() -> tuple[Tensor, ...]:
        first = {name: t[:1].double() for name, t in nchw.items()}
        result = call(lambda x: local_response_norm(x, **case.arguments, implementation="reference"), first, backward)()
        return result if isinstance(result, tuple) else (result,)

    contestants = [
        Call("clone", nchw["input"].clone, checked=False),
        Call("copy_", lambda: target.copy_(nchw["input"]), checked=False),
        Call("pliant nchw", call(own, nchw, backward)),
        Call("pliant channels_last", call(own, nhwc, backward)),
    ]
    if peers != "none":
        contestants.append(Call("torch nchw", call(torchs, nchw, backward)))
        contestants.append(Call("torch channels_last", call(torchs, nhwc, backward)))
    if peers == "all" and not backward:
        runtimes = {
            "ONNX Runtime": lambda: others.onnxruntime_lrn(case, nchw),
            "OpenVINO": lambda: others.openvino_lrn(case, nchw),
        }
        contestants += [Call(name, run) for name, run in others.available(runtimes)]
    if peers == "all":
        frameworks = {
            "oneDNN": lambda: others.onednn_lrn(case, nhwc, backward),
            "TensorFlow": lambda: others.tensorflow_lrn(case, nhwc, backward),
        }
        contestants += [Call(f"{name} channels_last", run) for name, run in others.available(frameworks)]
    # Read and write once; the backward reads two tensors and writes one.
    limit = {"clone": 2.0, "copy_": 0.5} if backward else {"clone": 1.0}
    return Problem(case.name, str(case.input), contestants, limit, exact)


def call(
    function: Callable[[Tensor], Tensor], t: dict[str, Tensor], backward: bool
) -> Callable[[], Tensor | tuple[Tensor, ...]]:
    """Return the call to time: the output alone, or output and input gradient."""
    x, grad = t["input"].detach().requires_grad_(backward), t["grad"]

    def forward() -> Tensor:
        with torch.no_grad():
            return function(x)

    def both() -> tuple[Tensor, ...]:
        y = function(x)
        return (y.detach(), *torch.autograd.grad(y, x, grad))

    return both if backward else forward
