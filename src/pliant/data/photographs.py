"""Real photographs to put objects on: those that scikit-image ships and that are public domain or under CC0."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pliant import _INSTALL


class Photograph(NamedTuple):
    """A file of scikit-image's wheel, the split it belongs to, what scikit-image says of its licence, its SHA-256."""

    file: str
    split: str
    notice: str
    sha256: str


# The notices are those of scikit-image 0.26 (skimage/data/_fetchers.py). Photographs of which it says only "no known
# copyright restrictions", or nothing, are left out: coins, ihc, moon, page, text, the stereo pair.
PHOTOGRAPHS = (
    Photograph(
        "astronaut.png",
        "train",
        "Eileen Collins, NASA Great Images database: public domain",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    ),
    Photograph(
        "brick.png",
        "train",
        "Bricks25 of CC0Textures: CC0",
        "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    ),
    Photograph(
        "chelsea.png",
        "train",
        "a cat, by Stefan van der Walt: CC0",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    ),
    Photograph(
        "coffee.png",
        "train",
        "a cup, by Rachel Michetti, courtesy of Pikolo Espresso Bar: CC0",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    ),
    Photograph(
        "grass.png",
        "train",
        "Grass 01 by linolafett, DeviantArt: CC0",
        "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    ),
    Photograph(
        "hubble_deep_field.jpg",
        "train",
        "Hubble eXtreme Deep Field, NASA: public domain",
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    ),
    Photograph(
        "retina.jpg",
        "train",
        "Fundus photograph of a normal left eye, by Mikael Häggström, Wikimedia Commons: CC0",
        "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
    ),
    Photograph(
        "camera.png",
        "test",
        "a cameraman, by Lav Varshney: CC0",
        "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    ),
    Photograph(
        "clock_motion.png",
        "test",
        "a clock in motion, by Stefan van der Walt: public domain",
        "f029226b28b642e80113d86622e9b215ee067a0966feaf5e60604a1e05733955",
    ),
    Photograph(
        "gravel.png",
        "test",
        "Gravel04 of CC0Textures: CC0",
        "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
    ),
    Photograph(
        "rocket.jpg",
        "test",
        "launch of DSCOVR on Falcon 9, by SpaceX: public domain",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    ),
)


@functools.cache
def load(split: str) -> tuple[Tensor, ...]:
    """Return the photographs of "train" or "test", each uint8 (3, H, W); grey ones have three equal channels.

    scikit-image itself is not imported, only its folder is looked up.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
        FileNotFoundError: scikit-image is installed without the file.
        ValueError: the file is not the one listed here.
    """
    import numpy as np
    from PIL import Image

    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "photographs: scikit-image, whose photographs these are, is missing: " + _INSTALL.format(extra="study"),
            name="skimage",
        )
    folder = Path(spec.submodule_search_locations[0]) / "data"
    loaded = []
    for photograph in PHOTOGRAPHS:
        if photograph.split != split:
            continue
        path = folder / photograph.file
        if not path.is_file():
            raise FileNotFoundError(f"photographs: {path} is missing; install scikit-image again")
        if hashlib.sha256(path.read_bytes()).hexdigest() != photograph.sha256:
            raise ValueError(
                f"photographs: {path} is not the photograph that scenes use; install scikit-image 0.25 or 0.26"
            )
        with Image.open(path) as image:
            loaded.append(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))
    return tuple(loaded)
