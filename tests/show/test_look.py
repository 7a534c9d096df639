from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pliant.models import Predictor
from pliant.nn import DeformConv2d, deformable_layers
from pliant.nn.deformable import offset_branch
from pliant.show import look

NET = nn.Sequential(
    nn.Conv2d(3, 16, 3, 2, padding=1), DeformConv2d(16, 16, 3, padding=1), DeformConv2d(16, 16, 3, padding=1)
)


def moved() -> nn.Module:
    """Return a network whose two deformable layers read one pixel of their map further right."""
    for _, layer in deformable_layers(NET):
        with torch.no_grad():
            offset_branch(layer).bias[:18].view(-1, 2)[:, 1] = 1.0
    return NET


@pytest.mark.parametrize("kind", ["tensor", "bytes", "pillow", "path"])
def test_paths_start_where_asked(kind: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    given = {
        "tensor": tensor.float() / 255, "bytes": tensor, "pillow": Image.fromarray(pixels), "path": tmp_path / "a.png",
    }[kind]  # fmt: skip
    found = look(moved(), given, at=(20, 12))
    assert len(found.learned.points) == 81 and found.regular is not None
    assert found.view.centre == (12, 20)
    # Two layers, one pixel of a map of stride 2 each.
    np.testing.assert_allclose(found.learned.points - found.regular.points, [[0, 4]] * 81, atol=1e-5)
    assert found._repr_png_().startswith(b"\x89PNG")
    with Image.open(found.save(tmp_path / "look.png")) as saved:
        assert saved.width > saved.height > 300
    assert repr(found) == "Look: 81 paths from x = 20, y = 12 through 2 ← 1; .save(path) draws them"


def test_photograph_is_larger_than_what_the_network_sees() -> None:
    photograph = torch.rand(3, 128, 192)
    found = look(moved(), photograph, at=(80, 48), prepare=lambda image: nn.functional.avg_pool2d(image, 4))
    assert found.view.size == (32, 48) and found.view.ground.shape == (128, 192, 3)
    assert found.view.centre == (12, 20)
    shown = found.figure().axes[0]
    assert shown.images[0].get_array().shape == (128, 192, 3)
    assert shown.images[0].get_extent() == [-0.5, 47.5, 31.5, -0.5]


def test_detector_looks_at_what_it_finds() -> None:
    predictor = Predictor.load("mdconv-c3-c5-mdpool")
    found = look(predictor, torch.rand(3, 128, 128))
    assert found.view.classes == predictor.classes
    assert found.regular is not None and found.learned.layers[0] == "backbone.layer4.0.conv2"


def test_layers_that_do_not_move_have_one_panel() -> None:
    found = look(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), torch.rand(3, 20, 20))
    assert found.regular is None and len(found.figure().axes) == 2


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"at = \(48, 3\) is not on the image of 48 × 32 pixels"):
        look(NET, torch.rand(3, 32, 48), at=(48, 3))
    with pytest.raises(ValueError, match="must have shape"):
        look(NET, torch.rand(1, 3, 32, 48))
    with pytest.raises(TypeError, match="must be a path, an image of Pillow's or a tensor, got list"):
        look(NET, [1])
