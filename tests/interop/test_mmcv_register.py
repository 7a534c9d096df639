"""register() with an mmcv and an mmengine made for the test, without compiled code, and with installed ones."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pliant import ops
from pliant.interop import mmcv as ours
from pliant.interop.mmcv import registering

NAMES = (
    "deform_conv2d modulated_deform_conv2d DeformConv2d DeformConv2dPack ModulatedDeformConv2d DeformRoIPool "
    "ModulatedDeformConv2dPack deform_roi_pool DeformRoIPoolPack ModulatedDeformRoIPoolPack "
    "MultiScaleDeformableAttention"
)

FILES = {
    "mmengine/__init__.py": "",
    "mmengine/registry.py": """
class Registry(dict):
    def register_module(self, name, module, force=False):
        assert force or name not in self
        self[name] = module

MODELS = Registry()
""",
    "mmcv/__init__.py": "",
    "mmcv/cnn.py": """
from mmengine.registry import MODELS

def build_conv_layer(cfg, *args, **kwargs):
    return MODELS.get(cfg.pop("type"))(*args, **kwargs, **cfg)
""",
    "mmcv/ops/__init__.py": f"""
import importlib
from mmengine.registry import MODELS
from mmcv.ops.boxes import RoIAlign, nms

class Theirs:
    pass

{NAMES.replace(" ", " = ")} = Theirs
MODELS.register_module("DCNv2", Theirs)
""",
    "mmcv/ops/multi_scale_deform_attn.py": """
from mmcv.ops import Theirs

class MultiScaleDeformableAttnFunction:
    pass

def multi_scale_deformable_attn_pytorch():
    pass
""",
    # How mmcv calls what it compiled.
    "mmcv/ops/boxes.py": """
import importlib
import torch

extension = importlib.import_module("mmcv._ext")
assert all(hasattr(extension, name) for name in ("nms", "roi_align_forward", "softnms"))

def nms(boxes, scores, iou_threshold):
    return None, extension.nms(boxes, scores, iou_threshold=float(iou_threshold), offset=0)

class RoIAlign(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.settings = dict(aligned_height=size, aligned_width=size, spatial_scale=1.0, sampling_ratio=0, pool_mode=1)

    def forward(self, input, rois):
        output, empty = input.new_zeros(len(rois), input.shape[1], 2, 2), input.new_zeros(0)
        extension.roi_align_forward(input, rois, output, empty, empty, **self.settings, aligned=True)
        return output
""",
}

SCRIPT = """
import torch
from pliant import ops
from pliant.interop import mmcv as ours

torch.manual_seed(0)
ours.register()
ours.register()
from mmcv.cnn import build_conv_layer
from mmcv.ops import DeformRoIPoolPack, RoIAlign, nms

layer = build_conv_layer(dict(type="DCNv2", deform_groups=2), 4, 6, 3, padding=1)
assert type(layer) is ours.ModulatedDeformConv2dPack and layer.deform_groups == 2
assert type(build_conv_layer(dict(type="DCN"), 4, 6, 3)) is ours.DeformConv2dPack
assert DeformRoIPoolPack is ours.DeformRoIPoolPack
from mmcv.ops import multi_scale_deform_attn as inner
assert inner.multi_scale_deformable_attn_pytorch is ours.multi_scale_deformable_attn_pytorch
assert inner.MultiScaleDeformableAttnFunction is ours.MultiScaleDeformableAttnFunction
from mmengine.registry import MODELS
assert MODELS.get("MultiScaleDeformableAttention") is ours.MultiScaleDeformableAttention
x, corners = torch.randn(2, 4, 8, 8), 8 * torch.rand(20, 2)
assert layer(x).shape == (2, 6, 8, 8)
boxes, scores = torch.cat([corners, corners + 4 * torch.rand(20, 2)], 1), torch.rand(20)
assert torch.equal(nms(boxes, scores, 0.4)[1], ops.nms(boxes, scores, 0.4))
rois = torch.cat([torch.zeros(20, 1), boxes], 1)
assert torch.equal(RoIAlign(2)(x, rois), ops.roi_align(x, rois, 2, aligned=True))
from importlib import import_module
try:
    import_module("mmcv._ext").ball_query_forward()
except NotImplementedError as error:
    print(error)
"""
ANSWER = "mmcv._ext.ball_query_forward is not compiled here, and pliant has nothing in its place\n"


def test_register(packages: Callable[..., Path], run: Callable[..., tuple[str, str]]) -> None:
    said, _ = run(SCRIPT, folder=packages(FILES), flags=("-W", "error"))
    assert said == ANSWER


def test_register_in_installed_packages(run: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    for package in ("mmengine", "mmcv"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    if importlib.util.find_spec("mmcv._ext") is not None:
        pytest.skip("mmcv is installed with its compiled part")
    assert ANSWER in run(SCRIPT, folder=tmp_path)[0]


def test_what_stands_for_the_compiled_part() -> None:
    torch.manual_seed(0)
    extension = registering._Extension("mmcv._ext")
    # mmcv's offset of 1: the last pixel belongs to a box, sides are x2 − x1 + 1.
    boxes, scores = torch.tensor([[0.0, 0, 9, 9], [5, 0, 14, 9], [0, 0, 9, 8]]), torch.tensor([0.9, 0.8, 0.7])
    assert extension.nms(boxes, scores, iou_threshold=0.3, offset=1).tolist() == [0]  # 50 of 150, 90 of 100
    assert extension.nms(boxes, scores, iou_threshold=0.3, offset=0).tolist() == [0, 1]  # 36 of 126
    assert extension.nms(boxes, scores, iou_threshold=0.285, offset=0).tolist() == [0]

    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    rois = torch.tensor([[0.0, 1, 1, 6, 7], [1, 0, 2, 5, 5]])
    wanted = ops.roi_align(x, rois, (2, 3), 0.5, 2, True)
    settings = {"aligned_height": 2, "aligned_width": 3, "spatial_scale": 0.5, "sampling_ratio": 2, "aligned": True}
    output, grad, empty = torch.zeros(2, 3, 2, 3), torch.randn(2, 3, 2, 3), torch.zeros(0)
    extension.roi_align_forward(x.detach(), rois, output, empty, empty, pool_mode=1, **settings)
    assert torch.equal(output, wanted)
    found = torch.zeros_like(x)
    extension.roi_align_backward(grad, rois, empty, empty, found, pool_mode=1, **settings)
    assert torch.equal(found, torch.autograd.grad(wanted, x, grad)[0])
    with pytest.raises(NotImplementedError, match=r'^mmcv._ext.roi_align with pool_mode="max" is not compiled here'):
        extension.roi_align_forward(x.detach(), rois, output, empty, empty, pool_mode=0, **settings)


def test_maxima_of_rois_as_in_mmcv() -> None:
    # Values of mmcv's own test, tests/test_ops/test_roi_pool.py, whose gradients are here, too.
    inputs = (
        ([[[[1.0, 2], [3, 4]]]], [[[[1.0, 2], [3, 4]]]], [[[[1.0, 1], [1, 1]]]]),
        (
            [[[[1.0, 2], [3, 4]], [[4, 3], [2, 1]]]],
            [[[[1.0, 2], [3, 4]], [[4, 3], [2, 1]]]],
            [[[[1.0, 1], [1, 1]], [[1, 1], [1, 1]]]],
        ),
    )
    extension = registering._Extension("mmcv._ext")
    settings = {"pooled_height": 2, "pooled_width": 2, "spatial_scale": 1.0}
    rois = torch.tensor([[0.0, 0, 0, 1, 1]])
    for values, wanted, gradient in inputs:
        x = torch.tensor(values)
        output, places = torch.zeros(1, x.shape[1], 2, 2), torch.zeros(1, x.shape[1], 2, 2, dtype=torch.int32)
        extension.roi_pool_forward(x, rois, output, places, **settings)
        assert torch.equal(output, torch.tensor(wanted))
        grad = torch.zeros_like(x)
        extension.roi_pool_backward(torch.ones_like(output), rois, places, grad, **settings)
        assert torch.equal(grad, torch.tensor(gradient))


def test_maxima_of_rois_by_hand() -> None:
    torch.manual_seed(0)
    extension = registering._Extension("mmcv._ext")
    x = torch.randn(2, 3, 9, 11).relu()  # equal values: the first in row-major order has the gradient
    corners = torch.tensor([[0, 3, 2, 30, 34], [1, -9, 5, 20, 70], [1, 60, 60, 70, 70], [0, 20, 20, 8, 30.0]])
    Ph, Pw, scale = 3, 2, 0.25
    output, places = torch.full((4, 3, Ph, Pw), 7.0), torch.full((4, 3, Ph, Pw), -5, dtype=torch.int32)
    extension.roi_pool_forward(x, corners, output, places, pooled_height=Ph, pooled_width=Pw, spatial_scale=scale)
    grad, found = torch.randn(4, 3, Ph, Pw), torch.zeros_like(x)
    extension.roi_pool_backward(grad, corners, places, found, pooled_height=Ph, pooled_width=Pw, spatial_scale=scale)
    wanted = torch.zeros_like(x)
    for r, (n, x1, y1, x2, y2) in enumerate(corners.tolist()):
        w, h = (x2 + 1 - x1) * scale, (y2 + 1 - y1) * scale
        if w <= 0 or h <= 0:
            assert (output[r] == 7).all() and (places[r] == -5).all()  # as mmcv's kernel leaves it
            continue
        for i in range(Ph):
            for j in range(Pw):
                rows = [
                    y
                    for y in range(9)
                    if math.floor(y1 * scale + i * h / Ph) <= y < math.ceil(y1 * scale + (i + 1) * h / Ph)
                ]
                columns = [
                    u
                    for u in range(11)
                    if math.floor(x1 * scale + j * w / Pw) <= u < math.ceil(x1 * scale + (j + 1) * w / Pw)
                ]
                for c in range(3):
                    cells = [(y, u) for y in rows for u in columns]
                    best = max(cells, key=lambda cell, c=c, n=n: float(x[int(n), c][cell]), default=None)
                    assert float(output[r, c, i, j]) == (0.0 if best is None else float(x[int(n), c][best]))
                    if best is not None:
                        wanted[int(n), c][best] += grad[r, c, i, j]
    torch.testing.assert_close(found, wanted)


def _soft(
    boxes: list[list[float]], scores: list[float], threshold: float, sigma: float, least: float, method: int
) -> list[tuple[int, float]]:
    """Suppress softly as the paper does (Bodla et al., ICCV 2017), without ties."""
    left, taken = dict(enumerate(scores)), []
    while left:
        best = max(left, key=lambda k: left[k])
        taken.append((best, left.pop(best)))
        for k in list(left):
            (a, b, c, d), (e, f, g, h) = boxes[best], boxes[k]
            common = max(min(c, g) - max(a, e), 0) * max(min(d, h) - max(b, f), 0)
            overlap = common / ((c - a) * (d - b) + (g - e) * (h - f) - common)
            hard = {0: 0.0, 1: 1 - overlap}.get(method, 0.0) if overlap >= threshold else 1.0
            left[k] *= math.exp(-(overlap**2) / sigma) if method == 2 else hard
            if left[k] < least:
                del left[k]
    return taken


@pytest.mark.parametrize("method", [0, 1, 2])
def test_soft_suppression_as_in_mmcv(method: int) -> None:
    generator = torch.Generator().manual_seed(method)
    corners = 20 * torch.rand(60, 2, generator=generator)
    boxes = torch.cat([corners, corners + 4 + 12 * torch.rand(60, 2, generator=generator)], 1)
    scores, dets = torch.rand(60, generator=generator), torch.empty(60, 5)
    extension = registering._Extension("mmcv._ext")
    settings = {"iou_threshold": 0.3, "sigma": 0.5, "min_score": 0.05, "method": method, "offset": 0}
    kept = extension.softnms(boxes, scores, dets, **settings)
    wanted = _soft(boxes.tolist(), scores.tolist(), 0.3, 0.5, 0.05, method)
    assert kept.tolist() == [k for k, _ in wanted] and 5 < len(kept) < 60
    torch.testing.assert_close(dets[: len(kept), :4], boxes[kept])
    torch.testing.assert_close(dets[: len(kept), 4], torch.tensor([score for _, score in wanted]))
    assert len(extension.softnms(boxes[:0], scores[:0], dets[:0], **settings)) == 0


def test_groups_of_suppressed_boxes() -> None:
    extension = registering._Extension("mmcv._ext")
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [30, 0, 40, 10], [0, 1, 10, 11], [31, 0, 41, 10]])
    scores = torch.tensor([0.5, 0.9, 0.3, 0.7, 0.4])
    dets = torch.cat([boxes, scores[:, None]], 1)
    assert extension.nms_match(dets, iou_threshold=0.6) == [[1, 3, 0], [4, 2]]
    kept = [group[0] for group in extension.nms_match(dets, iou_threshold=0.6)]
    assert kept == ops.nms(boxes, scores, 0.6).tolist()
    assert extension.nms_match(dets[:0], iou_threshold=0.6) == []


def test_without_mmengine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mmengine", raising=False)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ModuleNotFoundError, match=r"^register: needs the package mmengine: pip install mmengine$"):
        ours.register()
