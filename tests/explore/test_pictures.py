from __future__ import annotations

import io
import struct
import zlib

import pytest
import torch
from PIL import Image

from pliant.app.explore.networks import Network
from pliant.app.explore.pictures import KEPT, KEPT_SIDE, BadPicture, Gallery, Picture, canvas, decode


def file(mode: str, size: tuple[int, int] = (40, 30), format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 200 if mode in ("L", "I;16", "P") else None).save(buffer, format=format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "I;16", "1"])
def test_every_usual_mode_is_three_channels(mode: str) -> None:
    image = decode(file(mode))
    assert image.shape == (3, 30, 40) and image.dtype == torch.uint8


def test_camera_pictures_are_upright_and_reduced() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(file("RGB", format="JPEG", exif=exif)).shape == (3, 40, 30)
    assert decode(file("RGB", (3000, 1500), "JPEG")).shape == (3, KEPT_SIDE // 2, KEPT_SIDE)


def claimed(width: int, height: int) -> bytes:
    """Return a PNG file of that size up to where its pixels should begin."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for chunk in (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT"):
        parts += [struct.pack(">I", len(chunk) - 4), chunk, struct.pack(">I", zlib.crc32(chunk))]
    return b"".join(parts)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "not an image in one of the formats"),
        (b"hello", "not an image in one of the formats"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image in one of the formats"),
        (file("RGB", (400, 300))[:200], "damaged"),
        (file("RGB", (400, 300), "JPEG")[:-300], "damaged"),
        (claimed(7000, 7000), "7000 × 7000 pixels; at most 40 million"),
        (claimed(12_000, 12_000), "more than 40 million pixels"),
        (claimed(100_000, 100_000), "more than 40 million pixels"),
        (bytes((20 << 20) + 1), "larger than 20 MB"),
        (claimed(1, 39_000_000), "1 × 39000000 pixels; its sides may differ by a factor of 100 at most"),
    ],
    ids=["empty", "text", "program", "half png", "half jpeg", "large", "warned of", "bomb", "long", "line"],
)
def test_what_is_no_picture_gets_a_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(BadPicture, match=sentence):
        decode(data)


def test_gallery_keeps_the_last_pictures() -> None:
    gallery = Gallery()
    fixed = len(gallery.all())
    sent = [gallery.add(file("L"), f"/tmp/a folder/{i}.png") for i in range(KEPT + 2)]
    assert len(gallery.all()) == fixed + KEPT
    assert sent[0].label == "0.png"
    assert gallery.find(sent[-1].id) is sent[-1]
    with pytest.raises(LookupError, match="choose it again"):
        gallery.find(sent[0].id)


def scene() -> Picture:
    random = torch.Generator().manual_seed(0)
    return Picture("a", "a", "scene", torch.randint(256, (3, 128, 128), generator=random).to(torch.uint8))


def test_scene_of_the_right_size_is_untouched(bundled: dict[str, Network]) -> None:
    picture = scene()
    found = canvas(picture, bundled["mdconv-c3-c5-mdpool"])
    torch.testing.assert_close(found, picture.image.float() / 255, rtol=0, atol=1e-5)


def test_a_quarter_turn_is_counter_clockwise(bundled: dict[str, Network]) -> None:
    picture = scene()
    found = canvas(picture, bundled["mdconv-c3-c5-mdpool"], angle=90.0)
    torch.testing.assert_close(found, (picture.image.float() / 255).rot90(1, (1, 2)), rtol=0, atol=1e-4)


def test_halving_averages_and_leaves_the_mean_colour_around(bundled: dict[str, Network]) -> None:
    picture = scene()
    image = picture.image.float() / 255
    found = canvas(picture, bundled["mdconv-c3-c5-mdpool"], scale=0.5)
    torch.testing.assert_close(found[:, 0, 0], image.mean((1, 2)), rtol=0, atol=1e-5)
    quarter = torch.nn.functional.avg_pool2d(image, 2)
    torch.testing.assert_close(found[:, 33:95, 33:95], quarter[:, 1:-1, 1:-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "shape"), [((300, 100), (43, 128)), ((50, 100), (128, 64))])
def test_detectors_see_the_whole_picture(bundled: dict[str, Network], size: tuple[int, int], shape: tuple) -> None:
    picture = Picture("a", "a", "yours", decode(file("RGB", size)))
    assert canvas(picture, bundled["mdconv-c3-c5-mdpool"]).shape == (3, *shape)


def test_classifiers_see_light_objects_on_black(bundled: dict[str, Network]) -> None:
    paper = torch.full((3, 80, 60), 250, dtype=torch.uint8)
    paper[:, 20:60, 20:40] = 30
    found = canvas(Picture("a", "a", "yours", paper), bundled["deform-v2-3"])
    assert found.shape == (3, 64, 64)
    assert float(found[:, 32, 32].min()) > 0.8 and float(found[:, 0, 0].max()) == 0
    night = canvas(Picture("a", "a", "yours", 255 - paper), bundled["deform-v2-3"])
    torch.testing.assert_close(found, night, rtol=0, atol=1e-5)
