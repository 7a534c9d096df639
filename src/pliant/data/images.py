"""Read images of every common kind as three channels of 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

ROTATED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
EXIF_ORIENTATION = 0x0112


class BrokenImage(OSError):
    """A file that is not an image, is half-written, or has another size than its annotations are for."""


def read_image(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """Return an image as uint8 (3, H, W), upright.

    Grey is repeated in three channels, a palette is looked up, transparency is dropped. Grey of 16 bits is divided by
    257, so that white stays white. The image is rotated as its EXIF orientation says, unless `size` shows that it was
    annotated as stored.

    Args:
        path: the file; whatever Pillow reads.
        size: (H, W) that the annotations are for.

    Raises:
        FileNotFoundError: there is no such file.
        BrokenImage: the file cannot be read, or the image has another size.
    """
    from PIL import Image

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        with Image.open(path) as opened:
            image = pixels(opened, size)
    except Exception as error:  # Pillow's decoders raise many kinds of exceptions on a broken file
        raise BrokenImage(f"{path} cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error
    _, H, W = image.shape
    if size is not None and size != (H, W):
        raise BrokenImage(f"{path} has {W}×{H} pixels, its annotations are for {size[1]}×{size[0]}")
    return image


def pixels(opened: Image, size: tuple[int, int] | None = None) -> Tensor:
    """Return a Pillow image as uint8 (3, H, W); see :func:`read_image`.

    Raises:
        ValueError: its pixels are floating-point numbers.
    """
    import numpy as np

    image = _upright(opened, size)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if image.mode.startswith("I"):
        wide = np.array(image).astype(np.int64).clip(0, 65535)
        grey = ((wide + 128) // 257).astype(np.uint8)
        array = np.repeat(grey[:, :, None], 3, 2)
    else:
        # Pillow warns of a palette with transparency that is not converted by way of RGBA.
        array = np.array((image.convert("RGBA") if image.mode == "P" else image).convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def image_size(path: Path) -> tuple[int, int]:
    """Return (H, W) of an image, upright, from the header of its file alone.

    Raises:
        FileNotFoundError: there is no such file.
        BrokenImage: the file is not an image.
    """
    from PIL import Image

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        with Image.open(path) as opened:
            W, H = opened.size
            return (W, H) if opened.getexif().get(EXIF_ORIENTATION) in ROTATED else (H, W)
    except Exception as error:
        raise BrokenImage(f"{path} cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error


def _upright(image: Image, size: tuple[int, int] | None) -> Image:
    """Return an image rotated as its EXIF orientation says, unless only the stored one has (H, W) `size`."""
    from PIL import ImageOps

    W, H = image.size
    rotates = image.getexif().get(EXIF_ORIENTATION) in ROTATED
    if rotates and size == (H, W) and H != W:
        return image
    return ImageOps.exif_transpose(image)
