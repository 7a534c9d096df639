"""Make `bundled/` from the folders of the two studies: ``python -m pliant.app.explore.pack GEOMETRY DETECTION``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pliant.app.explore.networks import BUNDLED, SMALL
from pliant.data import Composed
from pliant.studies.detection import protocol
from pliant.studies.geometry.contestants import CONTESTANTS

# Levels to either side of 0 that a weight of a row may have. Of the detector, 5 MB in float32, ±31 keep all but 0.7 of
# 39.8 points of AP, and pack into 650 KB; the small networks can afford ±127.
LEVELS = {"classifier": 127, "detector": 31}
SCENES = (11, 2, 6, 13, 37, 39)  # of those that the study tests on


def pack(state: dict[str, Tensor], path: Path, levels: int) -> None:
    """Write weights as integers with a scale for each row (output channel), everything else in half precision."""
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in state.items():
        if tensor.dtype == torch.float32 and tensor.dim() > 1:
            scale = (tensor.flatten(1).abs().amax(1) / levels).clamp_min(1e-7).half()
            rows = scale.float().view(-1, *[1] * (tensor.dim() - 1))
            arrays[name] = (tensor / rows).round().clamp(-levels, levels).to(torch.int8).numpy()
            arrays[f"{name}:scale"] = scale.numpy()
        else:
            arrays[name] = (tensor.half() if tensor.dtype == torch.float32 else tensor).numpy()
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def main(geometry: Path, detection: Path) -> None:
    """Pack the networks of seed 0, those of the geometry study trained with augmentation, and some test scenes."""
    BUNDLED.mkdir(exist_ok=True)
    for name in SMALL:
        small = name in CONTESTANTS
        file = geometry / f"models/{name}-augmented-0.pt" if small else detection / f"models/{name}-composed-0.pt"
        state = torch.load(file, map_location="cpu", weights_only=True)
        pack(state, BUNDLED / f"{name}.npz", LEVELS["classifier" if small else "detector"])
    scenes = Composed(protocol.TEST_SEED, max(SCENES) + 1, "test", protocol.SIDE, classes=protocol.CLASSES)
    for number, index in enumerate(SCENES, 1):
        picture = scenes[index][0].permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(picture).save(BUNDLED / f"scene-{number}.png", optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m pliant.app.explore.pack GEOMETRY DETECTION, the folders of the two studies")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
