"""patch() on a torchvision made for the test: its import refers to operators that no library declares."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pliant.interop import torchvision as ours

FILES = {
    "torchvision/__init__.py": """
import torch

@torch.library.register_fake("torchvision::nms")
def _nms(dets, scores, iou_threshold):
    return dets.new_empty(0)

from torchvision import models, ops
""",
    "torchvision/ops/__init__.py": "from .deform_conv import DeformConv2d, deform_conv2d\n",
    "torchvision/ops/deform_conv.py": """
import torch

def deform_conv2d(input, offset, weight, bias=None, stride=1, padding=0, dilation=1, mask=None):
    raise RuntimeError("Couldn't load custom C++ ops.")

class DeformConv2d(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, input, offset):
        return deform_conv2d(input, offset, self.weight, padding=1)
""",
    "torchvision/models/__init__.py": "from torchvision.ops import deform_conv2d as borrowed\n",
}

SCRIPT = """
import torch
import pliant
from pliant.interop.torchvision import patch, unpatch

patch()
patch()
import torchvision
layer = torchvision.ops.DeformConv2d()
x, offset = torch.randn(2, 3, 6, 6), torch.randn(2, 18, 6, 6)
assert torch.equal(layer(x, offset), pliant.ops.deform_conv2d(x, offset, layer.weight, padding=1))
assert torchvision.models.borrowed is torchvision.ops.deform_conv2d is pliant.interop.torchvision.deform_conv2d
unpatch()
try:
    layer(x, offset)
except RuntimeError as error:
    print(error)
assert torchvision.models.borrowed.__module__ == "torchvision.ops.deform_conv"
patch()
print(tuple(layer(x, offset).shape))
"""


def test_patch_and_unpatch(packages: Callable[..., Path], run: Callable[..., tuple[str, str]]) -> None:
    said = run(SCRIPT, folder=packages(FILES), flags=("-W", "error"))
    assert said == ("Couldn't load custom C++ ops.\n(2, 4, 6, 6)\n", "")


def test_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ImportError, match=r"^patch: torchvision is not installed$"):
        ours.patch()


def test_other_failures_of_its_import_are_its_own(
    packages: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = packages({"torchvision/__init__.py": "raise RuntimeError('operator torchvision::other does not exist')"})
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(RuntimeError, match=r"^operator torchvision::other does not exist$"):
        ours.patch()
