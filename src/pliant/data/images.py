"""Read pictures of every usual kind as three channels of 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
EXIF_ORIENTATION = 0x0112


class BrokenImage(OSError):
    """A file that is no picture, is half-written, or is not the picture that its annotations are for."""


def read_image(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """Return a picture as uint8 (3, H, W), upright.

    Grey is repeated in three channels, a palette is looked up, transparency is dropped. Grey of 16 bits is divided
    by 257, so that white stays white. The picture is turned as its EXIF orientation says, unless `size` says that it
    was annotated as stored.

    Args:
        path: the file; whatever Pillow reads.
        size: (H, W) that the annotations are for.

    Raises:
        FileNotFoundError: there is no such file.
        BrokenImage: it cannot be read, or has another size.
    """
    from PIL import Image

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        with Image.open(path) as opened:
            image = pixels(opened, size)
    except Exception as error:  # Pillow's decoders raise whatever a broken file brings about
        raise BrokenImage(f"{path} cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error
    _, H, W = image.shape
    if size is not None and size != (H, W):
        raise BrokenImage(f"{path} has {W}×{H} pixels, its annotations are for {size[1]}×{size[0]}")
    return image


def pixels(picture: Image, size: tuple[int, int] | None = None) -> Tensor:
    """Return an image of Pillow's as uint8 (3, H, W); see :func:`read_image`.

    Raises:
        ValueError: its pixels are floating-point numbers.
    """
    import numpy as np

    picture = _upright(picture, size)
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range nobody knows")
    if picture.mode.startswith("I"):
        wide = np.array(picture).astype(np.int64).clip(0, 65535)
        grey = ((wide + 128) // 257).astype(np.uint8)
        array = np.repeat(grey[:, :, None], 3, 2)
    else:
        # Pillow wants a palette with transparency to go by way of RGBA.
        array = np.array((picture.convert("RGBA") if picture.mode == "P" else picture).convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def image_size(path: Path) -> tuple[int, int]:
    """Return (H, W) of a picture, upright, from the head of its file alone.

    Raises:
        FileNotFoundError: there is no such file.
        BrokenImage: it is no picture.
    """
    from PIL import Image

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        with Image.open(path) as opened:
            W, H = opened.size
            return (W, H) if opened.getexif().get(EXIF_ORIENTATION) in TURNED else (H, W)
    except Exception as error:
        raise BrokenImage(f"{path} cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error


def _upright(picture: Image, size: tuple[int, int] | None) -> Image:
    """Return a picture turned as its EXIF orientation says, unless only the unturned one has (H, W) `size`."""
    from PIL import ImageOps

    W, H = picture.size
    turns = picture.getexif().get(EXIF_ORIENTATION) in TURNED
    if turns and size == (H, W) and H != W:
        return picture
    return ImageOps.exif_transpose(picture)
