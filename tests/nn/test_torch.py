"""What torch does with a layer: TorchScript, and dtypes that do not fit."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from pliant.interop import dcnv2, mmcv
from pliant.nn import DeformConv2d, DeformPSRoIPool, DeformRoIPool, LocalResponseNorm
from pliant.testing import TOLERANCE, error

# torch's own: TorchScript is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")
ROIS = torch.tensor([[0.0, 1, 1, 6, 6]])


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (5, {}),
        (4, {}),
        (4, {"even": "right"}),
        (3, {"region": "spatial"}),
        (5, {"alpha": 1, "beta": 1, "k": 2}),
        (5, {"alpha": 2e-4, "beta": 0.5}),
    ],
)
def test_scripted_normalization_is_the_layer(size: int, options: dict[str, Any]) -> None:
    layer = LocalResponseNorm(size, **options)
    written = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Sequential(layer)), written)
    written.seek(0)
    scripted = torch.jit.load(written)
    input = torch.randn(2, 8, 5, 6, requires_grad=True)
    outputs = [layer(input), scripted(input)]
    assert torch.equal(*outputs)
    assert torch.equal(*(torch.autograd.grad(output.square().sum(), input)[0] for output in outputs))
    if set(options) <= {"alpha", "beta", "k"}:
        numbers = {name: float(value) for name, value in options.items()}
        torchs = torch.jit.script(nn.LocalResponseNorm(size, **numbers))(input)
        assert error(outputs[1], torchs) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize(
    "layer",
    [
        DeformConv2d(4, 4, 3),
        nn.Sequential(nn.ReLU(), DeformConv2d(4, 4, 3)),
        DeformRoIPool(2, 4),
        DeformPSRoIPool(2, 4),
        mmcv.ModulatedDeformConv2dPack(4, 4, 3),
        dcnv2.DCN(4, 4, 3, 1, 1),
    ],
)
def test_layers_that_cannot_be_scripted_say_what_to_do(layer: nn.Module) -> None:
    with pytest.raises(
        TypeError, match=r": torch\.jit\.script cannot compile it; use torch\.jit\.trace, torch\.export"
    ):
        torch.jit.script(layer)


def test_a_layer_names_a_dtype_that_does_not_fit() -> None:
    x = torch.randn(1, 4, 8, 8)
    for layer, argument, inputs in (
        (DeformConv2d(4, 4, 3), "input", (x,)),
        (DeformRoIPool(2, 4), "input", (x, ROIS)),
        (DeformPSRoIPool(2, 4), "features", (x, x, ROIS)),
    ):
        name = type(layer).__name__
        with pytest.raises(
            TypeError, match=rf"^{name}: {argument} is float32, the layer float16; convert one of them$"
        ):
            layer.half()(*inputs)
        with pytest.raises(TypeError, match=rf"^{name}: {argument} is int64, the layer float64; convert one of them$"):
            layer.double()(*(tensor.long() for tensor in inputs))
        with torch.autocast("cpu", torch.bfloat16):
            assert layer.float()(*inputs).isfinite().all()
