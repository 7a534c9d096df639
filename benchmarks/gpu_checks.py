"""What must hold on a GPU besides right numbers; benchmarks/gpu.py runs these checks before it measures."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import traceback

import torch
from torch import Tensor

from pliant.ops import deform_conv2d
from pliant.testing import TOLERANCE, DeformConvCase, error


def checks() -> dict[str, str]:
    """Return for each check, by its docstring, "ok" or what went wrong."""
    found = {}
    for check in (first_result, deterministic, graphs, compiles, exports, autocasts):
        name = check.__doc__ or check.__name__
        try:
            found[name] = check() or "ok"
        except Exception:
            found[name] = traceback.format_exc(limit=-3)
        print(f"  {name:60} {found[name].splitlines()[-1]}", flush=True)
    return found


SMALL = DeformConvCase("small", (2, 64, 40, 44), 64)


def _leaves(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    t = SMALL.tensors(dtype, channels_last=True)
    return {name: x.cuda().requires_grad_() for name, x in t.items()}


def _layer(t: dict[str, Tensor]) -> Tensor:
    return deform_conv2d(**t, **SMALL.geometry, implementation="native")


def first_result() -> str:
    """a new process has its first result within 10 s, with nothing compiled before"""
    code = (
        "import time; start = time.perf_counter(); import torch; from pliant.ops import deform_conv2d; "
        "x = torch.randn(1, 256, 50, 84, device='cuda', dtype=torch.bfloat16); "
        "o = torch.randn(1, 18, 50, 84, device='cuda', dtype=torch.bfloat16); "
        "w = torch.randn(256, 256, 3, 3, device='cuda', dtype=torch.bfloat16); "
        "middle = time.perf_counter(); deform_conv2d(x, o, w, padding=1, implementation='native'); "
        "torch.cuda.synchronize(); end = time.perf_counter(); print(end - start, end - middle)"
    )
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"TRITON_CACHE_DIR": cache}
        text = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    whole, call = map(float, text.split())
    return f"{'ok' if whole < 10 else 'TOO SLOW'}: {whole:.1f} s, {call:.1f} s of it in the call"


def deterministic() -> None:
    """deterministic algorithms give the same bits"""
    t = _leaves()
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = [torch.autograd.grad(_layer(t).square().sum(), list(t.values())) for _ in range(4)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def graphs() -> None:
    """a CUDA graph of forward and backward computes what the calls compute"""
    t = _leaves()
    expected = torch.autograd.grad(_layer(t).square().sum(), list(t.values()))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            torch.autograd.grad(_layer(t).square().sum(), list(t.values()))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = torch.autograd.grad(_layer(t).square().sum(), list(t.values()))
    graph.replay()
    torch.cuda.synchronize()
    assert all(error(a, e.double()) < 1e-5 for a, e in zip(found, expected, strict=True))


def compiles() -> None:
    """torch.compile(fullgraph=True, dynamic=True)"""
    t = _leaves()
    compiled = torch.compile(_layer, fullgraph=True, dynamic=True)
    assert error(compiled(t), _layer(t).double()) < 1e-5
    torch.autograd.grad(compiled(t).square().sum(), list(t.values()))


class _Exported(torch.nn.Module):
    def forward(self, t: dict[str, Tensor]) -> Tensor:
        return _layer(t)


def exports() -> None:
    """torch.export and AOTInductor, loaded into Python"""
    t = {name: x.detach() for name, x in _leaves().items()}
    program = torch.export.export(_Exported(), (t,))
    with tempfile.TemporaryDirectory() as folder:
        package = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/model.pt2")
        found = torch._inductor.aoti_load_package(package)(t)
    assert error(found, _layer(t).double()) < 1e-5


def autocasts() -> None:
    """autocast computes in bfloat16"""
    t = _leaves()
    with torch.autocast("cuda", torch.bfloat16):
        y = _layer(t)
    assert y.dtype == torch.bfloat16
    assert error(y, _layer(t).double()) < TOLERANCE[torch.bfloat16]
