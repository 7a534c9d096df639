"""Local response normalization: the limit is a copy, the peer is PyTorch's own function."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import peers as others
from measuring import Call, Problem, Setting, call, inputs
from pliant.ops import local_response_norm
from pliant.testing import LRNCase


def problem(case: LRNCase, setting: Setting) -> Problem:
    """Return a problem: pliant in both layouts, two yardsticks, PyTorch and other libraries."""
    backward = setting.backward
    nhwc = inputs(case, setting)
    nchw = {name: x.contiguous() for name, x in nhwc.items()}
    target = torch.empty_like(nchw["input"])

    def timed(function: Callable[..., Tensor], t: dict[str, Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        return call(function, {"input": t["input"]}, t["grad"], backward, ("input",))

    def own(implementation: str) -> Callable[..., Tensor]:
        return functools.partial(local_response_norm, **case.arguments, implementation=implementation)

    def exact() -> tuple[Tensor, ...]:
        return timed(own("reference"), {name: x[:1].double() for name, x in nchw.items()})()

    contestants = [
        Call("clone", nchw["input"].clone, checked=False),
        Call("copy_", lambda: target.copy_(nchw["input"]), checked=False),
        Call("pliant nchw", timed(own(setting.implementation), nchw)),
        Call("pliant channels_last", timed(own(setting.implementation), nhwc)),
    ]
    if setting.peers != "none":
        constants = {"size": case.size, "alpha": case.alpha, "beta": case.beta, "k": case.k}
        torchs = functools.partial(F.local_response_norm, **constants)
        contestants.append(Call("torch nchw", timed(torchs, nchw)))
        contestants.append(Call("torch channels_last", timed(torchs, nhwc)))
    if setting.peers == "all" and setting.device == "cpu":
        runtimes = {
            "ONNX Runtime": lambda: others.onnxruntime_lrn(case, nchw),
            "OpenVINO": lambda: others.openvino_lrn(case, nchw),
        }
        frameworks = {
            "oneDNN channels_last": lambda: others.onednn_lrn(case, nhwc, backward),
            "TensorFlow channels_last": lambda: others.tensorflow_lrn(case, nhwc, backward),
        }
        makers = frameworks if backward else {**runtimes, **frameworks}
        contestants += [Call(name, run) for name, run in others.available(makers)]
    # Forward reads and writes once; backward reads two tensors and writes one.
    limit = {"clone": 2.0, "copy_": 0.5} if backward else {"clone": 1.0}
    return Problem(case.name, str(case.input), contestants, limit, exact)
