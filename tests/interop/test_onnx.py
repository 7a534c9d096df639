"""Exported files contain ONNX operators only, and ONNX Runtime computes the same results from them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant import ops
from pliant.interop import _rewriting
from pliant.interop.onnx import export
from pliant.models import RFCN, FasterRCNN, ResNet
from pliant.nn import (
    DeformConv1d,
    DeformConv2d,
    DeformConv3d,
    DeformConvTranspose2d,
    LocalResponseNorm,
)
from pliant.testing import error

onnx = pytest.importorskip("onnx", reason="onnx is not installed (the extra export)")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (the extra export)")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (the extra export)")

FREE = torch.export.Dim.DYNAMIC
Moving = Callable[[nn.Module, float], nn.Module]


def _compare(
    model: nn.Module, args: tuple[Tensor, ...], path: Path, *others: tuple[Tensor, ...], opset: int = 19, **options: Any
) -> list[str]:
    """Export, check, run on `args` and `others` and compare the results; return the operators in the file."""
    model.eval()
    export(model, args, path / "model.onnx", opset, **options)
    file = onnx.load(path / "model.onnx")
    onnx.checker.check_model(file, full_check=True)
    assert [(o.domain, o.version) for o in file.opset_import] == [("", opset)]
    session = onnxruntime.InferenceSession(path / "model.onnx", providers=["CPUExecutionProvider"])
    for given in (args, *others):
        with torch.no_grad():
            expected = model(*given)
        named = {i.name: t.numpy() for i, t in zip(session.get_inputs(), given, strict=True)}
        found = session.run(None, named)
        for actual, wanted in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
            assert error(torch.from_numpy(actual), wanted) <= 1e-5
    return [node.op_type for node in file.graph.node]


@pytest.mark.parametrize("layer", ["version 2", "clamped"], indirect=True)
def test_deformable_layers(layer: nn.Module, tmp_path: Path) -> None:
    x, other = torch.randn(2, 8, 12, 11), torch.randn(3, 8, 9, 14)
    kinds = _compare(layer, (x,), tmp_path, (other,), dynamic=True)
    assert {"Conv", "DeformConv"} <= set(kinds)


@pytest.mark.parametrize("layer", ["version 1, everything", "clamped, version 1"], indirect=True)
def test_deformable_layers_of_a_fixed_size_and_a_later_opset(layer: nn.Module, tmp_path: Path) -> None:
    kinds = _compare(layer, (torch.randn(2, 8, 12, 11),), tmp_path, opset=22)
    assert {"Conv", "DeformConv"} <= set(kinds)


FAMILY = {
    "sequence": (lambda **o: DeformConv1d(8, 6, 3, padding=1, groups=2, offset_groups=2, **o), (2, 8, 12), (3, 8, 9)),
    "volume": (lambda **o: DeformConv3d(4, 6, (2, 3, 2), padding=1, groups=2, **o), (2, 4, 4, 6, 5), (3, 4, 5, 3, 7)),
    "transposed": (
        lambda **o: DeformConvTranspose2d(8, 6, 4, 2, 1, groups=2, offset_groups=3, **o),
        (2, 8, 6, 5),
        (3, 8, 4, 7),
    ),
}


@pytest.mark.parametrize("boundary", ["zeros", "clamp"])
@pytest.mark.parametrize("name", FAMILY)
def test_sequences_volumes_and_transposed(name: str, boundary: str, moving: Moving, tmp_path: Path) -> None:
    build, size, other = FAMILY[name]
    layer = moving(build(boundary=boundary), 0.3)
    free = dict.fromkeys((0, *range(2, len(size))), FREE)
    kinds = _compare(layer, (torch.randn(size),), tmp_path, (torch.randn(other),), dynamic_shapes=(free,))
    expected = {"sequence": "DeformConv", "volume": "GatherElements", "transposed": "ScatterElements"}
    assert expected[name] in kinds


@pytest.mark.parametrize("attention", ["GridSample", "GatherElements"])
@pytest.mark.parametrize("attending", ["uniform", "around points", "ragged", "discrete"], indirect=True)
def test_multi_scale_attention(attending: Any, attention: str, tmp_path: Path) -> None:
    maps, others = (
        tuple(torch.randn(n, 16, *size) for size in sizes)
        for n, sizes in ((2, ((8, 6), (4, 3))), (3, ((5, 9), (3, 7))))
    )
    kinds = _compare(attending, maps, tmp_path, others, dynamic=True, attention=attention)
    discrete = attending.attention.method == "discrete"
    assert ("GridSample" in kinds) == (attention == "GridSample" and not discrete)
    assert ("GatherElements" in kinds) != ("GridSample" in kinds)


def test_an_unknown_form_of_attention(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^onnx.export: attention must be one of \('GridSample', 'GatherElements'\), got"
    ):
        export(nn.Identity(), torch.randn(2, 16), tmp_path / "x.onnx", attention="grid")


@pytest.mark.parametrize("aggregating", ["DCNv3", "DCNv4", "DCNv3, everything", "DCNv4, everything"], indirect=True)
def test_aggregation(aggregating: nn.Module, tmp_path: Path) -> None:
    kinds = _compare(aggregating, (torch.randn(2, 16, 7, 9),), tmp_path, (torch.randn(3, 16, 11, 6),), dynamic=True)
    assert kinds.count("DeformConv") == 1


@pytest.mark.parametrize("remove_center", [False, True])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_aggregation_is_exact_before_it_is_exported(scale: float, remove_center: bool) -> None:
    torch.manual_seed(0)
    x, K = torch.randn(2, 9, 11, 6).double(), 15 - remove_center
    geometry = ((3, 5), (2, 1), (1, 2), (2, 1), 2, scale, remove_center)
    offset, mask = torch.randn(2, 4, 11, 4 * K).double(), torch.randn(2, 4, 11, 2 * K).double()
    assert error(_rewriting.dcnv3(x, offset, mask, *geometry), ops.dcnv3(x, offset, mask, *geometry)) < 1e-14


def test_clamping_is_exact_before_it_is_exported() -> None:
    # Float64, with samples on and near the last row and column, and NaN.
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 6, 5, dtype=torch.float64), torch.randn(6, 2, 3, 3, dtype=torch.float64)
    offset = (4 * torch.randn(2, 36, 6, 5, dtype=torch.float64)).mul(4).round().div(4)
    offset[0, :4, 2] = torch.nan
    mask = torch.rand(2, 18, 6, 5, dtype=torch.float64)
    for given in (mask, None):
        actual = _rewriting.clamped(x, offset, weight, None, (1, 1), (1, 1), (1, 1), given, True)
        assert error(actual, ops.deform_conv2d(x, offset, weight, padding=1, mask=given, boundary="clamp")) < 1e-12


def test_bins_of_whole_pixels_are_exact_before_they_are_exported() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 13, 17, dtype=torch.float64)
    # Corners at whole and half pixels of the map, inside and outside it, also in the wrong order.
    rois = torch.cat([torch.randint(2, (200, 1)), torch.randint(-8, 45, (200, 4))], 1).double()
    expected = ops.ps_roi_pool(x, rois, 2, 0.5)
    assert error(_rewriting.ps_roi_pool(x, rois, (2, 2), 0.5), expected) < 1e-12
    # Boxes that are not finite, and those of images that do not exist, are empty.
    for column, value in ((0, 2.0), (0, -0.5), (0, torch.nan), (1, torch.nan), (3, torch.inf), (2, -torch.inf)):
        wrong = rois[:1].clone()
        wrong[0, column] = value
        assert not _rewriting.ps_roi_pool(x, wrong, (2, 2), 0.5).any()


class Norms(nn.Module):
    """Every kind of normalization: five become ONNX's LRN, three do not."""

    def __init__(self) -> None:
        super().__init__()
        self.five, self.three = LocalResponseNorm(5, alpha=0.5), LocalResponseNorm(3, alpha=0.5)
        self.left, self.right = LocalResponseNorm(4, alpha=0.5), LocalResponseNorm(4, alpha=0.5, even="right")
        self.spatial = LocalResponseNorm(3, alpha=0.5, region="spatial")

    def forward(self, maps: Tensor, vectors: Tensor) -> tuple[Tensor, ...]:
        tensorflow = ops.lrn(maps, 2, 1.0, 0.5, 0.75), ops.lrn(vectors, 2, 1.0, 0.5, 0.75)
        pytorch = self.five(maps), self.three(maps), self.three(maps[..., 0])
        return *pytorch, *tensorflow, self.left(maps), self.right(maps), self.spatial(maps)


def test_normalization(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given, other = (3 * torch.randn(2, 8, 5, 6), 3 * torch.randn(3, 8)), (torch.randn(3, 8, 7, 6), torch.randn(2, 8))
    free = ({0: FREE, 2: FREE}, {0: FREE})
    assert _compare(Norms(), given, tmp_path, other, dynamic_shapes=free).count("LRN") == 5


class Averages(nn.Module):
    """The operators that become RoiAlign in the file."""

    def __init__(self, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, x: Tensor, rois: Tensor, offset: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        settings = (0.5, self.ratio)
        return (
            ops.roi_align(x, rois, (2, 3), *settings, True),
            ops.roi_align(x, rois, (2, 3), *settings, False),
            ops.ps_roi_align(x, rois, 2, *settings),
            ops.deform_roi_pool(x, rois, None, 2, *settings),
            ops.deform_roi_pool(x, rois, offset, 2, *settings, mask=mask),
        )


class Parts(nn.Module):
    def forward(self, x: Tensor, rois: Tensor, offset: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        moved = ops.deform_psroi_pool(x, rois, offset, 2, 0.5, group_size=2, sample_per_part=2, mask=mask)
        return ops.roi_pool(x, rois, (2, 3), 0.5), ops.ps_roi_pool(x, rois, 2, 0.5), moved


ANY = ({0: FREE, 2: FREE, 3: FREE}, *[{0: FREE}] * 3)


def _rois(N: int, H: int, W: int, count: int) -> Tensor:
    """Return RoIs on an image twice the size of the map: some out of bounds, a third with bins of whole pixels."""
    extent = 2 * torch.tensor([W, H])
    corner, side = 0.8 * torch.rand(count, 2) * extent, 0.6 * torch.rand(count, 2) * extent
    side[::3] = (side[::3] / 4).ceil() * 4
    return torch.cat([torch.randint(N, (count, 1)).float(), corner, corner + side], 1)


def _pooled(N: int, H: int, W: int, count: int) -> tuple[Tensor, ...]:
    rois, offset, mask = _rois(N, H, W, count), torch.randn(count, 4, 2, 2), torch.rand(count, 1, 2, 2)
    return torch.randn(N, 8, H, W), rois, offset, mask


@pytest.mark.parametrize("ratio", [2, 0])
def test_averages_over_rois(ratio: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    (x, rois, offset, mask), (y, others, shift, factor) = _pooled(2, 13, 17, 40), _pooled(3, 31, 20, 200)
    given, other = (x, rois, offset[:, :2], mask), (y, others, shift[:, :2], factor)
    kinds = _compare(Averages(ratio), given, tmp_path, other, dynamic_shapes=ANY)
    assert "RoiAlign" in kinds


@pytest.mark.parametrize("size", ["fixed", pytest.param("free", marks=pytest.mark.slow)])
def test_parts_of_rois(size: str, tmp_path: Path) -> None:
    # The offsets are those of two classes.
    torch.manual_seed(0)
    given, other = _pooled(2, 13, 17, 40), _pooled(3, 31, 20, 200)
    if size == "fixed":
        kinds = _compare(Parts(), given, tmp_path, opset=21)
    else:
        kinds = _compare(Parts(), given, tmp_path, other, dynamic_shapes=ANY)
    assert "MaxRoiPool" in kinds


def test_rois_of_an_opset_without_kernels(tmp_path: Path) -> None:
    class Align(nn.Module):
        def forward(self, x: Tensor, rois: Tensor) -> Tensor:
            return ops.roi_align(x, rois, 2)

    x, rois, _, _ = _pooled(2, 13, 17, 3)
    with pytest.warns(UserWarning, match=r"^onnx.export: the file has RoI operators of opset 22, .* opset 19 to 21$"):
        export(Align().eval(), (x, rois), tmp_path / "model.onnx", 22)
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"), full_check=True)


def test_a_deformable_resnet_of_any_batch_and_size(moving: Moving, tmp_path: Path) -> None:
    net = moving(ResNet(18, deform=(None, None, "v1", "v2"), width=16), 0.02)
    x, other = torch.randn(2, 3, 64, 64), torch.randn(3, 3, 96, 80)
    kinds = _compare(net, (x,), tmp_path, (other,), dynamic=True)
    assert "DeformConv" in kinds


class Proposing(nn.Module):
    """A detector up to its proposals: backbone, neck, logits and deltas of every anchor."""

    def __init__(self, net: FasterRCNN | RFCN) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        proposing, describing = self.net.maps(images)
        return *(self.net.rpn.predict(self.net.rpn.conv(x).relu()) for x in proposing), *describing


class Describing(nn.Module):
    """The part of a detector after its proposals: the head."""

    def __init__(self, net: FasterRCNN | RFCN) -> None:
        super().__init__()
        self.net = net

    def forward(self, rois: Tensor, *maps: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas, _ = self.net.head(maps, rois)
        return logits, deltas


def _agree(net: FasterRCNN | RFCN, path: Path) -> None:
    """Compare backbone, neck and proposing head on images, then the head on any number of RoIs."""
    images = torch.randn(2, 3, 64, 96)
    assert "DeformConv" in _compare(Proposing(net), (images,), path)
    with torch.no_grad():
        maps = [x.contiguous() for x in net.maps(images)[1]]
    rois, others = (_rois(2, 32, 48, count) for count in (20, 31))
    if isinstance(net, FasterRCNN):
        assert set(net.pool.levels(rois).tolist()) == {0, 1}
    free = ({0: FREE}, tuple({} for _ in maps))
    _compare(Describing(net), (rois, *maps), path, (others, *maps), dynamic_shapes=free)


def test_faster_rcnn(moving: Moving, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = ResNet(18, deform=(None, None, None, "v2"), width=8, stem="small")
    settings: dict[str, Any] = {"channels": 8, "hidden": 16, "levels": (2, 3), "roi_canonical": 24.0, "pooled": 3}
    net = FasterRCNN(backbone, 2, roi_pool="modulated", roi_hidden=(8,), **settings)
    moving(net, 0.02)
    _agree(net, tmp_path)


@pytest.mark.slow
def test_rfcn(moving: Moving, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = ResNet(18, deform=(None, None, None, "v1"), width=8, stem="small", stride=16)
    net = RFCN(backbone, 2, width=8, bins=2, roi_pool="deform_ps")
    moving(net, 0.02)
    _agree(net, tmp_path)


class Suppression(nn.Module):
    """Non-maximum suppression, beside a vector whose size cannot change."""

    def __init__(self, classes: bool) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, boxes: Tensor, scores: Tensor, classes: Tensor, weights: Tensor) -> Tensor:
        scores = scores + 0 * (weights * torch.ones(3)).sum()
        if self.classes:
            return ops.batched_nms(boxes, scores, classes, 0.4)
        return ops.nms(boxes, scores + 0 * classes, 0.4)


@pytest.mark.parametrize("classes", [False, True])
def test_suppression_of_any_number_of_boxes(classes: bool, tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)

    def boxes(n: int) -> tuple[Tensor, ...]:
        corner, side = 40 * torch.rand(n, 2, generator=random), 1 + 20 * torch.rand(n, 2, generator=random)
        # Some scores are equal.
        scores = torch.randint(-5, 6, (n,), generator=random) / 4
        labels = torch.randint(3, (n,), generator=random)
        return torch.cat([corner, corner + side], 1), scores, labels, torch.ones(3)

    others = [boxes(n) for n in (1, 2, 7, 64)]
    kinds = _compare(Suppression(classes), boxes(20), tmp_path, *others, dynamic=True)
    assert "NonMaxSuppression" in kinds


def test_settings_that_are_refused(tmp_path: Path) -> None:
    layer, x = DeformConv2d(4, 4, 3), torch.randn(2, 4, 8, 8)
    path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match=r"^onnx.export: opset must be at least 19, the first with DeformConv, got"):
        export(layer.eval(), (x,), path, 18)
    with pytest.raises(ValueError, match=r"^onnx.export: the model is in training mode; call model.eval\(\) first$"):
        export(layer.train(), (x,), path)
    with pytest.raises(ValueError, match=r"^onnx.export: pass dynamic or dynamic_shapes, not both$"):
        export(layer.eval(), (x,), path, dynamic=True, dynamic_shapes=({},))
    sentence = r"must be at least 2 in the example, input has shape \(1, 4, 8, 8\)$"
    with pytest.raises(ValueError, match=sentence):
        export(layer.eval(), (x[:1],), path, dynamic=True)
    with pytest.raises(ValueError, match=r"^onnx.export: bfloat16 needs an opset of at least 22, got 21$"):
        export(copy.deepcopy(layer).bfloat16(), (x.bfloat16(),), path, 21)
    with pytest.raises(ValueError, match=r"^onnx.export: torch .* cannot write opset 99, it wrote 18$"):
        export(layer.eval(), (x,), path, 99)
    assert not path.exists()


class Named(nn.Module):
    """A convolution whose input comes in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = DeformConv2d(4, 4, 3)

    def forward(self, maps: dict[str, Tensor]) -> Tensor:
        y: Tensor = self.layer(maps["x"])
        return y


def test_inputs_in_a_dictionary_and_one_alone(moving: Moving, tmp_path: Path) -> None:
    net = Named()
    moving(net, 0.1)
    x, other = torch.randn(2, 4, 8, 8), torch.randn(3, 4, 9, 7)
    export(net, ({"x": x},), tmp_path / "named.onnx", dynamic=True)
    export(net.layer, x, tmp_path / "alone.onnx")
    for name, given in (("named", other), ("alone", x)):
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx", providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
        assert error(torch.from_numpy(found), net({"x": given})) <= 1e-5


def test_without_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    sentence = r'^onnx.export: needs the package onnxscript: pip install "\.\[export\]" in a clone of the repository$'
    with pytest.raises(ModuleNotFoundError, match=sentence):
        export(DeformConv2d(4, 4, 3).eval(), (torch.randn(1, 4, 8, 8),), tmp_path / "model.onnx")
