"""Layers as torch.jit traces, as files of torch.export, and as compiled packages that run without pliant's Python."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pliant import _native
from pliant.nn import DeformConv2d, DeformPSRoIPool, DeformRoIPool, LocalResponseNorm

FREE = torch.export.Dim.DYNAMIC
Moving = Callable[[nn.Module, float], nn.Module]


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = DeformPSRoIPool(2, 8, 2, 0.5)

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        pooled: Tensor = self.pool(x, x, rois)
        return pooled


LAYERS = {
    "version 1": DeformConv2d(8, 6, 3, padding=1, version=1, offset_groups=2),
    "version 2": DeformConv2d(8, 6, (3, 2), stride=2, groups=2, boundary="clamp"),
    "normalization": LocalResponseNorm(4, alpha=0.5),
    "within a channel": LocalResponseNorm(3, alpha=0.5, region="spatial"),
    "RoIs, version 1": DeformRoIPool(2, 8, 0.5, version=1),
    "RoIs, version 2": DeformRoIPool((2, 3), 8, 0.5, 2, hidden=(8,)),
    "parts": Parts(),
}


def _inputs(layer: str, N: int, H: int, W: int, R: int) -> tuple[Tensor, ...]:
    x, corner = torch.randn(N, 8, H, W), 16 * torch.rand(R, 2)
    rois = torch.cat([torch.randint(N, (R, 1)).float(), corner, corner + 8 * torch.rand(R, 2)], 1)
    return (x, rois) if layer in ("RoIs, version 1", "RoIs, version 2", "parts") else (x,)


@pytest.fixture(params=LAYERS)
def case(request: pytest.FixtureRequest, moving: Moving) -> tuple[nn.Module, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return a layer that moves its samples, inputs, and others of another size."""
    net = moving(LAYERS[request.param], 0.3)
    return net, _inputs(request.param, 2, 12, 11, 5), _inputs(request.param, 3, 9, 14, 8)


@pytest.mark.filterwarnings("ignore:`torch.jit")
# A trace leaves the checks of shapes out, and warns.
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced(case: tuple[nn.Module, tuple[Tensor, ...], tuple[Tensor, ...]]) -> None:
    net, given, others = case
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(net, given), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for inputs in (given, others):
        assert torch.equal(loaded(*inputs), net(*inputs))
    # The gradients of a trace are those of the layer.
    x, *rest = given
    found, wanted = (
        torch.autograd.grad(f(x, *rest).square().sum(), [x, *f.parameters()])
        for f, x in ((f, x.clone().requires_grad_()) for f in (loaded, net))
    )
    torch.testing.assert_close(found, wanted)


@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec:FutureWarning")
@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")  # of torch 2.10, when it loads
def test_exported(case: tuple[nn.Module, tuple[Tensor, ...], tuple[Tensor, ...]]) -> None:
    net, given, others = case
    shapes = tuple(dict.fromkeys((0, 2, 3) if x.dim() == 4 else (0,), FREE) for x in given)
    file = io.BytesIO()
    torch.export.save(torch.export.export(net, given, dynamic_shapes=shapes), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for inputs in (given, others):
        assert torch.equal(loaded(*inputs), net(*inputs))


SCRIPT = """
import sys
import torch

library, package, data = sys.argv[1:]
inputs, expected, schema = torch.load(data)
declared = torch.library.Library("pliant", "DEF")
declared.define(schema)
torch.ops.load_library(library)
found = torch._inductor.aoti_load_package(package)(*inputs)
assert not [name for name in sys.modules if name.partition(".")[0] == "pliant"]
assert not torch._C._dispatch_has_kernel_for_dispatch_key("pliant::deform_conv2d", "Autograd")
torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
print(tuple(found.shape))
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_compiled_package_needs_the_kernels_alone(
    moving: Moving, run: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    net = moving(DeformConv2d(8, 6, 3, padding=1), 0.3)
    x, other = torch.randn(2, 8, 12, 11), torch.randn(3, 8, 9, 14)
    package, data = tmp_path / "layer.pt2", tmp_path / "data.pt"
    with torch.no_grad():
        program = torch.export.export(net, (x,), dynamic_shapes=({0: FREE, 2: FREE, 3: FREE},))
        torch._inductor.aoti_compile_and_package(program, package_path=str(package))
        schema = str(torch.ops.pliant.deform_conv2d.default._schema).removeprefix("pliant::")
        torch.save(((other,), net(other), schema), data)
    assert _native.path is not None
    said, _ = run(SCRIPT, _native.path, package, data, folder=tmp_path)
    assert said == "(3, 6, 9, 14)\n"
