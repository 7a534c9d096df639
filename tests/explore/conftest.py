"""Networks to explore: those of the package, and a detector with offset groups whose offsets are drawn at random."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from pliant.app.explore import networks
from pliant.app.explore.networks import Network
from pliant.app.explore.pictures import Gallery
from pliant.app.explore.server import Server
from pliant.models import checkpoint
from pliant.nn import DeformConv2d
from pliant.train import DataRecipe, DetectorRecipe, ModelRecipe, build_detector


@pytest.fixture(scope="session")
def bundled() -> dict[str, Network]:
    return {network.id: network for network in networks.bundled()}


@pytest.fixture(scope="session")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a detector of bottlenecks with two offset groups in conv4 and conv5."""
    options: dict[str, Any] = {"channels": 8, "hidden": 16, "post_nms": (20, 20), "pre_nms": (50, 50)}
    model = ModelRecipe(
        depth=26, width=4, stem="imagenet", deform=(None, None, "v1", "v2"), offset_groups=2, roi_pool="deform",
        options=options,
    )  # fmt: skip
    recipe = DetectorRecipe(DataRecipe(size=96), model)
    random = torch.Generator().manual_seed(5)
    net = build_detector(model, 2, seed=3)
    for layer in net.modules():
        if isinstance(layer, DeformConv2d):
            with torch.no_grad():
                bias = layer.conv_offset.bias
                assert bias is not None
                bias.copy_(2 * torch.randn(bias.shape, generator=random))
    state = {
        "format": checkpoint.FORMAT, "recipe": asdict(recipe), "classes": ("cat", "dog"), "category_ids": (1, 2),
        "step": 0, "model": net.state_dict(),
    }  # fmt: skip
    path = tmp_path_factory.mktemp("run") / "best.pt"
    checkpoint.write(path, state)
    return path


@pytest.fixture(scope="session")
def server(bundled: dict[str, Network], grouped: Path) -> Iterator[Server]:
    with Server([*bundled.values(), networks.read(grouped)], Gallery()) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        made.shutdown()
        thread.join()
