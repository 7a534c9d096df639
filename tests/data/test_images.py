from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pliant.data import BrokenImage, read_image
from pliant.data.images import image_size

COLOURS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def _saved(picture: Image.Image, path: Path, **options: object) -> Path:
    picture.save(path, **options)
    return path


def test_colours(tmp_path: Path) -> None:
    image = read_image(_saved(Image.fromarray(COLOURS), tmp_path / "rgb.png"))
    assert (image.dtype, image.shape) == (torch.uint8, (3, 5, 7))
    assert image.is_contiguous()
    assert np.array_equal(image.permute(1, 2, 0).numpy(), COLOURS)


def test_grey_palette_alpha_and_two_colours(tmp_path: Path) -> None:
    grey = Image.fromarray(COLOURS[:, :, 0])
    expected = torch.from_numpy(COLOURS[:, :, 0].copy()).expand(3, 5, 7)
    assert torch.equal(read_image(_saved(grey, tmp_path / "grey.png")), expected)
    with_alpha = grey.convert("LA")
    with_alpha.putalpha(0)
    assert torch.equal(read_image(_saved(with_alpha, tmp_path / "la.png")), expected)

    rgba = Image.fromarray(np.dstack((COLOURS, np.full((5, 7), 9, np.uint8))))
    assert np.array_equal(read_image(_saved(rgba, tmp_path / "rgba.png")).permute(1, 2, 0).numpy(), COLOURS)

    palette = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7)).convert("P")
    palette.putpalette([*COLOURS.reshape(-1)])
    for name, options in (("p.png", {}), ("pt.png", {"transparency": bytes(range(35))})):
        read = read_image(_saved(palette, tmp_path / name, **options))
        assert np.array_equal(read.permute(1, 2, 0).numpy(), COLOURS)

    bits = Image.fromarray(COLOURS[:, :, 0] > 127)
    assert read_image(_saved(bits, tmp_path / "1.png")).unique().tolist() == [0, 255]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits(tmp_path: Path, suffix: str) -> None:
    wide = np.array([[0, 257, 65535], [128, 129, 32896]], dtype=np.uint16)
    image = read_image(_saved(Image.fromarray(wide), tmp_path / f"wide.{suffix}"))
    assert image[0].tolist() == [[0, 1, 255], [0, 1, 128]]
    assert torch.equal(image[0], image[2])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    """The stored image is the upright one transformed according to the orientation, which the reader must undo."""
    upright = torch.from_numpy(COLOURS).permute(2, 0, 1)
    # The inverse of what a viewer does with the stored image, for orientations 1 … 8.
    store = {
        1: lambda x: x,
        2: lambda x: x.flip(2),
        3: lambda x: x.flip(1, 2),
        4: lambda x: x.flip(1),
        5: lambda x: x.transpose(1, 2),
        6: lambda x: torch.rot90(x, 1, (1, 2)),
        7: lambda x: x.flip(1, 2).transpose(1, 2),
        8: lambda x: torch.rot90(x, -1, (1, 2)),
    }[orientation]
    stored = store(upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(stored.permute(1, 2, 0).contiguous().numpy())
    path = _saved(picture, tmp_path / "turned.png", exif=exif)
    assert torch.equal(read_image(path), upright)
    assert torch.equal(read_image(path, (5, 7)), upright)
    assert image_size(path) == (5, 7)
    if orientation >= 5:  # the size in the annotations is the stored one
        assert torch.equal(read_image(path, (7, 5)), stored)
    else:
        with pytest.raises(BrokenImage, match="has 7×5 pixels, its annotations are for 5×7"):
            read_image(path, (7, 5))


def test_broken_files(tmp_path: Path) -> None:
    good = _saved(Image.fromarray(COLOURS).resize((200, 200)), tmp_path / "good.jpg").read_bytes()
    for name, content in {
        "empty.jpg": b"",
        "text.jpg": b"not a picture at all",
        "half.jpg": good[: len(good) // 2],
        "half.png": _saved(Image.fromarray(COLOURS), tmp_path / "x.png").read_bytes()[:60],
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(BrokenImage, match=f"{name} cannot be read: ."):
            read_image(path)
    with pytest.raises(BrokenImage, match=r"text\.jpg cannot be read"):
        image_size(tmp_path / "text.jpg")
    for read in (read_image, image_size):
        with pytest.raises(FileNotFoundError, match=r"gone\.jpg is missing"):
            read(tmp_path / "gone.jpg")
    path = _saved(Image.fromarray(np.zeros((3, 3), np.float32)), tmp_path / "float.tif")
    with pytest.raises(BrokenImage, match="floating-point"):
        read_image(path)
