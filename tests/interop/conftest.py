"""What several of these tests use: deformable layers whose samples move, and processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant.nn import DCNv3, DCNv4, DeformConv2d, MSDeformAttn

LAYERS: dict[str, dict[str, Any]] = {
    "version 2": {"kernel_size": 3, "padding": 1},
    "version 1, everything": {
        "kernel_size": (3, 2),
        "stride": (2, 1),
        "padding": (1, 0),
        "dilation": (2, 1),
        "groups": 2,
        "bias": False,
        "version": 1,
        "offset_groups": 4,
    },
    "clamped": {"kernel_size": 3, "padding": 1, "boundary": "clamp", "offset_groups": 2},
    "clamped, version 1": {"kernel_size": (2, 3), "version": 1, "boundary": "clamp", "offset_groups": 2},
}


@pytest.fixture
def moving() -> Callable[[nn.Module, float], nn.Module]:
    """Return a function that draws the parameters of every offset branch, seeds torch, and calls `eval`."""

    def draw(net: nn.Module, std: float) -> nn.Module:
        torch.manual_seed(0)
        for name, parameter in net.named_parameters():
            if "offset" in name:
                nn.init.normal_(parameter, std=std)
        return net.eval()

    return draw


@pytest.fixture
def layer(request: pytest.FixtureRequest, moving: Callable[[nn.Module, float], nn.Module]) -> nn.Module:
    """Return the layer of LAYERS that the test names, from 8 to 6 channels; its samples move by pixels."""
    return moving(DeformConv2d(8, 6, **LAYERS[request.param]), 0.3)


class Attending(nn.Module):
    """Learned queries attend to a pyramid, whose sizes are those of the maps."""

    def __init__(self, coordinates: int = 4, **options: Any) -> None:
        super().__init__()
        self.attention = MSDeformAttn(16, levels=2, heads=4, **options)
        self.query, self.boxes = nn.Parameter(torch.randn(7, 16)), nn.Parameter(torch.rand(7, 2, coordinates))

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        shapes = [(map.shape[2], map.shape[3]) for map in (fine, coarse)]
        value = torch.cat([map.flatten(2).transpose(1, 2) for map in (fine, coarse)], 1)
        N = fine.shape[0]
        query, boxes = self.query.expand(N, -1, -1), self.boxes.expand(N, -1, -1, -1)
        found: Tensor = self.attention(query, boxes, value, shapes)
        return found


POINTS: dict[str, dict[str, Any]] = {
    "uniform": {"points": 3},
    "around points": {"points": 3, "coordinates": 2},
    "ragged": {"points": [2, 4]},
    "discrete": {"points": [2, 4], "method": "discrete"},
}


@pytest.fixture
def attending(request: pytest.FixtureRequest, moving: Callable[[nn.Module, float], nn.Module]) -> nn.Module:
    """Return an Attending with the POINTS that the test names."""
    return moving(Attending(**POINTS[request.param]), 0.5)


class Aggregating(nn.Module):
    """DCNv3 or DCNv4 on maps with channels in dimension 1."""

    def __init__(self, layer: nn.Module, flat: bool) -> None:
        super().__init__()
        self.layer, self.flat = layer, flat

    def forward(self, map: Tensor) -> Tensor:
        N, C, H, W = map.shape
        last = map.permute(0, 2, 3, 1)
        found: Tensor = self.layer(last.reshape(N, H * W, C), shape=(H, W)) if self.flat else self.layer(last)
        return found.reshape(N, H, W, C)


EVERYTHING = {"offset_scale": 2.0, "remove_center": True, "kernel_size": (3, 5), "padding": (1, 2)}


@pytest.fixture
def aggregating(request: pytest.FixtureRequest) -> nn.Module:
    """Return an Aggregating with the layer that the test names, its parameters drawn."""
    name, _, more = request.param.partition(", ")
    layer = (DCNv3 if name == "DCNv3" else DCNv4)(16, groups=2, **(EVERYTHING if more else {}))
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return Aggregating(layer, name == "DCNv4").eval()


@pytest.fixture
def run() -> Callable[..., tuple[str, str]]:
    """Return a function that runs code in a process of its own, and returns what it writes to stdout and stderr.

    What is imported, declared and registered lasts as long as the process.
    """

    def start(code: str, *arguments: Any, folder: Path, flags: tuple[str, ...] = ()) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, *flags, "-c", code, *map(str, arguments)],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    return start


@pytest.fixture
def packages(tmp_path: Path) -> Callable[[Mapping[str, str]], Path]:
    """Return a function that writes files, given by path and text, into a folder, and returns the folder."""

    def write(files: Mapping[str, str]) -> Path:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return write
