"""Pack networks and scenes for the package: ``python -m pliant.app.explore.pack GEOMETRY DETECTION``.

The arguments are the folders of the two studies. Classifiers and scenes go to `bundled/` here, the detector and its
settings to `pliant/models/bundled/`.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from pliant._files import load
from pliant.app.explore.networks import BUNDLED, SMALL
from pliant.data import Composed
from pliant.models import bundled, checkpoint
from pliant.studies.detection import protocol

# Levels to either side of 0 that a weight of a row may have. Of the detector, 5 MB in float32, ±31 keep all but 0.7 of
# 39.8 points of AP, and pack into 650 KB; the small networks can afford ±127.
LEVELS = {"classifier": 127, "detector": 31}
SCENES = (11, 2, 6, 13, 37, 39)  # of those that the study tests on


def about(name: str) -> dict[str, Any]:
    """Return what the checkpoint of a detector of the study says besides its weights."""
    task, protocol_ = protocol.Task(name, "composed", 0), protocol.Protocol.of("quick")
    scenes = protocol_.images("composed", "test", 0)
    return {
        "format": checkpoint.FORMAT,
        "recipe": asdict(protocol_.recipe_of(task, protocol_.train)),
        "classes": scenes.classes,
        "category_ids": scenes.category_ids,
        "step": protocol_.steps,
    }


def main(geometry: Path, detection: Path) -> None:
    """Pack the networks of seed 0, those of the geometry study trained with augmentation, and some test scenes."""
    BUNDLED.mkdir(exist_ok=True)
    for name in SMALL:
        if name in bundled.NAMES:
            state = load(detection / f"models/{name}-composed-0.pt")
            bundled.write(bundled.FOLDER / f"{name}.npz", about(name), state, LEVELS["detector"])
        else:
            state = load(geometry / f"models/{name}-augmented-0.pt")
            bundled.pack(state, BUNDLED / f"{name}.npz", LEVELS["classifier"])
    scenes = Composed(protocol.TEST_SEED, max(SCENES) + 1, "test", protocol.SIDE, classes=protocol.CLASSES)
    for number, index in enumerate(SCENES, 1):
        image = scenes[index][0].permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(image).save(BUNDLED / f"scene-{number}.png", optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m pliant.app.explore.pack GEOMETRY DETECTION, the folders of the two studies")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
