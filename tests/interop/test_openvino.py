"""OpenVINO computes the same results from exported programs and from traces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant import ops
from pliant.interop import openvino as ours
from pliant.models import ResNet
from pliant.nn import (
    DeformConv1d,
    DeformConv2d,
    DeformConv3d,
    DeformConvTranspose2d,
    DeformPSRoIPool,
    DeformRoIPool,
    LocalResponseNorm,
)
from pliant.testing import error

# Warnings of torch.jit.trace, which OpenVINO calls itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
FREE = torch.export.Dim.DYNAMIC
Moving = Callable[[nn.Module, float], nn.Module]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    sentence = r'^openvino: needs the package openvino: pip install "\.\[openvino\]" in a clone of the repository$'
    with pytest.raises(ModuleNotFoundError, match=sentence):
        ours.extensions()
    with pytest.raises(ModuleNotFoundError, match=sentence):
        ours.convert(nn.Identity().eval(), (torch.ones(1),))


class Suppressing(nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        return ops.nms(boxes, scores, 0.5)


def test_suppression_is_refused(openvino: Any) -> None:
    with pytest.raises(ValueError, match=r"^openvino.convert: the model has nms, which is not converted; end"):
        ours.convert(Suppressing().eval(), (torch.rand(5, 4), torch.rand(5)))


@pytest.fixture(scope="module")
def openvino() -> Any:
    return pytest.importorskip("openvino", reason="openvino is not installed (the extra openvino)")


def _agree(openvino: Any, converted: Any, model: nn.Module, *given: tuple[Tensor, ...]) -> None:
    compiled = openvino.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for args in given:
        found = compiled([t.numpy() for t in args])
        with torch.no_grad():
            expected = model(*args)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for i, wanted in enumerate(expected):
            assert error(torch.from_numpy(found[i]), wanted) <= 1e-5


@pytest.mark.parametrize("layer", ["version 2", "version 1, everything", "clamped"], indirect=True)
@pytest.mark.parametrize("way", ["exported", "traced"])
def test_deformable_layers(openvino: Any, layer: nn.Module, way: str) -> None:
    x, other = torch.randn(2, 8, 12, 11), torch.randn(3, 8, 9, 14)
    if way == "exported":
        converted = ours.convert(layer, (x,), dynamic=True)
    else:
        layer = nn.Sequential(nn.Conv2d(8, 8, 1), layer).eval()
        converted = openvino.convert_model(layer, example_input=x, extension=ours.extensions())
    _agree(openvino, converted, layer, (x,), (other,))


FAMILY: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "sequence": (lambda **o: DeformConv1d(8, 6, 3, padding=1, groups=2, offset_groups=2, **o), (2, 8, 12)),
    "volume": (lambda **o: DeformConv3d(4, 6, (2, 3, 2), padding=1, groups=2, **o), (2, 4, 4, 6, 5)),
    "transposed": (lambda **o: DeformConvTranspose2d(8, 6, 4, 2, 1, groups=2, offset_groups=3, **o), (2, 8, 6, 5)),
}


@pytest.mark.parametrize("boundary", ["zeros", "clamp"])
@pytest.mark.parametrize("name", FAMILY)
def test_sequences_volumes_and_transposed(openvino: Any, name: str, boundary: str, moving: Moving) -> None:
    build, size = FAMILY[name]
    layer, x = moving(build(boundary=boundary), 0.3), torch.randn(size)
    _agree(openvino, ours.convert(layer, (x,)), layer, (x,))


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.five, self.four = LocalResponseNorm(5, alpha=0.5), LocalResponseNorm(4, alpha=0.5)
        self.spatial = LocalResponseNorm(3, alpha=0.5, region="spatial")

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.five(x), self.four(x), self.spatial(x), ops.lrn(x, 2, 1.0, 0.5, 0.75)


def test_normalization(openvino: Any) -> None:
    torch.manual_seed(0)
    x = 3 * torch.randn(2, 8, 5, 6)
    net = Norms().eval()
    _agree(openvino, ours.convert(net, (x,)), net, (x,))


class Pools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.deform = DeformRoIPool(2, 8, 0.5, 2, hidden=(8,))
        self.parts = DeformPSRoIPool(2, 8, 2, 0.5, sample_per_part=2)

    def forward(self, x: Tensor, rois: Tensor) -> tuple[Tensor, ...]:
        return (
            ops.roi_align(x, rois, (2, 3), 0.5, 2, True),
            ops.roi_align(x, rois, (2, 3), 0.5, 0, False),
            ops.roi_pool(x, rois, (2, 3), 0.5),
            ops.ps_roi_align(x, rois, 2, 0.5, 2),
            ops.ps_roi_pool(x, rois, 2, 0.5),
            self.deform(x, rois),
            self.parts(x, x, rois),
        )


def test_rois(openvino: Any, moving: Moving) -> None:
    net = moving(Pools(), 0.3)
    corner = torch.rand(31, 2) * torch.tensor([27.0, 20.0])
    rois = torch.cat([torch.randint(2, (31, 1)).float(), corner, corner + 16 * torch.rand(31, 2)], 1)
    x = torch.randn(2, 8, 13, 17)
    converted = ours.convert(net, (x, rois[:20]), dynamic_shapes=({}, {0: FREE}))
    _agree(openvino, converted, net, (x, rois[:20]), (x, rois))


class Traced(nn.Module):
    def forward(self, x: Tensor, rois: Tensor) -> tuple[Tensor, ...]:
        return ops.roi_align(x, rois, 2, 0.5, 2, True), ops.roi_pool(x, rois, 2, 0.5), ops.local_response_norm(x, 3)


def test_traced_rois(openvino: Any) -> None:
    torch.manual_seed(0)
    x, rois = torch.randn(2, 8, 13, 17), torch.tensor([[0.0, 2, 3, 20, 11], [1, 5, 5, 5.5, 6]])
    net = Traced().eval()
    converted = openvino.convert_model(net, example_input=(x, rois), extension=ours.extensions())
    converted.reshape({converted.inputs[0]: x.shape, converted.inputs[1]: rois.shape})
    _agree(openvino, converted, net, (x, rois))


@pytest.mark.parametrize("attending", ["uniform", "around points", "ragged", "discrete"], indirect=True)
def test_multi_scale_attention(openvino: Any, attending: nn.Module) -> None:
    maps, others = (
        tuple(torch.randn(n, 16, *size) for size in sizes)
        for n, sizes in ((2, ((8, 6), (4, 3))), (3, ((5, 9), (3, 7))))
    )
    _agree(openvino, ours.convert(attending, maps, dynamic=True), attending, maps, others)


@pytest.mark.parametrize("aggregating", ["DCNv3", "DCNv4", "DCNv3, everything", "DCNv4, everything"], indirect=True)
def test_aggregation(openvino: Any, aggregating: nn.Module) -> None:
    x, other = torch.randn(2, 16, 7, 9), torch.randn(3, 16, 11, 6)
    _agree(openvino, ours.convert(aggregating, (x,), dynamic=True), aggregating, (x,), (other,))


def test_a_deformable_resnet(openvino: Any, moving: Moving) -> None:
    net = moving(ResNet(18, deform=(None, None, "v1", "v2"), width=8), 0.02)
    x, other = torch.randn(2, 3, 64, 64), torch.randn(3, 3, 96, 80)
    _agree(openvino, ours.convert(net, (x,), dynamic=True), net, (x,), (other,))


def test_what_the_extensions_refuse(openvino: Any) -> None:
    x = torch.randn(2, 8, 5, 6)
    with pytest.raises(Exception, match=r"OpenVINO has it for odd windows over dimension 1"):
        openvino.convert_model(LocalResponseNorm(4), example_input=x, extension=ours.extensions())
    with pytest.raises(
        ValueError, match=r"^openvino.convert: the model is in training mode; call model.eval\(\) first$"
    ):
        ours.convert(DeformConv2d(8, 8, 3), (x,))
