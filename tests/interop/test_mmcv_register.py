"""register() with an mmcv and an mmengine made for the test, without compiled code, and with installed ones."""

from __future__ import annotations

import importlib.util
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
    "ModulatedDeformConv2dPack deform_roi_pool DeformRoIPoolPack ModulatedDeformRoIPoolPack"
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
x, corners = torch.randn(2, 4, 8, 8), 8 * torch.rand(20, 2)
assert layer(x).shape == (2, 6, 8, 8)
boxes, scores = torch.cat([corners, corners + 4 * torch.rand(20, 2)], 1), torch.rand(20)
assert torch.equal(nms(boxes, scores, 0.4)[1], ops.nms(boxes, scores, 0.4))
rois = torch.cat([torch.zeros(20, 1), boxes], 1)
assert torch.equal(RoIAlign(2)(x, rois), ops.roi_align(x, rois, 2, aligned=True))
from importlib import import_module
try:
    import_module("mmcv._ext").softnms()
except NotImplementedError as error:
    print(error)
"""
ANSWER = "mmcv._ext.softnms is not compiled here, and pliant has nothing in its place\n"


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


def test_without_mmengine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mmengine", raising=False)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ModuleNotFoundError, match=r"^register: needs the package mmengine: pip install mmengine$"):
        ours.register()
