"""What several of these tests use: deformable layers whose samples move, and processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pliant.nn import DeformConv2d

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
